"""Mean and deviation over folds."""

import json

import numpy as np
import pytest

from espnet_adaltm.bin import report_folds
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.scoring.folds import difference_table, fold_table, mean_table, read_folds

WA = {"adaltm": (0.7, 0.6, 0.8), "ser_only": (0.6, 0.65, 0.7)}
LABELS = ["angry", "happy", "neutral", "sad"]


def system(value, **more):
    metrics = {"wa": {"mean": value}, "uar": {"mean": value - 0.1}, **more}
    return {"seeds": [1], "sets": {"test": {"all": metrics}}}


@pytest.fixture
def folders(tmp_path):
    paths = [tmp_path / f"fold{number}" for number in (1, 2, 3)]
    for place, path in enumerate(paths):
        systems = {name: system(values[place]) for name, values in WA.items()}
        # Words are recognised in two folds only: no mean over folds.
        if place < 2:
            systems["adaltm"] = system(WA["adaltm"][place], wer={"mean": 0.3})
        write_json(path / "results.json", {"labels": LABELS, "systems": systems})
    return paths


def test_mean_and_deviation_of_a_sample(folders):
    folds = read_folds(folders)
    values = folds.to_json()["systems"]["adaltm"]
    assert values["wa"]["folds"] == [0.7, 0.6, 0.8]
    assert values["wa"]["mean"] == pytest.approx(np.mean(WA["adaltm"]))
    assert values["wa"]["std"] == pytest.approx(0.1)  # the root of (0 + 0.01 + 0.01) / 2
    assert "wer" not in values
    assert values["uar"]["mean"] == pytest.approx(0.6)
    header, rows = mean_table(folds)
    assert header == ["system", "WA", "UAR", "macro-F1", "WER"]
    assert rows[0] == ["adaltm", "70.00 ± 10.00", "60.00 ± 10.00", "-", "-"]
    assert fold_table(folds, "wa")[1][1] == ["ser_only", "60.00", "65.00", "70.00"]
    assert fold_table(folds, "wer")[1] == []


def test_differences_are_within_folds(folders):
    _, rows = difference_table(read_folds(folders), [("adaltm", "ser_only")])
    # 10, -5 and 10 points
    deviation = np.std([10, -5, 10], ddof=1)
    assert rows[0] == ["adaltm - ser_only", "WA", f"+5.00 ± {deviation:.2f}", "2 of 3"]


def test_one_fold_has_no_deviation(folders):
    folds = read_folds(folders[:1])
    assert folds.to_json()["systems"]["adaltm"]["wa"]["std"] is None
    assert mean_table(folds)[1][0][1] == "70.00"


def test_folds_must_be_of_one_experiment(folders):
    path = folders[2] / "results.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "labels": LABELS[::-1]}))
    with pytest.raises(UserError, match=r"fold3 has the labels sad, neutral"):
        read_folds(folders)
    del result["systems"]["ser_only"]
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"fold3 has the systems adaltm, but .*fold1 has adaltm, s"):
        read_folds(folders)
    path.unlink()
    with pytest.raises(UserError, match=r"results.json is missing: run the fold's stage `score`"):
        read_folds(folders)


def test_the_program(folders, tmp_path, capsys):
    words = ["--folds", *folders, "--out_dir", tmp_path, "--recipe", "iemocap, 3 folds"]
    words += ["--compare", "adaltm:ser_only adaltm:static", "--command", "./run.sh --folds 5"]
    report_folds.main([str(word) for word in words])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "|adaltm|70.00 ± 10.00|60.00 ± 10.00|-|-|" in text
    assert "adaltm - ser_only" in text
    assert "static" not in text
    assert "./run.sh --folds 5" in text
    assert json.loads((tmp_path / "results.json").read_text())["folds"] == [
        "fold1", "fold2", "fold3",
    ]  # fmt: skip
    assert "mean over 3 folds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report_folds.main(["--folds", str(folders[0]), "--compare", "adaltm"])
    assert "'adaltm' is not first:second" in capsys.readouterr().err
