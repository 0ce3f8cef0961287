"""Two processes on one machine compute what one does."""

import pytest
import torch
from training_common import options, start, stats, train, weights

pytestmark = pytest.mark.integration


def run_ranks(task, argv, folder, size=2):
    ranks = [
        start(
            train,
            task,
            [
                *argv,
                *(
                    "--dist_backend",
                    "gloo",
                    "--dist_world_size",
                    str(size),
                    "--dist_rank",
                    str(rank),
                ),
                *("--dist_init_method", f"file://{folder}/rendezvous"),
            ],
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0] * size


@pytest.mark.parametrize("task", ["merge", "ser", "asr", "base"])
def test_two_ranks_equal_one(corpus, tmp_path, task):
    changes = {"max_epoch": 2, "batch_type": "sorted", "batch_size": 12}
    if task in ("merge", "ser"):
        changes["head_conf"] = "{hidden: 16, dropout: 0.0}"
    if task == "merge":
        changes["coef_lr"] = 0.02
        base = corpus / "base"
    else:
        base = without_dropout(corpus, tmp_path)
    if task == "base":
        # Random masks differ between the ranks: compare what does not depend on them.
        changes |= {"encoder_lr": 0, "head_lr": 0, "encoder_conf": None}
    argv = {
        name: options(corpus, tmp_path / name, task, **changes, base=base)
        for name in ("one", "two")
    }
    run_ranks(task, argv["two"], tmp_path)
    train(task, argv["one"])
    for epoch, parts in stats(tmp_path / "one").items():
        for name, value in parts["valid"].items():
            if name not in ("time", "total_count"):
                close = 1e-12 if name != "loss" else 2e-5
                other = stats(tmp_path / "two")[epoch]["valid"][name]
                assert other == pytest.approx(value, abs=close), (epoch, name)
    one, two = (weights(tmp_path / name, "2epoch.pth") for name in ("one", "two"))
    assert one.keys() == two.keys()
    tolerance = 1e-5 if task == "merge" else 2e-4
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=tolerance, rtol=1e-4, msg=name)
    if task == "merge":
        moved = (one["encoder.coefficients.raw"] - 0.5).abs().max()
        assert moved > 0.02
    assert (tmp_path / "two/finished.json").exists()


def test_two_ranks_equal_one_with_words_and_teachers(corpus, experts, tmp_path):
    for objective in ("supervised_ctc", "supervised_distill"):
        row = tmp_path / f"{objective}.yaml"
        row.write_text(f"objective: {objective}")
        changes = {
            "max_epoch": 1,
            "batch_type": "sorted",
            "batch_size": 12,
            "head_conf": "{hidden: 16, dropout: 0.0}",
            "coef_lr": 0.02,
            "merge_config": row,
            "task_vectors": experts / "task_vectors",
            "asr_expert": experts / "asr",
            "ser_expert": experts / "ser",
        }
        folders = {name: tmp_path / objective / name for name in ("one", "two")}
        argv = {n: options(corpus, path, "merge", **changes) for n, path in folders.items()}
        run_ranks("merge", argv["two"], tmp_path / objective)
        train("merge", argv["one"])
        one, two = (stats(path)[1]["valid"] for path in folders.values())
        assert one.keys() == two.keys()
        for name, value in one.items():
            if name not in ("time", "total_count"):
                close = 2e-5 if name.startswith("loss") else 1e-12
                assert two[name] == pytest.approx(value, abs=close, rel=1e-5), name
        one, two = (weights(path, "1epoch.pth") for path in folders.values())
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4, msg=name)


def without_dropout(corpus, tmp_path):
    """The base with its dropout off: ranks draw the same numbers for other utterances."""
    import json

    from espnet_adaltm.backbone.loading import load_encoder, save_encoder, write_base_info

    encoder = load_encoder(corpus / "base")
    folder = tmp_path / "base"
    save_encoder(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    write_base_info(folder, kind="random", source="test")
    return folder
