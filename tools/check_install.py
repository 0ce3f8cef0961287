"""Check a Python environment: everything imports, in the versions that were asked for.

Run as ``python tools/check_install.py``. Exits with 1 and names the fix when something is wrong.
``--quick`` only compares versions, in a fraction of a second, without importing anything.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
BASE = ("requirements-torch.txt", "requirements.txt", "requirements-train.txt")
TORCHAUDIO = "requirements-torchaudio.txt"
DEVELOPMENT = ("requirements-dev.txt", "requirements-reference.txt")
# Distribution name to the module that has to import; None for programs.
MODULES = {
    "espeakng-loader": "espeakng_loader",
    "espnet": "espnet2.tasks.abs_task",
    "fusion-bench": "fusion_bench.models.wrappers.layer_wise_fusion",
    "mergekit": "mergekit.scripts.run_yaml",
    "peft": "peft.utils.merge_utils",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "ruff": None,
    "scikit-learn": "sklearn.cluster",
    "transformers": "transformers.models.wavlm.modeling_wavlm",
}


def pinned(names: tuple[str, ...]) -> dict[str, str]:
    """Read ``name==version`` lines of requirement files in ``tools/``."""
    pins = {}
    for name in names:
        for line in (TOOLS / name).read_text(encoding="utf-8").splitlines():
            if "==" in line and not line.startswith("#"):
                package, version = line.strip().split("==")
                pins[package] = version
    return pins


def version_problems(pins: dict[str, str], exact: bool) -> list[str]:
    """Say which distributions are missing or, with ``exact``, differ from their pins.

    A local version (``2.13.0+cpu``) satisfies its public one.
    """
    problems = []
    for package, wanted in pins.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{package} {wanted} is not installed")
            continue
        if exact and found.split("+")[0] != wanted:
            problems.append(f"{package} is {found}, expected {wanted}")
    return problems


def import_problems(pins: dict[str, str]) -> list[str]:
    """Import every package and say which ones fail, and with what."""
    problems = []
    for package in pins:
        module = MODULES.get(package, package.replace("-", "_"))
        if module is None:
            continue
        try:
            # g2p_en tells about its dictionaries on standard output.
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - any failure to import is the finding
            problems.append(f"import {module} fails: {type(error).__name__}: {error}")
    return problems


def gpu_problem() -> str | None:
    """Say so when the machine has a GPU that this torch cannot use."""
    import torch

    if shutil.which("nvidia-smi") is None or torch.cuda.is_available():
        return None
    seen = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
    if seen.returncode != 0:
        return None
    return (
        f"this machine has a GPU but torch {torch.__version__} cannot use it: "
        "run tools/setup.sh --device cuda (or check the driver)"
    )


def report(pins: dict[str, str]) -> None:
    """Print the versions that matter."""
    import torch

    where = "no GPU"
    if torch.cuda.is_available():
        where = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU(s)"
    print(f"python {sys.version.split()[0]} at {sys.executable}; {where}")
    print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in pins))


def main() -> None:
    """Check, print, and exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    parser.add_argument("--quick", action="store_true", help="versions only, nothing imported")
    parser.add_argument(
        "--any-version", action="store_true", help="accept other versions than the pinned ones"
    )
    args = parser.parse_args()
    # Nothing here may reach for the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    pins = pinned((*BASE, TORCHAUDIO, *(DEVELOPMENT if args.dev else ())))
    problems = version_problems(pins, exact=not args.any_version)
    if not problems and not args.quick:
        problems = import_problems(pins)
        if not problems:
            problems = [problem for problem in [gpu_problem()] if problem]
    if problems:
        print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
        print("fix: run tools/setup.sh --force", file=sys.stderr)
        sys.exit(1)
    if not args.quick:
        report(pins)


if __name__ == "__main__":
    main()
