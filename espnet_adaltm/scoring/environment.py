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
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
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
