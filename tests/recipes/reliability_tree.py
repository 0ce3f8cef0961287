"""What a recipe's folders have to look like after a kill, and at the end."""

import io
import json
import re
import wave
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

import kaldiio
import sentencepiece
import soundfile
import torch
import yaml
from PIL import Image
from safetensors.torch import load as load_safetensors

MADE = ("data", "dump", "exp")
TEMPORARY = re.compile(r"^\..*(\.tmp|\.new|\.init_[0-9a-f-]+)$")
# Written line by line while something runs, and read by nobody but people: the end may be missing.
# What a lock says is worth nothing once nobody holds it.
GROWING = ("*.log", "*/.runs/*", "*.lock", "*/tensorboard/*")
# Written once, with the same bytes in every run: anything else is half of it, or wrong.
ONCE = (
    *("data/*/wav.scp", "data/*/text", "data/*/utt2*", "data/*/spk2utt", "data/*/labels.*"),
    *("data/*/tokens.*", "data/*.wav", "dump/*"),
    *("exp/*.safetensors", "exp/*/units.*", "exp/*/feats*", "exp/*/coefficients.json"),
    *("exp/*/decode/*", "exp/*/results.json", "exp/*/results.csv", "exp/*/results.tex"),
    *("exp/*/similarity.json", "exp/*/export/config.json"),
)
# What a run is made for: it has to be there, and the same.
ESSENTIAL = ("exp/*/results.json", "*/coefficients.json", "*/decode/*/utt2prob", "*/decode/*/text")


def is_growing(name: str) -> bool:
    """Whether a file may end anywhere."""
    return any(fnmatch(name, pattern) for pattern in GROWING)


def is_once(name: str) -> bool:
    """Whether a file has the same bytes in every run."""
    made_to_last = not is_growing(name) and "/.stamps/" not in name  # stamps hold times
    return made_to_last and any(fnmatch(name, pattern) for pattern in ONCE)


def files(recipe: Path) -> Iterator[tuple[str, Path]]:
    """Everything that a recipe made: name within it, path."""
    for folder in MADE:
        for path in sorted((recipe / folder).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(recipe)), path


def temporary(recipe: Path) -> list[str]:
    """Files and folders with names that nothing finished has."""
    found = (path for folder in MADE for path in (recipe / folder).rglob("*"))
    return sorted(str(path.relative_to(recipe)) for path in found if TEMPORARY.match(path.name))


# --------------------------------------------------------------------------------- whole files
def _open_scp(data: bytes, recipe: Path) -> None:
    for line in data.decode().splitlines():
        _, _, place = line.partition(" ")
        if place.endswith(".wav"):
            soundfile.info(recipe / place)
        else:
            kaldiio.load_mat(str(recipe / place))


def _image(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def _wave(data: bytes) -> None:
    with wave.open(io.BytesIO(data)) as clip:
        size = clip.getnframes() * clip.getsampwidth() * clip.getnchannels()
        if len(clip.readframes(clip.getnframes())) != size:
            raise ValueError("is shorter than it says")


def _page(data: bytes) -> None:
    if not data.rstrip().endswith(b"</html>"):
        raise ValueError("does not end")


def _lines(data: bytes) -> None:
    if data and not data.endswith(b"\n"):
        raise ValueError("ends within a line")


READERS: dict[str, Callable[[bytes], object]] = {
    ".json": json.loads,
    ".yaml": yaml.safe_load,
    ".safetensors": load_safetensors,
    ".pth": lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True),
    ".model": lambda data: sentencepiece.SentencePieceProcessor(model_proto=data),
    ".wav": _wave,
    ".png": _image,
    ".html": _page,
    **dict.fromkeys(("", ".txt", ".md", ".tsv", ".csv", ".tex"), _lines),
}


def problem_of(path: Path, recipe: Path) -> str:
    """Why a file with a final name is not a whole one; empty if it is."""
    data = path.read_bytes()
    try:
        if path.suffix == ".scp":
            _open_scp(data, recipe)
        elif path.suffix in READERS:
            READERS[path.suffix](data)
    except Exception as error:  # noqa: BLE001  (any damage shows as any exception)
        return f"{path.relative_to(recipe)} is no whole file: {type(error).__name__}: {error}"
    return ""


