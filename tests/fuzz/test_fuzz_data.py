"""Whatever tables, audio and options hold, it is valid, or an error tells.

The examples are drawn from a fixed seed: a failure is the same everywhere.
"""

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fuzz_common import fuzz, lines, numbers, plain, texts, valid, words
from hypothesis import assume, example, given
from hypothesis import strategies as st

from espnet_adaltm.data.audio import cut, decode_audio, load_audio
from espnet_adaltm.data.audit import read_stats
from espnet_adaltm.data.broken import allowed_broken
from espnet_adaltm.data.datadir import read_data_dir, write_data_dir
from espnet_adaltm.data.labels import parse_soft
from espnet_adaltm.kaldi import read_scp, write_scp

TEMPLATE = Path(__file__).parents[2] / "egs" / "TEMPLATE" / "adaltm1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # what is written here need not last
        yield tmp_path_factory.mktemp("fuzz")


# ------------------------------------------------------------------------------------- tables
@fuzz(100)
@given(content=st.one_of(st.binary(max_size=80), texts.map(str.encode)), loose=st.booleans())
@example(content="é x\r\nz y".encode(), loose=True)
def test_any_bytes_as_a_table(folder, content, loose):
    path = folder / "table"
    path.write_bytes(content)
    found = valid(read_scp, path, require_sorted=not loose, allow_empty_value=loose)
    if found is not None:
        write_scp(path, found)
        assert read_scp(path, allow_empty_value=loose) == found


@fuzz(60)
@given(table=st.dictionaries(words, lines, max_size=6))
def test_tables_come_back(folder, table):
    write_scp(folder / "table", table)
    assert read_scp(folder / "table") == table
    assert list(read_scp(folder / "table")) == sorted(table, key=str.encode)


FILES = (
    "wav.scp", "utt2spk", "text", "utt2emo", "utt2soft", "utt2dialog", "segments", "spk2utt",
    "utt2num_samples", "utt2gender", "utt2x",
)  # fmt: skip
values = st.one_of(
    st.sampled_from(
        ["s", "a 0 1", "a 0 -1", "a nan 1", "a 1e999 -1", "d 0", "d 1", "d \u0663", "sad=0.5 x=0.5",
         "sad=nan", "sad=1e-400 x=1", "sad happy", "7", "9" * 5000, "a b", ""]
    ),
    texts,
)  # fmt: skip
tables = st.dictionaries(plain, values, min_size=1, max_size=4)


@fuzz(150)
@given(changes=st.dictionaries(st.sampled_from(FILES), tables, max_size=4), raw=st.booleans())
def test_any_data_directory(folder, changes, raw):
    good = {"wav.scp": {"a": "a.wav", "b": "b.wav"}, "utt2spk": {"a": "s", "b": "t"}}
    path = folder / "data"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, table in (good | changes).items():
        text = "".join(f"{key} {table[key]}\n" for key in sorted(table, key=str.encode))
        (path / name).write_bytes(text.encode("utf-8", "surrogatepass" if raw else "strict"))
    data = valid(read_data_dir, path)
    if data is None:
        return
    assert all(size >= 0 for size in data.num_samples.values())
    segments = {u: f"{r} {s!r} {e!r}" for u, (r, s, e) in data.segments.items()}
    rest = {k: v for k, v in data.tables.items() if k != "utt2spk"}
    again = write_data_dir(folder / "copy", data.wav_scp, data.utt2spk, segments=segments, **rest)
    copy = read_data_dir(folder / "copy")
    assert copy == again
    assert copy.tables == data.tables
    assert copy.segments == data.segments


@fuzz(100)
@given(entry=st.one_of(texts, lines, st.lists(st.tuples(words, numbers), max_size=3).map(
    lambda rows: " ".join(f"{name}={share}" for name, share in rows))))  # fmt: skip
def test_any_votes(entry):
    shares = valid(parse_soft, entry, "x")
    if shares is not None:
        assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
        assert parse_soft(" ".join(f"{k}={v!r}" for k, v in shares.items()), "x") == pytest.approx(
            shares, abs=1e-9
        )


@fuzz(60)
@given(content=st.binary(max_size=120))
@example(content=b"utt\tnum_samples\tdigest\tpeak\tclipped\tleading_silence\na\t1\tx\t1\t1\n")
@example(content=b"\n")
def test_any_statistics(folder, content):
    (folder / "stats").write_bytes(content)
    valid(read_stats, folder / "stats")


