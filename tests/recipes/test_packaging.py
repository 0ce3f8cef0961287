"""Requirement files, setup.py and the installer agree with each other."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"


def names(*files: str) -> set[str]:
    text = "\n".join((TOOLS / name).read_text() for name in files)
    return set(re.findall(r"^([\w-]+)==", text, re.MULTILINE))


def test_setup_and_requirements_name_the_same_packages(monkeypatch):
    called = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: called.update(options))
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("project_setup", ROOT / "setup.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

    def bare(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=]", requirement)[0] for requirement in requirements}

    assert bare(called["install_requires"]) == names("requirements.txt", "requirements-torch.txt")
    assert bare(called["extras_require"]["train"]) == names(
        "requirements-train.txt", "requirements-torchaudio.txt"
    )
    assert bare(called["extras_require"]["dev"]) == names("requirements-dev.txt")
    assert "espnet_adaltm.training" in called["packages"]


def test_what_is_installed_without_dependencies_replaces_nothing():
    reference = names("requirements-reference.txt")
    assert {"fusion-bench", "mergekit", "peft"} <= reference
    others = [path.name for path in TOOLS.glob("requirements*.txt") if "reference" not in path.name]
    assert len(others) == 5
    assert not reference & names(*others)


def test_installer_refuses_what_it_does_not_know(tmp_path):
    for words, message in (
        (["--foo"], "unknown option --foo"),
        (["--device", "tpu"], "--device is auto, cpu or cuda"),
        (["--venv"], "--venv needs a value"),
        (["--python", str(tmp_path)], "is not a Python"),
    ):
        result = subprocess.run([TOOLS / "setup.sh", *words], capture_output=True, text=True)
        assert result.returncode == 1
        assert message in result.stderr


def test_makefile_help_lists_its_targets():
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("env", "demo", "test", "lint", "clean"):
        assert re.search(rf"^{target} ", result.stdout, re.MULTILINE)


def test_the_tables_of_the_readme_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "readme_table.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("corpus", ["nemo", "ravdess"])
def test_recipes_name_source_and_licence_of_their_corpus(corpus):
    module = importlib.import_module(f"espnet_adaltm.bin.prepare_{corpus}")
    script = (ROOT / "egs" / corpus / "adaltm1" / "run.sh").read_text()
    facts = re.findall(r"https://(\S+)", module.__doc__) + re.findall(r"CC [\w-]+ \d\.\d", script)
    assert len(facts) >= 2
    for fact in facts:
        assert fact in script
        assert fact in module.__doc__
