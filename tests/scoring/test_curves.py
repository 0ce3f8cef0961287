import numpy as np
import pytest

from espnet_adaltm.scoring import curves


def history(*losses, **metrics):
    return {
        str(epoch): {"train": {"loss": loss}, "valid": {"loss": 2 * loss, **metrics}}
        for epoch, loss in enumerate(losses, 1)
    }


def test_mean_goes_to_the_last_common_epoch():
    several = [history(3, 2, 1, macro_f1=0.5), history(5, 4, macro_f1=0.7)]
    np.testing.assert_allclose(curves.mean_curve(several, "train", "loss"), [4, 3])
    np.testing.assert_allclose(curves.mean_curve(several, "valid", "macro_f1"), [60, 60])
    assert curves.mean_curve([], "train", "loss").shape == (0,)


def test_mean_history_keeps_what_all_seeds_have():
    several = [history(3, 2, 1, wer=0.5), history(5, 4)]
    several[1]["1"]["train"]["clip"] = 1.0
    mean = curves.mean_history(several)
    assert list(mean) == ["1", "2"]
    assert mean["1"] == {"train": {"loss": 4.0}, "valid": {"loss": 8.0}}
    assert curves.mean_history(several[:1]) == several[0]


def test_epochs_are_in_numeric_order():
    losses = [float(value) for value in range(12, 0, -1)]
    shuffled = dict(sorted(history(*losses).items()))  # 1, 10, 11, 12, 2, ...
    np.testing.assert_allclose(curves.mean_curve([shuffled], "train", "loss"), losses)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    kept = []

    def keep(figure, path):
        kept.append(figure)
        return path

    monkeypatch.setattr(curves, "save", keep)
    yield kept
    from matplotlib import pyplot

    pyplot.close("all")


def labels(axis):
    return [line.get_label() for line in axis.get_lines()]


def test_a_row_per_training_with_its_own_metrics(figures, tmp_path):
    trainings = {
        "pre-training": history(2, 1, acc=0.5),
        "nothing": {"1": {"train": {}, "valid": {}}},
        "asr": history(3, 2, 1, wer=0.25, cer=0.125),
    }
    assert curves.training_curves(tmp_path / "t.png", "Training", trainings)
    first_loss, first_rates, loss, rates = figures[0].axes
    assert labels(first_loss) == ["train", "valid"]
    assert labels(first_rates) == ["accuracy, valid"]
    assert labels(rates) == ["WER, valid", "CER, valid"]
    assert rates.get_lines()[0].get_ydata().tolist() == [25, 25, 25]
    assert loss.get_lines()[1].get_ydata().tolist() == [6, 4, 2]
    assert loss.get_title() == "asr: loss"
    assert loss.get_yscale() == "linear"


def test_a_steep_loss_gets_a_logarithmic_axis(figures, tmp_path):
    curves.training_curves(tmp_path / "t.png", "Training", {"asr": history(90, 2, 1)})
    assert figures[0].axes[0].get_yscale() == "log"


def test_a_line_per_compared_system(figures, tmp_path):
    systems = {"adaltm": [history(2, 1, macro_f1=0.5)] * 2, "base": [history(3, macro_f1=0.3)]}
    assert curves.compared_curves(tmp_path / "c.png", "Training", systems)
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["train loss", "valid loss", "valid macro-F1 (%)"]
    assert all(labels(axis) == ["adaltm", "base"] for axis in axes)
    assert axes[2].get_lines()[1].get_ydata().tolist() == [30]


def test_nothing_to_draw(tmp_path):
    assert curves.training_curves(tmp_path / "t.png", "x", {}) is None
    assert curves.compared_curves(tmp_path / "c.png", "x", {"a": [history()]}) is None
    assert not list(tmp_path.iterdir())
