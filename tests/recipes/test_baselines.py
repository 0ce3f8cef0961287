"""What adaltm.sh declares for baselines: folders, commands, sweeps, and the split that leaks."""

import re
import subprocess

import pytest
import test_names

from espnet_adaltm.data.leaky_split import NAME

declared = test_names.declared
by_stage, value = test_names.by_stage, test_names.value
MTLSER = ("--baselines", "mtlser", "--seeds", "1 2", "--merges", "adaltm ser_only")
STEM = "exp/mtlser_tiny_raw"


def refused(*words):
    given = ["./adaltm.sh", "--dry_run", "true", *words]
    result = subprocess.run(given, cwd=test_names.DEMO, capture_output=True, text=True)
    assert result.returncode == 1
    return result.stderr


def report_of(items):
    """The command that compares everything."""
    return next(command for _, _, command in items if "espnet_adaltm.bin.report" in command)


def test_a_baseline_is_trained_decoded_scored_and_compared(declared):
    items = declared(*MTLSER)
    trained = by_stage(items, "baselines")
    assert list(trained) == [f"{STEM}_seed1", f"{STEM}_seed2"]
    for seed, (folder, command) in enumerate(trained.items(), 1):
        assert "espnet_adaltm.bin.train_mtlser" in command
        assert value(command, "--output_dir") == folder
        assert value(command, "--seed") == str(1000 * seed)
        assert value(command, "--config") == "conf/baselines/mtlser.yaml"
        assert value(command, "--base") == "exp/base_tiny"
        assert value(command, "--train_dump") == "dump/train"
        decoding = by_stage(items, "decode")[folder]
        assert value(decoding, "--system") == folder
        assert "--asr_expert" not in decoding
        scoring = by_stage(items, "score")[folder]
        assert value(scoring, "--name") == "mtlser"
        assert value(scoring, "--seed") == str(seed)
    report = report_of(items)
    systems = value(report, "--systems").split()
    assert f"mtlser:2={STEM}_seed2" in systems
    start = report.index("--compare") + 1
    compared = report[start : report.index("--recipe")]
    assert {"adaltm:mtlser", "ser_only:mtlser"} < set(compared)
    assert len(compared) == len(set(compared))


def test_overrides_and_tokens_are_part_of_the_name(declared):
    def folder(*words):
        return next(
            iter(by_stage(declared(*MTLSER, "--stop_stage=baselines", *words), "baselines"))
        )

    assert folder("--ngpu", "2") == folder("--baseline_args", "--max_epoch 3") == f"{STEM}_seed1"
    alpha = folder("--baseline_args", "mtlser: --alpha 0.2")
    assert alpha.startswith("exp/mtlser_tiny_")
    assert alpha not in (f"{STEM}_seed1", folder("--baseline_args", "--alpha 0.3"))
    assert alpha == folder("--baseline_args", "mtlser:  --alpha  0.2 ")
    assert folder("--n_tokens", "60") != folder()
    assert folder("--feats_type", "extracted") == "exp/mtlser_tiny_seed1"


def test_words_reach_the_one_they_are_for(declared):
    words = ("--baseline_args", "--max_epoch 3; mtlser: --alpha 0.2 --beta 0")
    command = next(
        iter(by_stage(declared(*MTLSER, *words, "--stop_stage=9"), "baselines").values())
    )
    assert command[-6:] == ["--max_epoch", "3", "--alpha", "0.2", "--beta", "0"]
    assert "--baseline_args has 'mtlsr:'" in refused(*MTLSER, "--baseline_args", "mtlsr: --alpha 1")


def test_a_share_of_the_labels_holds_for_baselines_too(declared):
    words = (*MTLSER, "--label_share", "0.1", "--stop_stage=baselines")
    folder, command = next(iter(by_stage(declared(*words), "baselines").items()))
    assert folder != f"{STEM}_seed1"
    assert value(command, "--emotion_shape") == "data/label_share/ser_shape_0.1"
    assert "--train_shape_file" not in command


