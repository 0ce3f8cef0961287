"""Model cards: everything that is known is told, nothing else is claimed."""

import pytest
import yaml

from espnet_adaltm.export.card import write_card
from espnet_adaltm.export.facts import coefficient_rows, collect
from espnet_adaltm.files import read_json, write_json

MERGE = {
    "name": "adaltm",
    "options": {"name": "adaltm", "tasks": ["asr", "ser"], "granularity": "block"},
    "labels": ["angry", "happy"],
    "head": {"hidden": 8},
    "base": "../base",
    "seed": 1000,
    "selected": {"best_epoch": 2, "last_epoch": 5, "criterion": ["valid", "loss", "min"]},
}
PARTS = {
    "family": "WavLM",
    "parameters": 94_400_000,
    "projector": False,
    "words": True,
    "speakers": False,
    "onnx": False,
    "picture": True,
}


def metric(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


@pytest.fixture
def system(tmp_path):
    write_json(tmp_path / "merge_x" / "merge.json", MERGE)
    write_json(
        tmp_path / "base" / "base.json",
        {"kind": "hub", "source": "microsoft/wavlm-base", "sha256": "ab" * 32},
    )
    write_json(
        tmp_path / "merge_x" / "coefficients.json",
        {
            "tasks": ["asr", "ser"],
            "groups": ["block0", "block1"],
            "epochs": [],
            "final": [[0.1, 0.25], [1.0, -0.5]],
        },
    )
    emotion = {
        "metrics": {"macro_f1": metric(0.5), "uar": metric(0.6), "other": metric(0.1)},
        "calibration_error": 0.123,
        "per_class": {"angry": {"recall": 0.7}, "happy": {"recall": 0.345}},
    }
    asr = {"metrics": {"wer": metric(1.5)}}
    write_json(
        tmp_path / "merge_x" / "results.json",
        {
            "sets": {"test": {"utterances": 40, "emotion": emotion, "asr": asr}},
            "bootstrap": {"unit": "speaker", "resamples": 500},
        },
    )
    write_json(
        tmp_path / "labels.json",
        {
            "labels": ["angry", "happy"],
            "codes": {},
            "counts": {"train": {"angry": 5, "happy": 6}, "test": {"angry": 1, "happy": 2}},
            "policy": "surprise is left out",
        },
    )
    (tmp_path / "merge_x" / "resume.txt").write_text("./run.sh --stage 8\n")
    return tmp_path / "merge_x"


def test_a_card_tells_what_is_known(system, tmp_path):
    facts = collect(
        system,
        labels=tmp_path / "labels.json",
        recipe="mini",
        note="Synthetic.",
        licence="cc-by-4.0",
        language=["en"],
        command="",
    )
    card = write_card(facts, PARTS)
    for line in (
        "# merge_x",
        "Hears the emotion of speech: angry, happy. It also writes down what is said (not "
        "usable: see Limits). "
        "WavLM encoder, 94.4 M parameters.",
        "Merge `adaltm`: to a base encoder, shares of task vectors are added "
        "(speech recognition (asr) and emotion recognition (ser)).",
        "Base encoder: hub from microsoft/wavlm-base (SHA-256 abababababab).",
        "![coefficients by depth](coefficients.png)",
        "| group | asr | ser |",
        "| block1 | 0.250 | -0.500 |",
        "Options: granularity block.",
        "Recipe `egs/mini`. Synthetic.",
        "| emotion | train | test |",
        "| happy | 6 | 2 |",
        "Labels: surprise is left out",
        "| set | utterances | macro F1 | UAR | WER |",
        "| test | 40 | 50.0 [49.0, 52.0] | 60.0 [59.0, 62.0] | 150.0 [149.0, 152.0] |",
        "| happy | 34.5 |",
        "Intervals: bootstrap over each speaker, 500 resamples. One training (seed 1000): other "
        "seeds differ by more than",
        "0. angry\n1. happy",
        "- Probabilities are not calibrated (expected calibration error 12 %).",
        "- Its transcripts are of no use: WER 150 %.",
        "cc-by-4.0. The base encoder and the corpus have licences of their own.",
        "cd egs/mini/adaltm1\n./run.sh --stage 8",
        "Epoch 2 of 5 was chosen by the loss on the valid set.",
    ):
        assert line in card, line
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["base_model"] == "microsoft/wavlm-base"
    assert head["library_name"] == "espnet_adaltm"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "f1", "name": "macro F1", "value": 0.5}
    for heading in ("How to use it", "Limits", "Licence", "How to reproduce it", "References"):
        assert card.count(f"## {heading}\n") == 1


def test_pipelines_are_only_named_where_they_work(system):
    facts = collect(system)
    classifier = 'pipeline("audio-classification", model='
    writer = 'pipeline("automatic-speech-recognition", model='
    card = write_card(facts, PARTS)
    assert classifier not in card
    assert writer in card
    assert "would put an\nuntrained one in its place" in card
    card = write_card(facts, {**PARTS, "projector": True, "words": False, "onnx": True})
    assert classifier in card
    assert writer not in card
    assert "untrained" not in card
    assert "`onnx/model.onnx` gives the same numbers" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"


def test_what_is_not_known_is_not_claimed(system):
    for name in ("results.json", "coefficients.json", "resume.txt"):
        (system / name).unlink()
    card = write_card(collect(system), {**PARTS, "picture": False})
    assert "It has not been scored." in card
    assert "Not stated." in card
    assert "coefficients.png" not in card
    assert "## Data" not in card
    assert "calibration" not in card
    assert "model-index" not in card


def test_a_baseline_has_its_notes_and_its_paper(tmp_path):
    write_json(
        tmp_path / "baseline.json",
        {
            "kind": "mtlser",
            "labels": ["a", "b"],
            "notes": {"ours": "masked pooling"},
            "options": {},
            "base_sha256": "0",
        },
    )
    card = write_card(collect(tmp_path), {**PARTS, "speakers": True, "picture": False})
    assert "Baseline `mtlser`." in card
    assert "- ours: masked pooling" in card
    assert "names the most similar speaker of its training" in card
    assert "Expert Systems with Applications 273" in card
    assert "AdaMerging" not in card


def test_many_coefficients_stay_in_their_file(system):
    table = read_json(system / "coefficients.json")
    many = {"tasks": ["asr"], "groups": [f"g{i}" for i in range(99)], "final": [[0.5] * 99]}
    assert coefficient_rows(table)[2] == ("block1", "0.250", "-0.500")
    card = write_card({**collect(system), "coefficients": many}, PARTS)
    assert "All 99 coefficients are in `about.json`." in card
    assert "g98" not in card
