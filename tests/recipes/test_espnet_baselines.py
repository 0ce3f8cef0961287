"""Items of ESPnet's own baselines and of results brought in; their configurations."""

import subprocess
from pathlib import Path

import pytest
import test_names
import yaml

declared = test_names.declared
by_stage, value = test_names.by_stage, test_names.value
ROOT = Path(__file__).parents[2]
SIZES = ["conf/tiny", "conf/wavlm_large", *(f"egs/mini_espeak/adaltm1/conf/{size}" for size in
         ("ci", "quick", "full"))]  # fmt: skip
FILES = [ROOT / size / f"baselines/espnet_{kind}.yaml" for size in SIZES for kind in ("cls", "asr")]
BOTH = ("--baselines", "espnet_cls espnet_asr", "--seeds", "1 2", "--merges", "adaltm ser_only")


def refused(*words):
    given = ["./adaltm.sh", "--dry_run", "true", *words]
    result = subprocess.run(given, cwd=test_names.DEMO, capture_output=True, text=True)
    assert result.returncode == 1
    return result.stderr


def test_both_are_trained_per_seed_and_decoded(declared):
    items = declared(*BOTH, "--feats_type", "extracted")
    trained = by_stage(items, "baselines")
    stems = [f"exp/espnet_{kind}_tiny" for kind in ("cls", "asr")]
    assert list(trained) == [f"{stem}_seed{seed}" for stem in stems for seed in (1, 2)]
    seeds = [value(command, "--seed") for command in trained.values()]
    assert seeds == ["1000", "2000", "1000", "2000"]
    for folder, command in trained.items():
        kind = folder.split("_")[1]
        assert f"espnet_adaltm.bin.train_espnet_{kind}" in command
        assert value(command, "--config") == f"conf/baselines/espnet_{kind}.yaml"
        assert value(command, "--output_dir") == folder
        assert value(command, "--train_dump") == "dump/train"
        # The last one counts: stored features are of another front end.
        given = [command[at + 1] for at, word in enumerate(command) if word == "--feats_type"]
        assert given == ["extracted", "raw"]
        assert ("--tokens" in command) == (kind == "asr")
        assert "--base" not in command
        decoding = by_stage(items, "decode")[folder]
        assert value(decoding, "--system") == folder
        assert value(by_stage(items, "score")[folder], "--name") == f"espnet_{kind}"
    report = next(command for _, _, command in items if "espnet_adaltm.bin.report" in command)
    start = report.index("--compare") + 1
    compared = set(report[start : report.index("--recipe")])
    assert {"adaltm:espnet_cls", "ser_only:espnet_asr"} <= compared


def test_a_share_of_the_labels_is_all_they_get(declared):
    words = (*BOTH, "--label_share", "0.1", "--stop_stage", "baselines")
    commands = list(by_stage(declared(*words), "baselines").values())
    shape = "data/label_share/ser_shape_0.1"
    assert value(commands[0], "--train_shape_file") == shape
    assert value(commands[2], "--emotion_shape") == shape  # the other words are still heard
    assert "--train_shape_file" not in commands[2]


def test_results_are_brought_in_decoded_and_scored(declared, tmp_path):
    for name in ("asr", "cls"):
        (tmp_path / name / "test").mkdir(parents=True)
        (tmp_path / name / "test/text").write_text("u <sad> no\n")
    given = f"{tmp_path}/asr beats:1={tmp_path}/cls beats:2={tmp_path}/cls"
    arguments = "--codes hap=happy --missing_emotion sad"
    words = ("--merges", "adaltm", "--seeds", "1 2", "--import_espnet", given)
    items = declared(*words, "--import_args", arguments)
    brought = {
        folder: command
        for stage, folder, command in items
        if stage == "decode" and "espnet_adaltm.bin.import_espnet" in command
    }
    folders = ["exp/import_espnet", "exp/import_beats_seed1", "exp/import_beats_seed2"]
    assert list(brought) == folders
    first = brought[folders[0]]
    assert value(first, "--dir") == f"{tmp_path}/asr"
    assert value(first, "--dumps") == "dump/test"
    assert value(first, "--out") == folders[0]
    assert first[-4:] == arguments.split()
    decoded = [c for s, _, c in items if s == "decode" and "espnet_adaltm.bin.decode" in c]
    assert not any("import" in value(command, "--system") for command in decoded)
    scored = by_stage(items, "score")
    assert value(scored[folders[2]], "--name") == "beats"
    assert value(scored[folders[2]], "--seed") == "2"
    assert "--seed" not in scored[folders[0]]
    report = next(command for _, _, command in items if "espnet_adaltm.bin.report" in command)
    systems = value(report, "--systems").split()
    assert f"espnet={folders[0]}" in systems
    assert f"beats:2={folders[2]}" in systems
    start = report.index("--compare") + 1
    compared = report[start : report.index("--recipe")]
    assert compared.count("adaltm:beats") == 1
    assert "adaltm:espnet" in compared


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{tmp}/nothing", "nothing is no folder; give [name[:seed]=]FOLDER"),
        ("a:b={tmp}", "'a:b' is neither a name nor name:seed"),
        ("{tmp} {tmp}", "has espnet twice"),
        ("adaltm:1={tmp}", "adaltm is a system of ours"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, given, message):
    assert message in refused("--import_espnet", given.format(tmp=tmp_path))


@pytest.mark.integration
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_shipped_configurations_make_a_model(path):
    from espnet_adaltm.config import check_keys
    from espnet_adaltm.training import espnet_stock_asr, espnet_stock_cls

    cls, asr = espnet_stock_cls.EspnetCLSTask, espnet_stock_asr.EspnetASRTask
    task = cls if path.stem == "espnet_cls" else asr
    args = task.get_parser().parse_args(["--config", str(path)])
    options = yaml.safe_load(path.read_text())
    assert vars(args).keys() >= options.keys()
    assert [tuple(one) for one in args.best_model_criterion] == [("valid", "acc", "max")]
    if task is asr:
        check_keys(args.decode_conf, espnet_stock_asr.DECODING, str(path))
        args.token_list = ["<blank>", "<unk>", "<emo:sad>", "hello", "<sos/eos>"]
    else:
        args.token_list = ["happy", "sad", "<unk>"]
    model = task.build_model(args)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert (size > 5e6) == (path.parents[1].name == "wavlm_large")
    assert model.encoder.output_size() == options["encoder_conf"]["output_size"]
    assert task.build_optimizers(args, model)[0].param_groups[0]["lr"] <= args.optim_conf["lr"]
