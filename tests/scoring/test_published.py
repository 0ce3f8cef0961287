"""Ours beside published numbers, and predictions to submit."""

import csv

import pytest

from espnet_adaltm.bin import compare_published, msp_submission
from espnet_adaltm.data.corpora.msp_podcast_options import Options
from espnet_adaltm.data.labels import Labels, save_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.scoring.published import OTHERS, PAPER_ROWS, PAPER_SET, compare, paper_table
from espnet_adaltm.scoring.submission import predictions

OPTIONS = Options(version="1.12")
LABELS = OPTIONS.labels
CODES = dict(zip(OPTIONS.codes, LABELS, strict=True))


def metric(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half, "std": None, "seeds": [mean]}


def system(uar, seeds=(1, 2), **sets):
    found = {PAPER_SET: {"all": {"uar": metric(uar), "macro_f1": metric(0.35)}}}
    found |= {name: {"all": {"macro_f1": metric(value)}} for name, value in sets.items()}
    return {"seeds": list(seeds), "sets": found}


RESULT = {
    "labels": list(LABELS),
    "systems": {
        "adaltm": system(0.39, test1=0.36, test2=0.28),
        "static": system(0.375),
        "ser_expert": system(0.38),
        "asr_expert": {"seeds": [None], "sets": {PAPER_SET: {"all": {"wer": metric(0.231)}}}},
    },
}


def test_the_papers_table():
    """Values of the table, and the difference of ours."""
    header, rows = paper_table(RESULT)
    assert len(rows) == len(PAPER_ROWS) == 8
    by_row = {row[1]: dict(zip(header[3:], row[3:])) for row in rows}
    assert list(by_row) == [
        "mtlser", "base", "asr_only", "ser_only", "adaltm", "adaltm_ood", "static", "global",
    ]  # fmt: skip
    adaltm = next(row for row in rows if row[1] == "adaltm")
    assert adaltm[2:6] == ["2", "38.94 ±0.61", "39.00 ±1.00", "+0.06"]
    assert adaltm[9:12] == ["35.20 ±0.48", "35.00 ±1.00", "-0.20"]
    missing = next(row for row in rows if row[1] == "base")
    assert missing[2:6] == ["-", "37.05 ±0.67", "-", "-"]
    joint = next(row for row in rows if row[1] == "mtlser")
    assert joint[-3:] == ["99.12", "-", "-"]


def test_every_row_of_the_paper_has_its_configuration():
    from pathlib import Path

    from espnet_adaltm.merging.config import MergeConfig

    conf = Path(__file__).parents[2] / "conf"
    assert (conf / "wavlm_large" / "baselines" / "mtlser.yaml").is_file()
    rows = {r.ours: conf / "merge" / f"{r.ours}.yaml" for r in PAPER_ROWS if r.ours != "mtlser"}
    found = {name: MergeConfig.from_yaml(path) for name, path in rows.items()}
    assert all(config.name == name for name, config in found.items())
    assert found["adaltm_ood"].to_dict() == {**found["adaltm"].to_dict(), "name": "adaltm_ood"}
    assert {config.init for config in found.values()} == {0.5}


def test_the_whole_document():
    text = compare(RESULT, OPTIONS.policy())
    assert "MSP-Podcast 1.12; 8 classes; OX left out" in text
    assert "|SER expert|ser_expert|2|" in text
    assert "|ASR expert, in-domain|asr_expert|1|" in text
    assert "23.09|23.10 ±1.00|+0.01|" in text
    assert "|`adaltm`|ours|test1|36.00 ±1.00|" in text
    assert "|`adaltm`|ours|test2|28.00 ±1.00|" in text
    assert all(f"|{row.title}|{row.source}|{row.set}|" in text for row in OTHERS)
    assert {row.set for row in OTHERS} == {"test1", "test2", "test3"}


