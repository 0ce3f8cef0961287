"""What the report finds beside a system."""

import pytest

from espnet_adaltm.files import write_json
from espnet_adaltm.scoring.artefacts import coefficients_json
from espnet_adaltm.scoring.set_scores import System

ONE_EPOCH = {"tasks": ["asr", "ser"], "groups": ["all"], "final": [[0.42], [0.57]]}
BLOCKS = {"tasks": ["asr"], "groups": ["block0", "block1"], "final": [[0.4, 0.5]]}


@pytest.mark.parametrize(
    ("merge", "table", "learned"),
    [
        ({"options": {"trainable": True}}, ONE_EPOCH, True),
        ({"options": {"trainable": False}}, ONE_EPOCH, False),
        ({"options": {"trainable": True}}, {"tasks": [], "groups": ["all"], "final": []}, False),
        # Without the row, what can be told from the numbers.
        (None, ONE_EPOCH, False),
        ({"name": "global"}, ONE_EPOCH, False),
        (None, BLOCKS, True),
        (None, {**ONE_EPOCH, "epochs": [[[0.5], [0.5]], ONE_EPOCH["final"]]}, True),
    ],
)
def test_coefficients_are_shown_if_the_row_learns_them(tmp_path, merge, table, learned):
    write_json(tmp_path / "coefficients.json", {"epochs": [table["final"]], **table})
    if merge is not None:
        write_json(tmp_path / "merge.json", merge)
    found = coefficients_json([System("global", {1: tmp_path})])
    assert found == ({"global": {**{k: table[k] for k in ("tasks", "groups")},
                                 "final": [table["final"]]}} if learned else {})  # fmt: skip
