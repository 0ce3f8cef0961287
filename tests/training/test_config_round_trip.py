"""Every shipped training configuration is accepted, and survives being printed and read again."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

CONF = Path(__file__).parents[2] / "conf"
PROGRAMS = ("train_base", "train_asr", "train_ser", "train_merge")
FILES = sorted(path for name in PROGRAMS for path in CONF.glob(f"*/{name}.yaml"))

pytestmark = pytest.mark.integration


def test_every_program_has_a_tiny_configuration():
    assert {path.stem for path in FILES if path.parent.name == "tiny"} == set(PROGRAMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_print_config_parses_back(path, tmp_path, monkeypatch, capsys):
    import importlib

    from espnet_adaltm.training.optimizers import build_optimizer

    program = importlib.import_module(f"espnet_adaltm.bin.{path.stem}")
    argv = ["--config", str(path), "--print_config"]
    monkeypatch.setattr(sys, "argv", [path.stem, *argv])
    with pytest.raises(SystemExit) as stopped:
        program.main(argv)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    printed = tmp_path / "printed.yaml"
    printed.write_text(text[text.index("log_level:") :])
    first, second = (plain(program, file) for file in (path, printed))
    assert yaml.safe_load(path.read_text()).keys() <= first.keys()
    for name, value in first.items():
        if name in ("optim_conf", "scheduler_conf"):  # printed with the defaults of their classes
            assert value.items() <= second[name].items()
        elif name != "config":
            assert value == second[name], name
    args = program.get_parser().parse_args(["--config", str(printed)])
    groups = build_optimizer(args, torch.nn.Linear(2, 2), torch.optim.AdamW).param_groups
    assert groups[0]["lr"] == (args.head_lr or args.optim_conf["lr"])


def plain(program, path):
    """The options of a configuration file, tuples being lists."""
    return json.loads(json.dumps(vars(program.get_parser().parse_args(["--config", str(path)]))))
