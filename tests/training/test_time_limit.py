"""Trainings that are asked to stop save within the epoch, and go on to the same bits."""

import argparse
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from test_mtlser_task import argv_of as mtlser_options
from test_mtlser_task import run as train_mtlser
from test_resume import assert_same
from torch.multiprocessing.spawn import ProcessContext
from training_common import TASKS, merge_options, options, start, stats, train, yaml

from espnet_adaltm import stopping
from espnet_adaltm.errors import UserError
from espnet_adaltm.training.checkpoint import CURRENT, PREVIOUS

pytestmark = pytest.mark.integration
NOISY = {
    "batch_bins": 50_000,
    "mask_time_prob": 0.05,
    "noise_prob": 0.5,
    "scheduler": "warmuplr",
    "scheduler_conf": "warmup_steps=10",
    "keep_nbest_models": 2,
}
BATCHES = 7  # of an epoch, in the corpus of these tests under NOISY
VALID = 3


@pytest.fixture(autouse=True)
def nothing_heard():
    yield
    stopping.forget()


def signal_in_forward(monkeypatch, count, number=stopping.WARNING):
    """Signal this process while the ``count``-th batch, of training or validation, is computed."""
    from espnet_adaltm.training.espnet_models import AdaltmModel

    original, calls = AdaltmModel.result, []

    def result(self, *args):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(AdaltmModel, "result", result)


def stopped(monkeypatch, run, argv, count, number=stopping.WARNING):
    """Train until it is stopped; the exit status."""
    with monkeypatch.context() as patched:
        signal_in_forward(patched, count, number)
        with pytest.raises(stopping.Suspended) as end:
            run(argv)
    return end.value.code


def position(folder, name=CURRENT):
    """Epoch and batches of a checkpoint; no batches at the end of an epoch."""
    states = torch.load(folder / name, weights_only=True)
    return states["reporter"]["epoch"], states.get("position", {}).get("batches")


