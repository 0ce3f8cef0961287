"""Merging options: every shipped file, every mistake."""

from pathlib import Path

import pytest
from merging_common import LAYERS, base_encoder

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.config import MergeConfig

FOLDER = Path(__file__).parents[2] / "conf" / "merge"
COUNTS = {  # learned coefficients on the test encoder: tasks x groups
    "base": 0,
    "asr_only": LAYERS + 1,
    "ser_only": LAYERS + 1,
    "static": 0,
    "global": 2,
    "adaltm": 2 * (LAYERS + 1),
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file(path):
    config = MergeConfig.from_yaml(path)
    assert config.name == path.stem
    assert MergeConfig.from_dict(config.to_dict()) == config
    raw = config.coefficients(base_encoder()).raw
    assert (raw.numel() if raw.requires_grad else 0) == COUNTS[path.stem]
    assert (raw == 0.5).all()


def test_the_papers_rows_are_shipped():
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= COUNTS.keys()


def test_name_and_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("init: {asr: 0.0, ser: 1.0}\n")
    config = MergeConfig.from_yaml(tmp_path / "mine.yaml")
    assert (config.name, config.tasks, config.granularity) == ("mine", ("asr", "ser"), "block")
    assert config.coefficients(base_encoder()).table() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("granularty: block", r"unknown key 'granularty' \(did you mean 'granularity'"),
        ("granularity: layer", "granularity 'layer' is unknown: use global, block"),
        ("tasks: [asr, emotion]", "tasks 'emotion' is unknown: use asr, ser"),
        ("tasks: asr", "tasks must be a list"),
        ("tasks: [asr, asr]", "named once"),
        ("init: high", "init 'high' is not a number"),
        ("init: {asr: 1}", "init names the tasks"),
        ("trainable: maybe", "trainable must be true or false, found 'maybe'"),
        ("constraint: relu", "constraint 'relu' is unknown"),
        ("constraint: [clamp]", "constraint"),
        ("head_init: expert", "head_init 'expert' is unknown: use scratch, ser_expert"),
        ("name: ''", "name must be a word"),
    ],
)
def test_mistakes_name_the_file(tmp_path, line, message):
    path = tmp_path / "bad.yaml"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=message) as error:
        MergeConfig.from_yaml(path)
    assert str(path) in str(error.value)
