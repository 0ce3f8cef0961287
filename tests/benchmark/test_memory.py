"""The benchmark of memories: what is timed, and what is made of the times."""

import json
from pathlib import Path

import pytest
import yaml

from espnet_adaltm.benchmark import memory
from espnet_adaltm.bin import benchmark
from espnet_adaltm.decoding import dialog
from espnet_adaltm.errors import UserError


def arguments(*words):
    return benchmark.get_parser().parse_args(["memory", *words])


TINY = ("--size", "small", "--dialogs", "3", "--turns", "2", "--seconds", "0.3", "--threads", "1")


def test_shares_in_closed_form():
    clocks = {
        memory.HOST: memory.Clock([2.0, 4.0, 3.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]),
        memory.MEMORY: memory.Clock([3.0, 2.5, 6.0], [1.5, 1.25, 3.0], [0.2, 0.1, 0.3]),
    }
    found = memory.summary(clocks)
    assert found["share"] == pytest.approx(2.5 / 2 - 1)
    assert found["share_median"] == pytest.approx(0)
    assert found["cpu_share"] == pytest.approx(0.25)
    assert found["layer_share"] == pytest.approx(0.1)


def test_all_ways_of_decoding_are_timed(tmp_path, capsys):
    path = tmp_path / "memory.json"
    benchmark.main(["memory", *TINY, "--rounds", "2", "--json", str(path)])
    result = json.loads(path.read_text())
    ways = [f"{feats}/{mode}" for feats in ("raw", "extracted") for mode in ("batches", "single")]
    assert list(result["added"]) == ways
    for row in result["added"].values():
        assert all(len(times) == 2 for times in row["seconds"].values())
        assert (
            0
            < row["layer_share"]
            <= min(row["cpu_seconds"]["memory"]) / min(row["cpu_seconds"]["host"])
        )
    assert result["machine"]["processor"]
    shown = capsys.readouterr().out
    assert shown.count("| raw/") == shown.count("| extracted/") == 2


def test_the_memory_is_used_and_the_host_is_alone(tmp_path):
    """What is compared: the same decoding as of a trained memory, and with its memory paused."""
    args = arguments(*TINY)
    system = memory.build_system("small")
    inputs = memory.build_inputs(system, args, tmp_path)
    assert list(inputs) == ["raw", "extracted"]
    assert len(inputs["raw"].lengths) == 6
    layer = next(iter(system.memory))
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(len(layer._states)))
    clock = memory.Clock()
    for history in (dialog.NONE, dialog.DIALOG):
        system.history = history
        with memory._timed(clock, system.memory):
            memory.decode(system, inputs["extracted"], dump=tmp_path, batch_seconds=1, device="cpu")
    assert max(seen) == 3
    assert clock.layers[0] == 0
    assert 0 < clock.layers[1] <= clock.cpu[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rounds", "0"), "--rounds 0: give 1 or more"),
        (("--dialogs", "-1"), "--dialogs -1: give 1 or more"),
        (("--seconds", "0.1"), "--seconds 0.1: give 0.2 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        memory.measure(arguments(*words))


def test_sizes_have_the_memories_of_the_recipes():
    root = Path(__file__).parents[2]
    for size, place in (
        ("mini_espeak", "egs/mini_espeak/adaltm1/conf/full/baselines/memory.yaml"),
        ("base", "conf/wavlm_large/baselines/memory.yaml"),
    ):
        given = yaml.safe_load((root / place).read_text())["memory_conf"]
        for name, value in memory._MEMORIES[size].items():
            assert given[name] == value
    shape = root / "egs/mini_espeak/adaltm1/conf/full/train_base.yaml"
    config = memory._config("mini_espeak")
    conf = yaml.safe_load(shape.read_text())["encoder_conf"]
    for name in ("conv_dim", "conv_kernel", "conv_stride"):
        assert list(getattr(config, name)) == conf[name]