def assert_same_training(one, other):
    """Results, histories, and everything that the last checkpoint holds but for clock times."""
    assert_same(one, other)
    for name in ("history.json", "coefficient_history.json", "gradient_conflict.json"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    left, right = (torch.load(folder / CURRENT, weights_only=True) for folder in (one, other))
    assert_equal(left, right)


def assert_equal(one, other, where="checkpoint"):
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if not str(key).endswith("time"):
                assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other or (one != one and other != other), where


def runner(task):
    return lambda argv: train(task, argv)


@pytest.mark.parametrize(
    ("task", "changes", "stops"),
    [
        # After the first step; in the middle; in validation; in the epoch after it; and in its
        # validation.
        ("ser", {}, [1, 4, 3, VALID + 2, BATCHES + 1]),
        # 7 batches in steps of 3 leave 1 for the next epoch's first step.
        ("ser", {"accum_grad": 3}, [1, 4, BATCHES + VALID]),
        ("merge", {"coef_lr": 0.02}, [2, BATCHES + 2]),
        ("asr", {"noise_prob": 0}, [5]),
        ("base", {"noise_prob": 0}, [5]),
        ("ser", {"num_workers": 1, "max_epoch": 2}, [3]),
    ],
)
def test_stops_anywhere_do_not_change_a_bit(corpus, tmp_path, monkeypatch, task, changes, stops):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    changes = {"max_epoch": 3, **NOISY, **changes}
    train(task, options(corpus, whole, task, **changes))
    argv = options(corpus, pieces, task, **changes)
    seen = []
    for count in stops:
        assert stopped(monkeypatch, runner(task), argv, count) == stopping.CONTINUE
        seen.append(position(pieces))
        assert not (pieces / "finished.json").exists()
    assert len(set(seen)) == len(seen) > 0
    train(task, argv)
    assert_same_training(whole, pieces)


def test_where_a_stop_leaves_a_training(corpus, tmp_path, monkeypatch):
    argv = options(corpus, tmp_path, "ser", max_epoch=2, **NOISY)
    run = runner("ser")
    stopped(monkeypatch, run, argv, 3)
    assert position(tmp_path) == (0, 3)
    # The step under way is done before the stop, those before the stop are not done again.
    stopped(monkeypatch, run, argv, 2)
    assert position(tmp_path) == (0, 5)
    assert position(tmp_path, PREVIOUS) == (0, 3)
    # 2 batches, then the first of the validation, which is done again.
    stopped(monkeypatch, run, argv, 3)
    assert position(tmp_path) == (0, BATCHES)
    stopped(monkeypatch, run, argv, VALID + 1)
    assert position(tmp_path) == (1, 1)
    assert sorted(json.loads((tmp_path / "history.json").read_text())) == ["1"]
    train("ser", argv)
    assert sorted(stats(tmp_path)) == [1, 2]
    assert stats(tmp_path)[2]["train"]["total_count"] == 2 * BATCHES


def test_conflict_of_gradients_is_measured_over_the_whole_epoch(corpus, tmp_path, monkeypatch):
    changes = {"max_epoch": 2, "conflict_interval": 3, "batch_bins": 50_000}
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train_mtlser(mtlser_options(corpus, whole, **changes))
    argv = mtlser_options(corpus, pieces, **changes)
    for count in (2, 3):
        stopped(monkeypatch, train_mtlser, argv, count)
    train_mtlser(argv)
    assert (whole / "gradient_conflict.json").exists()
    assert_same_training(whole, pieces)


def test_a_grid_stops_and_goes_on_with_the_value_under_way(corpus, experts, tmp_path, monkeypatch):
    grid = "granularity: global\ntrainable: false\ngrid: {asr: [0.0], ser: [0.0, 1.0]}"
    changes = {"max_epoch": 2, "head_lr": 0.01}
    folders = [tmp_path / name for name in ("whole", "pieces")]
    argv = [merge_options(corpus, experts, f, yaml(tmp_path, grid), **changes) for f in folders]
    train("merge", argv[0])
    # 2 epochs of 4 and 2 batches for the first value.
    assert stopped(monkeypatch, runner("merge"), argv[1], 14) == stopping.CONTINUE
    assert position(folders[1] / "grid/1") == (0, 2)
    train("merge", argv[1])
    assert (folders[0] / "grid.json").read_bytes() == (folders[1] / "grid.json").read_bytes()
    for number in "01":
        assert_same_training(folders[0] / "grid" / number, folders[1] / "grid" / number)


def test_damaged_checkpoint_of_a_stop_falls_back_to_the_one_before(corpus, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train("ser", options(corpus, whole, "ser", max_epoch=2, **NOISY))
    argv = options(corpus, broken, "ser", max_epoch=2, **NOISY)
    for count in (2, 3):
        stopped(monkeypatch, runner("ser"), argv, count)
    content = (broken / CURRENT).read_bytes()
    (broken / CURRENT).write_bytes(content[: len(content) // 2])
    train("ser", argv)
    assert_same_training(whole, broken)


def test_sigterm_saves_too_and_says_that_nobody_should_go_on(corpus, tmp_path, monkeypatch):
    argv = options(corpus, tmp_path, "ser", max_epoch=1, **NOISY)
    assert stopped(monkeypatch, runner("ser"), argv, 2, signal.SIGTERM) == 128 + signal.SIGTERM
    assert position(tmp_path) == (0, 2)


def test_warning_before_the_first_step_is_an_error_that_saves_nothing(
    corpus, tmp_path, monkeypatch, capsys
):
    from espnet_adaltm.training import launch

    argv = options(corpus, tmp_path, "ser", max_epoch=1, **NOISY)
    stopped(monkeypatch, runner("ser"), argv, 2)
    before = (tmp_path / CURRENT).read_bytes()
    load = launch.load_task

    def warned(name):
        os.kill(os.getpid(), stopping.WARNING)
        return load(name)

    with monkeypatch.context() as patched:
        patched.setattr(launch, "load_task", warned)
        with pytest.raises(SystemExit) as end:
            launch.main(TASKS["ser"], argv)
    assert end.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}: asked to stop in epoch 1 before")
    assert error.endswith("give the job more time")
    assert (tmp_path / CURRENT).read_bytes() == before


def test_validation_longer_than_the_limit_is_an_error_too(corpus, tmp_path, monkeypatch):
    argv = options(corpus, tmp_path, "ser", max_epoch=1, **NOISY)
    stopped(monkeypatch, runner("ser"), argv, BATCHES + 1)
    signal_in_forward(monkeypatch, 1)
    with pytest.raises(UserError, match="or had ended a validation"):
        train("ser", argv)


# ------------------------------------------------------------------------------ processes
def signalled(task, argv, number, count):
    """In a process of its own: signal it in the ``count``-th batch, and end as a program does."""
    from espnet_adaltm.training import launch

    torch.set_num_threads(1)
    if number:
        signal_in_forward(pytest.MonkeyPatch(), count, number)
    launch.main(TASKS[task], argv)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_exit_status_of_the_program(corpus, tmp_path, number, code):
    argv = options(corpus, tmp_path, "ser", max_epoch=1, **NOISY)
    process = start(signalled, "ser", argv, number, 3)
    process.join(timeout=120)
    assert process.exitcode == code
    assert position(tmp_path) == (0, 3)


def ranks(argv, folder, deaf=(), size=2):
    """Exit statuses of a training by several processes; all but the ``deaf`` get a signal."""
    folder.mkdir(exist_ok=True)
    place = folder / "rendezvous"
    place.unlink(missing_ok=True)
    shared = ["--dist_backend", "gloo", "--dist_world_size", str(size)]
    shared += ["--dist_init_method", f"file://{place}"]
    processes = [
        start(
            signalled,
            "merge",
            [*argv, *shared, "--dist_rank", str(rank)],
            0 if rank in deaf else stopping.WARNING,
            3,
        )
        for rank in range(size)
    ]
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def test_all_ranks_stop_at_the_step_at_which_one_was_asked(corpus, tmp_path):
    changes = {"max_epoch": 2, "coef_lr": 0.02, "mask_time_prob": 0.05, "batch_bins": 50_000}
    argv = {n: options(corpus, tmp_path / n, "merge", **changes) for n in ("whole", "pieces")}
    assert ranks(argv["whole"], tmp_path / "w", deaf=(0, 1)) == [0, 0]
    assert ranks(argv["pieces"], tmp_path / "p", deaf=(0,)) == [75, 75]
    assert position(tmp_path / "pieces") == (0, 3)
    with pytest.raises(UserError, match="within an epoch by 2 processes, now there are 1"):
        train("merge", argv["pieces"])
    assert ranks(argv["pieces"], tmp_path / "p", deaf=(0, 1)) == [0, 0]
    assert_same_training(tmp_path / "whole", tmp_path / "pieces")


def hear_and_end(ready):
    """What a process of one GPU does, but for the training."""
    with stopping.hearing(stopping.WARNING, signal.SIGTERM):
        ready.release()
        while not stopping.asked():
            time.sleep(0.01)
    raise stopping.Suspended(stopping.asked())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_processes_of_several_gpus_are_told_and_heard(number, code):
    from espnet_adaltm.training.launch import _train

    class Task:
        @staticmethod
        def main(args):
            """As ESPnet's: start the processes, then join them until one has ended."""
            ready = multiprocessing.get_context("forkserver").Semaphore(0)
            processes = [start(hear_and_end, ready) for _ in range(args.ngpu)]
            for _ in processes:
                assert ready.acquire(timeout=60)
            os.kill(os.getpid(), number)
            while not ProcessContext(processes, ["no error"] * args.ngpu).join():
                pass

    args = argparse.Namespace(multiprocessing_distributed=True, ngpu=2)
    with pytest.raises(stopping.Suspended) as end:
        _train(Task, args)
    assert end.value.code == code


# ------------------------------------------------------------------------------ parts
def test_random_states_go_on():
    from espnet_adaltm.training import suspend

    def draw():
        return random.random(), float(np.random.normal()), float(torch.randn(()))

    draw()
    states = suspend.random_states("cpu")
    first = draw()
    assert draw() != first
    suspend.set_random_states(states)
    assert draw() == first


def test_statistics_go_on():
    from espnet2.train.reporter import Reporter

    from espnet_adaltm.training import suspend

    def step(reporter, index):
        reporter.register({"loss": torch.tensor(1 / (index + 3))}, weight=torch.tensor(2.0 + index))
        if index % 2:
            reporter.register({"grad_norm": torch.tensor(index / 7)})
        reporter.next()

    whole, pieces = Reporter(), Reporter()
    for reporter in (whole, pieces):
        reporter.set_epoch(1)
    with whole.observe("train") as stats_of:
        for index in range(7):
            step(stats_of, index)
    begun = pieces.start_epoch("train")
    for index in range(3):
        step(begun, index)
    saved = suspend.read_statistics(begun)
    with pieces.observe("train") as stats_of:
        suspend.write_statistics(stats_of, saved)
        for index in range(3, 7):
            step(stats_of, index)
    one, other = (reporter.stats[1]["train"] for reporter in (whole, pieces))
    assert {**one, "time": 0} == {**other, "time": 0}
    weights = [2.0 + index for index in range(7)]
    mean = sum(w / (i + 3) for i, w in enumerate(weights)) / sum(weights)
    assert other["loss"] == pytest.approx(mean, rel=1e-6)
    assert other["total_count"] == 7


def test_batches_that_are_done_are_not_read():
    from torch.utils.data import DataLoader, Dataset

    from espnet_adaltm.training.suspend import Asked, Feed

    class Numbers(Dataset):
        read: list[int] = []

        def __getitem__(self, index):
            self.read.append(index)
            return index

    batches = [[0, 1], [2, 3], [4, 5], [6, 7]]
    loader = DataLoader(Numbers(), batch_sampler=batches, collate_fn=list)
    asked = [0, 0, stopping.WARNING]
    feed = Feed(loader, lambda: asked.pop(0), done=1, every=1)
    assert len(feed) == 4
    assert [next(feed), next(feed)] == [[2, 3], [4, 5]]
    with pytest.raises(Asked):
        next(feed)
    assert feed.done == 3
    assert Numbers.read == [2, 3, 4, 5]
    # Anything else is read and left out; between the batches of a step nobody is asked.
    feed = Feed((n for n in range(7)), lambda: 0, done=2, every=2)
    assert list(feed) == [2, 3, 4, 5, 6]
    never = Feed([1, 2, 3], [0, stopping.WARNING].pop, every=2)
    with pytest.raises(Asked):
        next(never)
