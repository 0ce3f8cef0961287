"""The protocol of MTLSER's published code: for showing its numbers, not for comparing systems.

It puts a random tenth of the utterances of *every* speaker aside, and both chooses epochs and
reports on them (4,984 and 547 utterances of IEMOCAP). Test speakers are then training speakers, and
the reported score is the best of all epochs: scores come out far too high. The sets carry the name
``published_leaky`` so that no table can be taken for another. Which tenth is ours: the published
one is not reproducible. Run it with ``python -m espnet_adaltm.bin.leaky_split``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_adaltm.data.datadir import DataDir, Table, invert, read_data_dir, write_data_dir
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike

NAME = "published_leaky"
TRAIN = "train"
WARNING = (
    f"Split `{NAME}`: a random tenth of every speaker's utterances, used both to choose epochs and "
    "to report, as MTLSER's published code does. Speaker-dependent and optimistic: not comparable "
    "with any other set."
)


def choose(utt2spk: Mapping[str, str], share: float = 0.1, seed: int = 0) -> set[str]:
    """Draw a share of every speaker's utterances, by a hash: the same on every machine.

    Args:
        utt2spk: Utterance to speaker.
        share: Of each speaker's utterances, rounded; at least one, if it has two.
        seed: Another one draws others.
    """
    chosen: set[str] = set()
    for utterances in invert(utt2spk).values():
        order = sorted(utterances, key=lambda utt: _hash(f"{seed} {utt}"))
        count = max(round(share * len(order)), 1 if len(order) > 1 else 0)
        chosen |= set(order[:count])
    return chosen


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def leaky_split(
    sources: Sequence[Pathlike], out: Pathlike, *, share: float = 0.1, seed: int = 0
) -> dict[str, DataDir]:
    """Write ``out/train`` and ``out/published_leaky`` from all utterances of the given sets.

    Args:
        sources: Data directories, usually all sets of a corpus.
        out: Folder to write to.
        share: See `choose`.
        seed: See `choose`.

    Raises:
        UserError: An invalid directory, an utterance or recording that two of them define
            differently, or nothing to put aside.
    """
    if not 0 < share < 1:
        raise UserError(f"--share {share} does not lie between 0 and 1")
    tables = _together([read_data_dir(source) for source in sources])
    chosen = choose(tables["utt2spk"], share, seed)
    if not chosen or len(chosen) == len(tables["utt2spk"]):
        raise UserError(
            f"{', '.join(map(str, sources))}: no speaker has two utterances: nothing can be split"
        )
    sets = {TRAIN: tables["utt2spk"].keys() - chosen, NAME: chosen}
    return {name: _write(Path(out) / name, tables, utts) for name, utts in sets.items()}


def _together(sets: Sequence[DataDir]) -> dict[str, Table]:
    cut = any(data.segments for data in sets)
    tables: dict[str, Table] = {"segments": {}}
    for data in sets:
        rows = {"wav.scp": data.wav_scp, **data.tables}
        if cut:
            whole = {utt: (utt, 0.0, -1.0) for utt in data.wav_scp}
            rows["segments"] = {
                utt: f"{recording} {start!r} {end!r}"
                for utt, (recording, start, end) in (data.segments or whole).items()
            }
        for name, table in rows.items():
            known = tables.setdefault(name, {})
            for key, value in table.items():
                if known.setdefault(key, value) != value:
                    raise UserError(
                        f"{data.path / name}: {key!r} is {value!r}, in another set it is "
                        f"{known[key]!r}: give ids that are used once"
                    )
    return tables


def _write(folder: Path, tables: Mapping[str, Table], utterances: set[str]) -> DataDir:
    kept = {
        name: {utt: value for utt, value in table.items() if utt in utterances}
        for name, table in tables.items()
        if name != "wav.scp"
    }
    segments = kept.pop("segments")
    recordings = {value.split()[0] for value in segments.values()} or utterances
    audio = {key: value for key, value in tables["wav.scp"].items() if key in recordings}
    named = {name: kept.pop(name, None) for name in ("utt2spk", "text", "utt2emo")}
    return write_data_dir(folder, audio, **named, segments=segments, **kept)
