"""Rows of merging are looked at before anything is trained."""

import subprocess
import sys
from pathlib import Path

import pytest

from espnet_adaltm.bin import check_merges

ROOT = Path(__file__).parents[2]
ROWS = [*ROOT.glob("conf/merge/*.yaml"), *ROOT.glob("egs/*/adaltm1/conf/ablations/*/*.yaml")]


def test_every_row_of_ours_is_fine():
    assert len(ROWS) > 40
    check_merges.main([str(path) for path in ROWS])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("static", "name: static\ngranularitty: block\n", "key 'granularitty' (did you mean 'gran"),
        ("static", "granularity: blok\n", "granularity 'blok' is unknown: use global, block"),
        ("static", "name: [\n", "static.yaml is not valid YAML"),
        (
            "my_row",
            "name: other\n",
            "name is 'other', but a row is called after its file",
        ),
        ("statik", None, "statik.yaml does not exist (did you mean 'static'?); "),
    ],
)
def test_what_is_wrong_is_told(tmp_path, capsys, name, text, message):
    (tmp_path / "static.yaml").write_text("init: 0.5\n")
    if text is not None:
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        check_merges.main([str(tmp_path / "static.yaml"), str(tmp_path / f"{name}.yaml")])
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    assert message in said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('objective: "supervised_ctc"', "objective: supervised_ctc"),
        ('"objective": supervised_ctc', "objective: supervised_ctc"),
        ("{objective: supervised_ctc}", "objective: supervised_ctc"),
        ("init: 0.5\robjective: supervised_distill\r", "objective: supervised_distill"),
        ("learn_on:  held_out", "learn_on: held_out"),
        ('learn_on: "held_out"', "learn_on: held_out"),
    ],
)
def test_what_the_pipeline_would_not_see_is_refused(tmp_path, capsys, text, line):
    path = tmp_path / "row.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        check_merges.main([str(path)])
    assert f"{path}: write '{line}' on a line of its own, without" in capsys.readouterr().err
    path.write_bytes(f"init: 0.5\r\n{line}  # ours\r\n".encode())
    check_merges.main([str(path)])


def test_names_need_no_torch(tmp_path):
    """It is what goes wrong most, and answered at once."""
    code = (
        "import sys; from espnet_adaltm.bin import check_merges as c\n"
        "try: c.main(sys.argv[1:])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(ROWS[0]), str(tmp_path / "gone.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
    assert "has no .yaml file" in done.stderr
