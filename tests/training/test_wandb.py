"""Weights & Biases by option: what is missing is one line, before anything is read."""

from argparse import Namespace

import pytest

from espnet_adaltm.errors import UserError
from espnet_adaltm.training import launch

REFUSED = ("use_deepspeed", "sharded_ddp", "use_adapter", "multiple_iterator", "multi_task_dataset")


class Stub:
    """A task with these options that gets no further than being prepared."""

    def __init__(self, **options: object) -> None:
        given = {"print_config": False, "dry_run": False, "collect_stats": False, "init_param": []}
        given |= dict.fromkeys(REFUSED, False) | {"use_wandb": True, "wandb_name": None}
        self.args = Namespace(
            **given | {"output_dir": "exp/merge_adaltm", "dist_rank": None}, **options
        )

    def get_parser(self) -> "Stub":
        return self

    def parse_args(self, _words: list[str]) -> Namespace:
        return self.args

    def prepare(self, _args: Namespace) -> None:
        self.prepared = True

    def input_hashes(self, _args: Namespace) -> None:
        raise StopIteration  # far enough


def test_without_wandb_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda _name: None)
    task = Stub()
    with pytest.raises(UserError, match="--use_wandb: this Python environment has no wandb; pip"):
        launch.run(task, [])
    assert not hasattr(task, "prepared")


@pytest.mark.parametrize("wanted", [None, "mine"])
def test_a_run_there_has_the_name_of_its_folder(monkeypatch, wanted):
    monkeypatch.setattr(launch, "find_spec", lambda _name: object())
    monkeypatch.setattr(launch, "_rank", lambda _args: 1)
    task = Stub()
    task.args.resume = True
    task.args.wandb_name = wanted
    with pytest.raises(StopIteration):
        launch.run(task, [])
    assert task.args.wandb_name == (wanted or "merge_adaltm")
