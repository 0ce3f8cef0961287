"""Transcripts of English corpora: one text file per recording, and how their words are spelled.

What a corpus' annotators write for a noise (``[LAUGHTER]``, ``<inaudible>``) is no word. Capitals
and punctuation are left out, apostrophes stay inside words, digits stay as they are written.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.workers import process_pool

_NOISE = re.compile(r"\[[^\]]*\]|<[^>]*>|\{[^}]*\}")
_NO_WORD = re.compile(r"[^\w']+|_+")
_EDGES = re.compile(r"(?<!\w)'+|'+(?!\w)")
_CHUNK = 5000
_LONGEST = 1 << 20


def clean(text: str) -> str:
    """Lower-case words between single blanks, without noises and punctuation; may be empty."""
    if "[" in text or "<" in text or "{" in text:
        text = _NOISE.sub(" ", text)
    text = _NO_WORD.sub(" ", text.lower().replace("\u2019", "'"))
    if "'" in text:
        text = _EDGES.sub("", text)
    return " ".join(text.split())


def read_transcripts(
    folder: Path, stems: Sequence[str], num_workers: int = 1
) -> dict[str, str | None]:
    """Read and clean ``<folder>/<stem>.txt``.

    Args:
        folder: With the text files.
        stems: Whose.
        num_workers: Processes; does not change the result.

    Returns:
        Stem to words, possibly none; to None where there is no file. In the order of ``stems``.

    Raises:
        UserError: A file that is no text; the message names it.
    """
    chunks = [stems[begin : begin + _CHUNK] for begin in range(0, len(stems), _CHUNK)]
    texts: dict[str, str | None] = {}
    for chunk, found in zip(chunks, _read_chunks(folder, chunks, num_workers), strict=True):
        texts.update(zip(chunk, found, strict=True))
    return texts


def _read_chunks(
    folder: Path, chunks: Sequence[Sequence[str]], num_workers: int
) -> Iterator[list[str | None]]:
    read = partial(_read_chunk, str(folder))
    if num_workers == 1 or len(chunks) == 1:
        yield from map(read, chunks)
        return
    with process_pool(min(num_workers, len(chunks))) as pool:
        yield from pool.map(read, chunks)


def _read_chunk(folder: str, stems: Sequence[str]) -> list[str | None]:
    return [_read(f"{folder}/{stem}.txt") for stem in stems]


def _read(path: str) -> str | None:
    # Below Python's file objects: they cost more than reading the few bytes of a transcript.
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        data = os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
    try:
        return clean(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        pass
    if b"\0" in data:
        raise UserError(f"{path} is no text file: unpack the transcripts again")
    return clean(data.decode("cp1252", errors="replace"))