@dataclass
class Tree:
    """A recipe's folders, looked at again and again; what did not change is not read again.

    Attributes:
        recipe: The recipe.
        reference: One that was never disturbed; None to compare with nothing.
    """

    recipe: Path
    reference: Path | None = None
    _known: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Files under final names that are not whole, or not what an undisturbed run wrote."""
        found = []
        for name, path in files(self.recipe):
            if is_growing(name) or any(TEMPORARY.match(part) for part in Path(name).parts):
                continue
            with suppress(FileNotFoundError):  # replaced by what still runs
                look = (path.stat().st_size, *_look(path))
                if self._known.get(name) != look:
                    problem = problem_of(path, self.recipe) or self._difference(name, path)
                    found += [problem] if problem else []
                    self._known[name] = look
        return found

    def _difference(self, name: str, path: Path) -> str:
        if self.reference is None or not is_once(name):
            return ""
        other = self.reference / name
        if not other.exists():
            return f"{name} is not there in an undisturbed run"
        same = path.read_bytes() == other.read_bytes()
        return "" if same else f"{name} has other bytes than in an undisturbed run"

    def missing(self) -> list[str]:
        """What the undisturbed run has and this one lacks, at its end; and what it has too much."""
        names = [set(dict(files(folder))) for folder in (self.recipe, self.reference)]
        return sorted(name for name in names[0] ^ names[1] if is_once(name))


# --------------------------------------------------------------------------------- finished work
@dataclass(frozen=True)
class Finished:
    """What was finished at some moment.

    Attributes:
        items: Title of an item (``folder: name``) to its outputs' inodes and times.
        epochs: Folder of a training to its last saved epoch.
        weights: ``<n>epoch.pth`` of saved epochs to inode and time.
    """

    items: dict[str, dict[str, tuple[int, int]]]
    epochs: dict[str, int]
    weights: dict[str, tuple[int, int]]

    def lost(self, now: "Finished") -> list[str]:
        """What was finished and is not any more, or was written again since."""
        found = [
            f"{title} is not finished any more" for title in self.items.keys() - now.items.keys()
        ]
        for title, outputs in self.items.items():
            again = [
                path
                for path, look in outputs.items()
                if now.items.get(title, outputs).get(path) != look
            ]
            found += [f"{title}: {path} was written again" for path in again]
        for folder, epoch in self.epochs.items():
            if now.epochs.get(folder, 0) < epoch:
                found.append(
                    f"{folder}: {epoch} epochs were saved, {now.epochs.get(folder, 0)} are left"
                )
        for path, look in self.weights.items():
            if now.weights.get(path, look) != look:
                found.append(f"{path}: that epoch was trained again")
        return found


def _look(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def finished(recipe: Path) -> Finished:
    """What is finished now: items with their stamps, epochs with their checkpoints."""
    items, epochs, weights = {}, {}, {}
    for name, path in files(recipe):
        if path.parent.name == ".stamps" and name.endswith(".json") and ".started." not in name:
            stamp = json.loads(path.read_bytes())
            title = f"{Path(name).parents[1]}: {path.stem}"
            items[title] = {output: _look(recipe / output) for output in stamp["outputs"]}
        elif path.name in ("checkpoint.prev.pth", "checkpoint.pth"):
            with suppress(FileNotFoundError):  # replaced by what still runs
                states = torch.load(path, map_location="cpu", weights_only=True)
                folder = str(Path(name).parent)
                epochs[folder] = max(epochs.get(folder, 0), states["reporter"]["epoch"])
    for folder, last in epochs.items():
        for path in (recipe / folder).glob("*epoch.pth"):
            number = path.name.removesuffix("epoch.pth")
            if number.isdigit() and int(number) <= last:
                weights[f"{folder}/{path.name}"] = _look(path)
    return Finished(items, epochs, weights)


def seconds_of_items(recipe: Path) -> dict[str, float]:
    """Title of every finished item to the time it took, undisturbed."""
    found = {}
    for name, path in files(recipe):
        if path.parent.name == ".stamps" and name.endswith(".json") and ".started." not in name:
            seconds = json.loads(path.read_bytes()).get("seconds", 1.0)
            found[f"{Path(name).parents[1]}: {path.stem}"] = float(seconds)
    return found


def digest(recipe: Path) -> dict[str, str]:
    """Hashes of what a run is made for."""
    return {
        name: sha256(path.read_bytes()).hexdigest()
        for name, path in files(recipe)
        if any(fnmatch(name, pattern) for pattern in ESSENTIAL)
    }