def test_the_row_of_another_asr_expert():
    other = {
        "labels": list(LABELS),
        "systems": {
            "asr_expert": {"seeds": [None], "sets": {PAPER_SET: {"all": {"wer": metric(0.38)}}}},
            "adaltm_ood": system(0.385),
        },
    }
    text = compare(RESULT, ood=other)
    assert "|dual, out-of-domain ASR vector|adaltm_ood|2|38.68 ±0.63|38.50 ±1.00|-0.18|" in text
    assert "|37.86|38.00 ±1.00|+0.14|" in text
    assert "23.09|23.10 ±1.00|+0.01|" in text


def test_other_classes_are_not_comparable(tmp_path):
    with pytest.raises(UserError, match=r"results of 4 classes .* run with --classes 8"):
        compare({"labels": ["a", "b", "c", "d"], "systems": {}})


def test_the_program(tmp_path, capsys):
    write_json(tmp_path / "results.json", RESULT)
    labels = Labels(LABELS, CODES, {}, "a policy")
    save_labels(tmp_path / "labels.json", labels)
    words = ["--results", tmp_path / "results.json", "--labels", tmp_path / "labels.json"]
    compare_published.main([*map(str, words), "--out", str(tmp_path / "COMPARISON.md")])
    assert "Ours: a policy." in (tmp_path / "COMPARISON.md").read_text()


@pytest.fixture
def decoded(tmp_path):
    """Nine classes, with `other`, decoded on three recordings of Test3."""
    labels = Labels((*LABELS, "other"), {**CODES, "O": "other"})
    save_labels(tmp_path / "labels.json", labels)
    utts = [f"MSP-PODCAST_test3_{number:04d}" for number in (1, 2, 10)]
    write_scp(tmp_path / "dump" / "test3" / "wav.scp", dict.fromkeys(utts, "x.ark:1"))
    rows = [[0.02] * 9 for _ in utts]
    rows[0][5], rows[1][8], rows[1][3], rows[2][7] = 0.84, 0.7, 0.16, 0.84
    for name in ("merge_adaltm_seed1", "ser_expert"):
        folder = tmp_path / "exp" / name / "decode" / "test3"
        table = {u: " ".join(f"{p:.6f}" for p in row) for u, row in zip(utts, rows)}
        write_scp(folder / "utt2prob", table)
    write_scp(tmp_path / "exp" / "asr" / "decode" / "test3" / "text", dict.fromkeys(utts, "yes"))
    return tmp_path, labels, utts


def test_a_file_to_submit(decoded, capsys):
    folder, _, utts = decoded
    systems = f"adaltm:1={folder}/exp/merge_adaltm_seed1 asr_expert={folder}/exp/asr"
    words = ["--systems", systems, "--dump", folder / "dump" / "test3"]
    words += ["--labels", folder / "labels.json", "--out", folder / "submissions"]
    msp_submission.main([str(word) for word in words])
    assert [path.name for path in (folder / "submissions").iterdir()] == ["adaltm_seed1.csv"]
    with open(folder / "submissions" / "adaltm_seed1.csv", newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == ["FileName", "EmoClass"]
    # The second is `other` to the model, which the challenge does not know: fear is next.
    assert rows[1:] == [[f"{u}.wav", code] for u, code in zip(utts, "NFU")]


def test_incomplete_predictions_are_refused(decoded):
    folder, labels, utts = decoded
    where = folder / "exp" / "ser_expert" / "decode" / "test3"
    with pytest.raises(UserError, match=r"differ in utterance 'MSP-PODCAST_test3_0011'"):
        predictions(where, dict.fromkeys([*utts, "MSP-PODCAST_test3_0011"]), labels)
    with pytest.raises(UserError, match="no emotion for C, D, F, U"):
        predictions(where, dict.fromkeys(utts), Labels(("anger", "sadness", "happiness", "neutral"),
                    {"A": "anger", "S": "sadness", "H": "happiness", "N": "neutral"}))  # fmt: skip
