"""Rows of merging by their files; what is refused is in tests/bin/test_check_merges.py."""

from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.rows import read_row, row_hash


def test_a_row_is_known_by_what_it_says_beyond_the_defaults(tmp_path):
    def said(text):
        (tmp_path / "row.yaml").write_text(text)
        return row_hash(read_row(tmp_path / "row.yaml"))

    fast = said("coef_lr: 0.1\n")
    assert fast == row_hash(MergeConfig("other", coef_lr=0.1))
    assert fast == said("# Ours.\nname: row\ntasks: [asr, ser]\ninit: 0.5\ncoef_lr: 1e-1\n")
    others = [
        said(text) for text in ("coef_lr: 0.2\n", "init: 0.1\n", "tasks: [ser]\n", "init: 0.5")
    ]
    assert len({fast, *others}) == 5