MEMORY = ("--baselines", "memory memory_frozen mtlser", "--seeds", "1 2", "--stop_stage=baselines")


def test_the_expert_that_hosts_a_memory_is_part_of_its_name(declared):
    def folders(*words):
        return list(by_stage(declared(*MEMORY, *words), "baselines"))

    plain = folders()
    hashes = [re.fullmatch(r"exp/memory_tiny_raw_(\w{6})_seed\d", name)[1] for name in plain[:2]]
    assert hashes[0] == hashes[1]
    assert plain[2:] == [
        *(f"exp/memory_frozen_tiny_raw_{hashes[0]}_seed{seed}" for seed in (1, 2)),
        *(f"{STEM}_seed{seed}" for seed in (1, 2)),
    ]
    other = folders("--ser_args", "--head_lr 0.1")
    assert not set(other[:4]) & set(plain)
    assert other[4:] == plain[4:]
    assert folders("--asr_args", "--head_lr 0.1") == plain
    each = folders("--expert_seed", "each")
    assert each[0] == plain[0]
    assert each[1] not in plain


def test_a_memory_stands_on_the_expert_of_its_seed_and_an_ablation_on_the_memory(declared):
    trained = by_stage(declared(*MEMORY, "--expert_seed", "each"), "baselines")
    folders = list(trained)
    for seed, end in ((0, ""), (1, "_seed2")):
        memory, frozen = folders[seed], folders[2 + seed]
        expert = f"exp/ser_expert_tiny_train_ser_raw{end}"
        assert value(trained[memory], "--ser_expert") == expert
        assert value(trained[frozen], "--system") == memory


def test_a_memory_in_qwen2_audio_needs_no_expert(declared, tmp_path):
    (tmp_path / "memory.yaml").write_text("max_epoch: 1\n")
    (tmp_path / "memory_large.yaml").write_text("host: qwen2_audio\n")
    words = ("--baseline_conf", str(tmp_path), "--baselines", "memory memory_large")
    (small, _), (large, command) = by_stage(
        declared(*words, "--seeds", "1", "--stop_stage=9"), "baselines"
    ).items()
    assert re.fullmatch(r"exp/memory_tiny_raw_\w{6}_seed1", small)
    assert large == "exp/memory_large_tiny_raw_seed1"
    assert "--ser_expert" not in command
    assert value(command[command.index("--feats_type") + 1 :], "--feats_type") == "raw"


def test_all_baselines_get_the_same_share_of_labels(declared):
    words = ("--baselines", "memory wap_adapter", "--seeds", "1", "--label_share", "0.1")
    items = [item for item in declared(*words, "--stop_stage=9") if item[0] == "baselines"]
    (memory,) = [c for _, _, c in items if "espnet_adaltm.bin.train_memory" in c]
    (head,) = [c for _, _, c in items if "espnet_adaltm.bin.train_wap_head" in c]
    (adapter,) = [c for _, _, c in items if "espnet_adaltm.bin.train_wap_adapter" in c]
    shape = "data/label_share/ser_shape_0.1"
    assert value(memory, "--emotion_shape") == shape  # it hears the other turns
    assert value(head, "--train_shape_file") == shape
    for command in (memory, adapter):  # the adapter learns without labels
        assert "--train_shape_file" not in command


def test_variants_share_a_script(declared):
    words = ("--baselines", "mtlser mtlser_no_speaker", "--seeds", "1")
    trained = by_stage(declared(*words, "--stop_stage=baselines"), "baselines")
    plain, variant = trained.items()
    assert variant[0] == "exp/mtlser_no_speaker_tiny_raw_seed1"
    assert value(variant[1], "--config") == "conf/baselines/mtlser_no_speaker.yaml"
    assert plain[0] == f"{STEM}_seed1"


