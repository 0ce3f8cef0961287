"""tools/setup.sh with a Python that only notes what it is asked to do."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Knows what the installer asks: versions, pip's settings, imports, and whether checks pass.
FAKE = r"""#!/usr/bin/env bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
words="$*"
case "${words}" in
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "${BASH_SOURCE[0]}" "$3/bin/python"
        exit
        ;;
    "-m pip config"*) exit 1 ;;
    *importlib.metadata*) echo 2.13.0+cpu ;;
    *"uv pip install"*)
        echo "${words}" >>"${here}/installed"
        if [[ "${words}" == *requirements-dev.txt* ]]; then touch "${here}/dev"; fi
        ;;
    *check_install.py*)
        echo "${words}" >>"${here}/checked"
        if [[ "${words}" == *--dev* ]] && ! [ -f "${here}/dev" ]; then exit 1; fi
        ;;
esac
"""


@pytest.fixture
def tools(tmp_path):
    (tmp_path / "tools").mkdir()
    for path in (ROOT / "tools").iterdir():
        if path.is_file():
            shutil.copy2(path, tmp_path / "tools")
    for name in ("Makefile", "setup.py"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path / "tools"


def environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(FAKE)
    (folder / "bin" / "python").chmod(0o755)
    return folder


def setup(tools: Path, *words: str | Path) -> str:
    command = [tools / "setup.sh", "--device", "cpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def made(tools: Path) -> bool:
    """Whether make takes the environment for complete."""
    done = subprocess.run(["make", "-q", "tools/.setup/done"], cwd=tools.parent, check=False)
    return done.returncode == 0


def test_a_given_environment_is_used_again_and_completed(tools, tmp_path):
    own = environment(tmp_path / "own")
    setup(tools, "--python", own)
    assert (tools / ".setup" / "python").read_text() == f"{own}/bin/python\n"
    assert not any("requirements-dev" in line for line in lines(own / "bin" / "installed"))
    assert not made(tools)  # so make runs this:
    assert f"ready: {own}/bin/python" in setup(tools, "--dev")
    assert any("requirements-dev" in line for line in lines(own / "bin" / "installed"))
    compared = [line for line in lines(own / "bin" / "installed") if "-reference" in line]
    assert len(compared) == 1
    assert "--no-deps" in compared[0]
    assert all("--any-version" in line for line in lines(own / "bin" / "checked"))
    assert made(tools)
    before = lines(own / "bin" / "installed")
    setup(tools)
    assert lines(own / "bin" / "installed") == before
    assert made(tools)
    assert not (tools / "venv").exists()
    assert (tools / ".setup" / "python").read_text() == f"{own}/bin/python\n"


def test_a_given_environment_that_has_everything_satisfies_make(tools, tmp_path):
    own = environment(tmp_path / "own")
    (own / "bin" / "dev").touch()
    setup(tools, "--python", own / "bin" / "python")
    assert made(tools)


def test_venv_overrides_what_was_given(tools, tmp_path):
    own = environment(tmp_path / "own")
    setup(tools, "--python", own, "--dev")
    options = ("--venv", tools / "venv", "--base_python", own / "bin" / "python")
    assert f"ready: {tools}/venv/bin/python" in setup(tools, *options)
    assert not (tools / ".setup" / "python").exists()
    assert not made(tools)  # the new one lacks what the tests need
    assert f"ready: {tools}/venv/bin/python" in setup(tools)


def test_another_place_is_remembered_with_pinned_versions(tools, tmp_path):
    python = environment(tmp_path / "own") / "bin" / "python"
    setup(tools, "--venv", tmp_path / "disk", "--base_python", python)
    assert f"ready: {tmp_path}/disk/bin/python" in setup(tools, "--dev")
    checked = lines(tmp_path / "disk" / "bin" / "checked")
    assert checked
    assert not any("--any-version" in line for line in checked)


def test_an_interrupted_run_forgets_nothing(tools, tmp_path):
    own = environment(tmp_path / "own")
    setup(tools, "--venv", tmp_path / "disk", "--base_python", own / "bin" / "python", "--dev")
    python = tmp_path / "disk" / "bin" / "python"
    python.write_text(FAKE.replace('installed"\n', 'installed"; exit 1\n'))
    command = [tools / "setup.sh", "--device", "cpu", "--force"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert not made(tools)
    python.write_text(FAKE)
    assert f"ready: {python}" in setup(tools, "--dev")
    assert not any("--any-version" in line for line in lines(python.parent / "checked"))


def test_a_given_environment_that_is_gone_is_told(tools, tmp_path):
    own = environment(tmp_path / "own")
    setup(tools, "--python", own)
    shutil.rmtree(own)
    done = subprocess.run([tools / "setup.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is gone: name another one with --python" in done.stderr
    assert not (tools / "venv").exists()
