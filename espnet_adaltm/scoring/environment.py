"""What a result was computed with, read without importing any of it."""

import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("espnet", "torch", "transformers", "numpy", "scikit-learn")


def version(package: str) -> str:
    """Installed version of a distribution, or ``not installed``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_revision(folder: Path) -> str:
    """Short commit hash, ending in ``-dirty`` with uncommitted changes; ``unknown`` outside git."""
    return _git(folder, "describe", "--always", "--dirty", "--exclude=*")


def commit_date(folder: Path) -> str:
    """Date of the commit, as ESPnet's results give it; ``unknown`` outside git."""
    return _git(folder, "log", "-1", "--format=%cd")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def environment() -> dict[str, str]:
    """Date, interpreter, package versions and code revision."""
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
    }
    facts |= {package: version(package) for package in _PACKAGES}
    facts["git hash"] = git_revision(Path(__file__).resolve().parent)
    return facts


def espnet_block() -> str:
    """The same as the list under ``## Environments`` in the results of ESPnet's recipes."""
    facts = environment()
    compiler = platform.python_compiler()
    named = {
        "date": facts.pop("date"),
        "python version": f"{facts.pop('python')} [{compiler}]",
        "espnet version": f"espnet {facts.pop('espnet')}",
        "pytorch version": f"pytorch {facts.pop('torch')}",
    }
    revision = facts.pop("git hash")
    named |= {f"{package} version": f"{package} {value}" for package, value in facts.items()}
    lines = [f"- {name}: `{value}`" for name, value in named.items()]
    date = commit_date(Path(__file__).resolve().parent)
    return "\n".join([*lines, f"- Git hash: `{revision}`", f"  - Commit date: `{date}`"])
