"""Items of the adapter baseline and its variants, without running them; its configurations."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "egs" / "mini_espeak" / "adaltm1"
SIZES = [ROOT / "conf/tiny", ROOT / "conf/wavlm_large", *(DEMO / "conf").glob("*/")]
FOLDERS = [size / "baselines" for size in SIZES if (size / "train_ser.yaml").exists()]


def declared(tmp_path, baselines, seeds="1", args=""):
    """What the stage would run, as lists of words."""
    script = r"""
set -euo pipefail
. <(sed '/^# In braces/,$d' adaltm.sh)
item() { printf '%s\037' "$@"; printf '\n'; }
stage_number=9
stage_baselines
"""
    words = ["--baselines", baselines, "--seeds", seeds, "--baseline_args", args]
    words += ["--baseline_conf", "conf/ci/baselines", "--expdir", str(tmp_path / "exp")]
    words += ["--merge_jobs", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "ADALTM_RESUME"}
    result = subprocess.run(
        ["bash", "-c", script, "adaltm.sh", *words],
        cwd=DEMO,
        env=environment,
        capture_output=True,
        text=True,
    )
    items = [line.split("\037")[:-1] for line in result.stdout.splitlines() if "\037" in line]
    return items, result


def option(item, name):
    """The last value of an option of an item's command."""
    command = item[item.index("--") :]
    at = [index for index, word in enumerate(command) if word == f"--{name}"]
    return command[at[-1] + 1] if at else None


def program(item):
    return item[item.index("-m") + 1].rpartition(".")[2]


def test_hidden_states_are_stored_once_and_adapters_trained_per_seed(tmp_path):
    items, result = declared(tmp_path, "wap_adapter wap_adapter_scratch", "1 2")
    assert result.returncode == 0, result.stderr
    assert [program(item) for item in items] == [
        *["extract_hidden"] * 2,
        *["train_wap_adapter", "train_wap_head"] * 2,
        *["train_wap_head"] * 2,
    ]
    first, second = items[2], items[4]
    assert (option(first, "seed"), option(second, "seed")) == ("1000", "2000")
    assert option(items[3], "wap_adapter") == option(first, "output_dir")
    assert option(items[3], "feats_dir") == option(first, "feats_dir")
    assert option(items[6], "wap_adapter") is None
    assert len({option(item, "output_dir") for item in items[2:]}) == 6


@pytest.mark.parametrize(
    ("variant", "name", "value"),
    [
        ("no_attributes", "attribute_weight", "0"),
        ("no_distill", "distill_weight", "0"),
        ("clusters32", "num_attributes", "32"),
    ],
)
def test_variants_change_one_option(tmp_path, variant, name, value):
    plain, _ = declared(tmp_path, "wap_adapter")
    items, result = declared(tmp_path, f"wap_adapter_{variant}")
    assert result.returncode == 0, result.stderr
    trained = items[2]
    assert option(trained, name) == value
    assert option(trained, "config") == "conf/ci/baselines/wap_adapter.yaml"
    assert len(trained) == len(plain[2]) + 2


def test_overrides_go_to_their_training_and_speech_comes_from_elsewhere(tmp_path):
    args = "wap_adapter_transfer: --layer mean --from ../x/dump --max_epoch 3 then --head_lr 0.1"
    items, result = declared(tmp_path, "wap_adapter_transfer", args=args)
    assert result.returncode == 0, result.stderr
    ours, theirs, adapter, head = items[:2], items[2:4], items[4], items[5]
    assert {option(item, "layer") for item in ours + theirs} == {"mean"}
    dumps = [option(item, "dump") for item in theirs]
    assert dumps == ["../x/dump/train", "../x/dump/dev"]
    assert option(adapter, "train_dump") == "../x/dump/train"
    assert option(adapter, "valid_dump") == "../x/dump/dev"
    assert option(adapter, "speech_name") == "dump"
    assert option(adapter, "max_epoch") == "3"
    assert option(adapter, "head_lr") is None
    assert option(head, "head_lr") == "0.1"
    assert option(head, "max_epoch") is None
    assert option(head, "train_dump") == "dump/train"
    folders = [option(item, "feats_dir") for item in (adapter, head)]
    assert [Path(option(item, "out")).parent for item in (theirs[0], ours[0])] == [
        Path(folder) for folder in folders
    ]


@pytest.mark.parametrize(
    ("place", "name"),
    [("../../ravdess/adaltm1/dump/full", "ravdess"), ("/x/crema/adaltm2/", "crema"), ("y/z/", "z")],
)
def test_speech_of_another_recipe_has_its_name(tmp_path, place, name):
    items, _ = declared(
        tmp_path, "wap_adapter_transfer", args=f"wap_adapter_transfer: --from {place}"
    )
    assert option(items[-2], "speech_name") == name
    plain, _ = declared(tmp_path, "wap_adapter")
    assert option(plain[-2], "speech_name") is None


@pytest.mark.parametrize(
    ("baseline", "args", "message"),
    [
        (
            "wap_adapter_transfer",
            "",
            "needs --baseline_args 'wap_adapter_transfer: --from DUMPDIR'",
        ),
        ("wap_adapter_big", "", "wap_adapter_big is no variant of wap_adapter"),
        ("wap_adapter", "wap_adapter: --layer", "--layer of wap_adapter needs a value"),
    ],
)
def test_mistakes_are_named(tmp_path, baseline, args, message):
    items, result = declared(tmp_path, baseline, args=args)
    assert result.returncode == 1
    assert message in result.stderr
    assert items == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_both_trainings_have_the_same_adapter(folder):
    assert len(FOLDERS) == 5
    first, second = (
        yaml.safe_load((folder / f"wap_{name}.yaml").read_text()) for name in ("adapter", "head")
    )
    assert first["wap_conf"] == second["wap_conf"]
    assert first["best_model_criterion"] == [["valid", "updates", "max"]]
    assert second["pooling"] == "attentive"


@pytest.mark.integration
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_configurations_are_accepted(folder):
    from espnet_adaltm.models.wap_adapter import AdapterConfig
    from espnet_adaltm.training import wap_adapter_task, wap_head_task

    for name, task in (
        ("adapter", wap_adapter_task.WapAdapterTask),
        ("head", wap_head_task.WapHeadTask),
    ):
        path = folder / f"wap_{name}.yaml"
        args = task.get_parser().parse_args(["--config", str(path)])
        AdapterConfig.from_dict(args.wap_conf, str(path))
        assert vars(args).keys() >= yaml.safe_load(path.read_text()).keys()
