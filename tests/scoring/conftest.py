import pytest
from ablation_common import CONFIG, FAKE


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A folder with `CONFIG` and `FAKE`, the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "fast.yaml").write_text("coef_lr: 0.1\n")
    (tmp_path / "ablations.yaml").write_text(CONFIG)
    (tmp_path / "run.py").write_text(FAKE)
    return tmp_path
