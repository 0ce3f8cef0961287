"""From dump folders to the data options of ESPnet, and reading with the mistakes named."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require
from espnet_adaltm.kaldi import read_scp, safe_kaldiio

# ESPnet's data sets read arks through kaldiio; every task, in every process, imports this module.
safe_kaldiio()

SAMPLE_RATE = 16_000
FEATS_TYPES = ("raw", "extracted")
PARTS = ("train", "valid")


@dataclass(frozen=True)
class DataNeeds:
    """What a task reads from a dump folder.

    Attributes:
        shape: File of ``utterance samples`` whose keys are the utterances to use.
        targets: Name in the batch to (file in the dump folder, ESPnet's data type).
    """

    shape: str
    targets: Mapping[str, tuple[str, str]]


def fill_data_options(args: argparse.Namespace, needs: Mapping[str, DataNeeds]) -> None:
    """Fill ``train_data_path_and_name_and_type``, ``train_shape_file`` and ``valid_*`` in place.

    Options that the user gave stay. Batches are made by the number of samples for stored features
    too, so that ``--feats_type`` does not change which utterances are trained on together.

    Args:
        args: The options.
        needs: What ``train`` and ``valid`` need.

    Raises:
        UserError: A file or option is missing, or an utterance has no features.
    """
    for part in PARTS:
        paths, shapes = f"{part}_data_path_and_name_and_type", f"{part}_shape_file"
        dump = getattr(args, f"{part}_dump")
        if dump is None:
            if not getattr(args, paths) or not getattr(args, shapes):
                raise UserError(f"--{part}_dump is missing: give the dump folder of the {part} set")
            _check_names(part, getattr(args, paths), needs[part])
            continue
        dump = Path(dump)
        if not getattr(args, paths):
            entries = [(str(_speech(args, dump)), "speech", "kaldi_ark")]
            for name, (file, kind) in needs[part].targets.items():
                entries.append((str(_target(args, dump, name, file)), name, kind))
            setattr(args, paths, entries)
        if not getattr(args, shapes):
            setattr(args, shapes, [str(require(dump / needs[part].shape, "stage `audio`"))])
        _check_keys(getattr(args, shapes)[0], getattr(args, paths))


def _check_names(part: str, entries: Sequence[tuple[str, str, str]], needs: DataNeeds) -> None:
    missing = {"speech", *needs.targets} - {name for _, name, _ in entries}
    if missing:
        raise UserError(
            f"--{part}_data_path_and_name_and_type has no {min(missing)!r}: add it, or give "
            f"--{part}_dump"
        )


def _check_keys(shape: str, entries: Sequence[tuple[str, str, str]]) -> None:
    """Refuse utterances that lack their speech or target, before ESPnet fails amid training."""
    keys = read_scp(shape)
    for path, name, _ in entries:
        missing = keys.keys() - read_scp(path, allow_empty_value=True).keys()
        if missing:
            raise UserError(
                f"{len(missing)} utterances of {shape} have no {name} in {path}, the first is "
                f"{min(missing)!r}: run the stage that makes it again"
            )


def _speech(args: argparse.Namespace, dump: Path) -> Path:
    if args.feats_type == "raw":
        return require(dump / "wav.scp", "stage `audio`")
    return require(_feats(args, dump) / "feats.scp", "stage `base` with --feats_type extracted")


def _feats(args: argparse.Namespace, dump: Path) -> Path:
    root = args.feats_dir or (Path(args.base) / "feats" if args.base else None)
    if root is None:
        raise UserError("--feats_type extracted needs --feats_dir (or --base, whose feats/ it is)")
    return Path(root) / dump.name


def _target(args: argparse.Namespace, dump: Path, name: str, file: str) -> Path:
    if name == "units":
        if args.units_dir is None:
            raise UserError("--units_dir is missing: give the folder that `make_units` wrote")
        return require(Path(args.units_dir) / dump.name / file, "stage `base` (units)")
    return require(dump / file, "stage `audio`")


def data_files(args: argparse.Namespace) -> dict[str, Path]:
    """The small files that decide what is trained on, by role; call after `fill_data_options`."""
    files: dict[str, Path] = {}
    for part in PARTS:
        for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type"):
            if kind == "text":
                files[f"the {part} {name}"] = Path(path)
        for number, path in enumerate(getattr(args, f"{part}_shape_file")):
            files[f"the {part} shape file{number or ''}"] = Path(path)
    return files


class SpeechReader(Mapping):
    """Utterance to samples or features, refusing other sampling rates.

    Wraps ESPnet's reader of Kaldi arks, which drops the rate.

    Args:
        loader: Utterance to array, or to (rate, array).
        path: The script file, for errors.
    """

    def __init__(self, loader: Mapping, path: str) -> None:
        self.loader = loader
        self.path = path

    def __getitem__(self, utt: str) -> NDArray:
        try:
            value = self.loader[utt]
        except KeyError as error:
            raise UserError(f"{self.path} has no utterance {utt!r}: make it again") from error
        except Exception as error:  # kaldiio raises whatever the damage leads to
            raise UserError(f"{self.path}: {utt!r} cannot be read ({error})") from error
        if not isinstance(value, tuple):
            return value
        rate, audio = value if not hasattr(value[0], "shape") else reversed(value)
        if rate != SAMPLE_RATE:
            raise UserError(
                f"{self.path}: {utt!r} has {rate} samples per second, expected {SAMPLE_RATE}: run "
                f"stage `audio`, which resamples"
            )
        if audio.ndim != 1:
            raise UserError(f"{self.path}: {utt!r} has {audio.shape[1]} channels, expected one")
        return audio

    def __iter__(self) -> Iterator[str]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)