@fuzz(60)
@given(text=texts, total=st.integers(0, 10**6))
def test_any_share(text, total):
    found = valid(allowed_broken, text, total)
    assert found is None or found >= 0


# -------------------------------------------------------------------------------------- audio
def encoded(kind):
    buffer = io.BytesIO()
    samples = 0.1 * np.random.default_rng(0).standard_normal((400, 2))
    soundfile.write(buffer, samples, 16_000, format=kind)
    return buffer.getvalue()


SOUNDS = {
    kind: encoded(kind) for kind in ("WAV", "FLAC", "OGG", "AIFF", "NIST", "W64", "AU", "CAF")
}


@fuzz(250)
@given(
    kind=st.sampled_from(sorted(SOUNDS)),
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=5),
    size=st.integers(0, 3000),
)
def test_any_damage_to_audio(kind, changes, size):
    content = bytearray(SOUNDS[kind][:size])
    for place, value in changes:
        content[place : place + 1] = bytes([value]) if place < len(content) else b""
    found = valid(decode_audio, bytes(content), "x")
    if found is not None:
        samples, rate = found
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
        assert rate > 0


sources = st.one_of(
    texts,
    st.tuples(st.sampled_from(["x.ark", "good.ark", "", "|", "."]), texts).map("".join),
    st.tuples(st.sampled_from(["good.ark:", "x.ark:"]), st.integers(-9, 10**20).map(str)).map(
        "".join
    ),
    st.sampled_from(
        ["touch pwned |", "good.ark:2[0:1]", "good.ark:2[", "good.ark:2", "/dev/zero", "-"]
    ),
)


@fuzz(150)
@given(source=sources, flags=st.lists(st.integers(0, 255), max_size=12))
def test_any_entry_of_wav_scp(folder, source, flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("good.ark").write_bytes(b"a " + SOUNDS["WAV"])
        Path("x.ark").write_bytes(b"a " + bytes(flags) + b" \0BFM \x04")
        valid(load_audio, source)
        assert not Path("pwned").exists()


@fuzz(60)
@given(start=st.floats(min_value=0), more=st.one_of(st.floats(min_value=0), st.none()))
def test_any_segment(start, more):
    end = -1 if more is None else start + more
    valid(cut, np.zeros(100, dtype=np.float32), 100, start, end)


# ------------------------------------------------------------------------------ options in shell
SCRIPT = r"""
set -euo pipefail
. utils/parse_options.sh
option stage data "where to begin"
option nj 4 "how many"
option force false "again"
option asr_args "" "overrides"
parse_options "$@"
printf '%s\0' "${stage}" "${nj}" "${force}" "${asr_args}"
"""
typed = st.lists(
    st.one_of(
        st.sampled_from(
            ["--stage", "--nj=3", "--force", "true", "--force=false", "--asr-args", "--asr_args=",
             "--", "$(touch pwned)", "`touch pwned`", "a b", "", "*", "--stage=a=b", "-x", "--nj",
             "\\", "'"]
        ),
        texts.filter(lambda text: "\0" not in text),
    ),
    max_size=4,
)  # fmt: skip


def parsed(arguments, cwd=TEMPLATE):
    return subprocess.run(["bash", "-c", SCRIPT, "x", *arguments], cwd=cwd, capture_output=True)


@fuzz(60)
@given(arguments=typed)
def test_any_options(arguments):
    done = parsed(arguments)
    assert not (TEMPLATE / "pwned").exists()
    if done.returncode == 0 and not {"-h", "--help"} & set(arguments):
        found = done.stdout.split(b"\0")[:-1]
        assert len(found) == 4
        assert found[2] in (b"true", b"false")
    elif done.returncode:
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr.startswith(b"error: ")
        assert sum(line.startswith(b"error: ") for line in done.stderr.split(b"\n")) == 1


@fuzz(30)
@given(value=texts.filter(lambda text: "\0" not in text), joined=st.booleans())
def test_values_of_options_come_through(value, joined):
    assume(not value.startswith("--"))
    words = [f"--asr_args={value}"] if joined else ["--asr_args", value]
    done = parsed(words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(b"\0")[3].decode() == value