def test_unknown_baselines_are_refused_before_anything_runs():
    error = refused("--baselines", "mtlsr")
    assert "--baselines: 'mtlsr' is none of" in error
    assert "mtlser" in error.replace("'mtlsr'", "")


def test_experts_and_merges_are_called_as_before(declared):
    without = declared("--seeds", "1 2", "--merges", "adaltm")
    kept = [item for item in declared(*MTLSER) if "mtlser" not in item[1]]
    names = {folder for stage, folder, _ in without if stage != "score"}
    assert names <= {folder for _, folder, _ in kept}
    for stage in ("asr_expert", "ser_expert", "merge"):
        for folder, command in by_stage(without, stage).items():
            assert by_stage(kept, stage)[folder] == command
    decoding = next(c for f, c in by_stage(without, "decode").items() if "merge_" in f)
    assert value(decoding, "--asr_expert").startswith("exp/asr_expert_")


def test_sweep_of_the_first_seed(declared):
    words = ("--mtlser_sweep", "0 0.1 / 0.05 0.15 1", "--merge_jobs", "3")
    trained = by_stage(declared(*MTLSER, *words, "--stop_stage=baselines"), "baselines")
    assert list(trained) == [f"{STEM}_seed1", f"{STEM}_seed1_sweep", f"{STEM}_seed2"]
    command = trained[f"{STEM}_seed1_sweep"]
    alphas, betas = command.index("--alphas"), command.index("--betas")
    assert command[alphas + 1 : betas] == ["0", "0.1"]
    assert command[betas + 1 : betas + 4] == ["0.05", "0.15", "1"]
    rest = command[command.index("--") + 1 :]
    single = trained[f"{STEM}_seed1"]
    assert rest == single[single.index("--config") :]
    assert "--mtlser_sweep is 'ALPHA... / BETA...'" in refused(
        *MTLSER, "--stage=baselines", "--mtlser_sweep", "0.1"
    )


def test_the_leaky_split_has_folders_and_a_name_of_its_own(declared):
    items = declared(*MTLSER, "--split", NAME, "--results_dir", "out", "--stop_stage", "score")
    (corpus, split) = [command for stage, _, command in items if stage == "data"]
    assert value(corpus, "--out_data") == "data"
    start = split.index("--sets") + 1
    assert split[start:] == ["data/train", "data/dev", "data/test", "--out", f"data/{NAME}"]
    folders = {folder for _, folder, _ in items if folder != "data"}
    assert all(NAME in folder for folder in folders)
    audit = [c for s, _, c in items if s == "audio" and "espnet_adaltm.bin.audit" in c]
    assert "--allow_speaker_overlap" in audit[0]
    dumps = audit[0][audit[0].index("--dumps") + 1 : audit[0].index("--train")]
    assert dumps == [f"dump/{NAME}/train", f"dump/{NAME}/{NAME}"]
    command = by_stage(items, "baselines")[f"exp/{NAME}/mtlser_tiny_raw_seed1"]
    assert value(command, "--valid_dump") == f"dump/{NAME}/{NAME}"
    report = report_of(items)
    assert value(report, "--dumps") == f"dump/{NAME}/{NAME}"
    assert value(report, "--out_dir") == f"out/{NAME}"
    assert "--split is published_leaky or empty, not 'leaky'" in refused("--split", "leaky")


def test_sets_named_twice_are_prepared_once(declared):
    items = declared("--valid_set", "test", "--test_sets", "test", "--stop_stage", "audio")
    prepared = [value(c, "--out") for s, _, c in items if s == "audio"]
    assert prepared == ["dump/train", "dump/test", "dump/audit.md"]


@pytest.mark.parametrize("recipe", ["mini_espeak", "nemo", "ravdess"])
def test_recipes_name_their_configurations(recipe):
    script = (test_names.DEMO.parents[1] / recipe / "adaltm1/run.sh").read_text()
    assert "--baseline_conf" in script
