import numpy as np
import pytest

from espnet_adaltm.scoring import adapter_plot, plots
from espnet_adaltm.scoring.adapter_plot import AdapterTraining, adapter_training


def history(*perplexities):
    return {
        str(epoch): {"train": {}, "valid": {"perplexity": value, "spread": 0.9}}
        for epoch, value in enumerate(perplexities, 1)
    }


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved."""
    figures = []

    def save(figure, path):
        figures.append(figure)
        return plots.save(figure, path)

    monkeypatch.setattr(adapter_plot, "save", save)
    return figures


def test_perplexity_is_the_mean_over_seeds_of_the_epochs_that_all_have(drawn, tmp_path):
    some = AdapterTraining([history(10, 20, 30), history(20, 40)], 64)
    none = AdapterTraining([history(1, 1)], 0)
    path = adapter_training(tmp_path / "a.png", "title", {"wap": some, "bare": none})
    assert path.read_bytes().startswith(b"\x89PNG")
    use, hits, spread = drawn[0].axes
    lines = {line.get_label(): line for line in use.lines}
    np.testing.assert_array_equal(lines["wap"].get_xydata(), [[1, 15], [2, 30]])
    assert {float(line.get_ydata()[0]) for line in use.lines} >= {64.0, 1.0}  # all, and collapse
    assert np.isnan(hits.lines[0].get_ydata()).all()  # a history need not have it
    np.testing.assert_allclose(spread.lines[1].get_ydata(), [0.9, 0.9])


def test_without_adapters_there_is_no_picture(tmp_path):
    assert adapter_training(tmp_path / "a.png", "title", {}) is None
    assert not list(tmp_path.iterdir())
