"""What adaltm.sh declares, without running it: names and commands of experts, vectors, merges."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "egs" / "mini_espeak" / "adaltm1"

# `python -m espnet_adaltm.bin.run_item --batch FILE ...`: what it is asked to do, as JSON lines.
RECORDER = """#!/bin/sh
exec {python} -c '
import json, sys
fields = open(sys.argv[sys.argv.index("--batch") + 1]).read().split("\\0")[:-1]
while fields:
    count = int(fields.pop(0))
    print(json.dumps(fields[:count]))
    fields = fields[count:]
' "$@"
"""


@pytest.fixture
def declared(tmp_path):
    """Items that adaltm.sh declares, as (stage, folder, command), instead of running them."""
    for program in ("python", "python3"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(RECORDER.format(python=sys.executable))
        path.chmod(0o755)

    def items(*words: str, typed: str = "") -> list[tuple[str, str, list[str]]]:
        places = [f"--{name}dir={name}" for name in ("data", "dump", "exp")]
        given = ["./adaltm.sh", f"--python={tmp_path}/bin/python", *places, *words]
        environment = {name: v for name, v in os.environ.items() if name != "ADALTM_RESUME"}
        if typed:
            environment["ADALTM_RESUME"] = typed
        result = subprocess.run(given, cwd=DEMO, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found = []
        for line in result.stdout.splitlines():
            if line.startswith('["'):
                entry = json.loads(line)
                stage = entry[entry.index("--stage") + 1].split()[1]
                command = entry[entry.index("--") + 1 :]
                found.append((stage, entry[entry.index("--workdir") + 1], command))
        return found

    return items


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def by_stage(items: list[tuple[str, str, list[str]]], stage: str) -> dict[str, list[str]]:
    return {folder: command for found, folder, command in items if found == stage}


EACH = ("--expert_seed", "each", "--merges", "static adaltm", "--feats_type", "extracted")


def test_every_seed_has_experts_vectors_and_merges_of_its_own(declared):
    items = declared(*EACH, "--seeds", "1 2 3")
    assert set(by_stage(items, "base")) == {
        "exp/base_tiny/units",
        "exp/base_tiny/pretrain",
        "exp/base_tiny/feats",
    }
    stems = {
        "asr": "exp/asr_expert_tiny_train_asr_unigram500",
        "ser": "exp/ser_expert_tiny_train_ser",
    }
    for task, stem in stems.items():
        experts = by_stage(items, f"{task}_expert")
        assert list(experts) == [stem, f"{stem}_seed2", f"{stem}_seed3"]
        assert [value(c, "--seed") for c in experts.values()] == ["1", "2500", "3500"]
        assert {value(c, "--base") for c in experts.values()} == {"exp/base_tiny"}
        for folder, command in experts.items():
            assert value(command, "--output_dir") == folder
    vectors = by_stage(items, "task_vectors")
    assert len(vectors) == 3
    pairs = [(value(c, "--asr"), value(c, "--ser")) for c in vectors.values()]
    assert pairs == [(stems["asr"] + end, stems["ser"] + end) for end in ("", "_seed2", "_seed3")]
    merges = by_stage(items, "merge")
    assert len(merges) == 6
    for (folder, command), seed in zip(merges.items(), (1, 2, 3) * 2):
        assert folder.endswith(f"_seed{seed}")
        assert value(command, "--seed") == str(1000 * seed)
        assert value(command, "--task_vectors") == list(vectors)[seed - 1]
        assert value(command, "--ser_expert") == pairs[seed - 1][1]
        # the words of a merge are judged by the head of the expert that it holds
        decoding = by_stage(items, "decode")[folder]
        assert value(decoding, "--asr_expert") == pairs[seed - 1][0]
    scored = by_stage(items, "score")
    for task, stem in stems.items():
        for seed, end in ((1, ""), (2, "_seed2"), (3, "_seed3")):
            command = scored[stem + end]
            assert value(command, "--name") == f"{task}_expert"
            assert value(command, "--seed") == str(seed)
    report = scored["exp/report"]
    systems = value(report, "--systems").split()
    assert len(systems) == 12
    assert systems[1] == f"asr_expert:2={stems['asr']}_seed2"
    start = report.index("--task_vectors") + 1
    assert report[start : start + 4] == [*vectors, "--out_dir"]
    (export,) = by_stage(items, "export").values()
    assert value(export, "--asr_expert") == stems["asr"]


def test_the_first_seed_of_each_is_what_a_plain_number_makes(declared):
    def commands(*words: str) -> list[tuple[str, str, list[str]]]:
        items = declared("--merges", "adaltm", "--seeds", "1", "--stop_stage", "decode", *words)
        return [item for item in items if item[0] != "score"]

    assert commands("--expert_seed", "each") == commands()
    assert commands() == commands("--expert_seed", "1")
    assert commands() != commands("--expert_seed", "2")


def test_a_plain_number_keeps_its_names(declared):
    """Finished experiments are found again under these names."""
    items = declared("--seeds", "1 2", "--merges", "adaltm", "--feats_type", "extracted")
    assert list(by_stage(items, "asr_expert")) == ["exp/asr_expert_tiny_train_asr_unigram500"]
    assert list(by_stage(items, "task_vectors")) == ["exp/task_vectors_ec4915"]
    assert list(by_stage(items, "merge")) == [
        f"exp/merge_adaltm_train_merge_ec4915_seed{seed}" for seed in (1, 2)
    ]
    other = declared("--seeds", "1", "--merges", "adaltm", "--expert_seed", "2")
    assert list(by_stage(other, "ser_expert")) == [
        "exp/ser_expert_tiny_c711fc_train_ser_c711fc_raw"
    ]
    assert "--seed" not in by_stage(other, "score")[next(iter(by_stage(other, "ser_expert")))]


def test_the_control_stays_at_its_single_seed(declared):
    items = declared(*EACH, "--seeds", "2 3", "--control_base", "random")
    for task in ("asr", "ser"):
        experts = by_stage(items, f"{task}_expert")
        control = [folder for folder in experts if "_random_" in folder]
        assert len(control) == 1
        assert len(experts) == 3
        assert value(experts[control[0]], "--seed") == "1"
        assert value(experts[control[0]], "--base") == "exp/base_random"
        assert value(by_stage(items, "decode")[control[0]], "--base") == "exp/base_random"
        assert "--seed" not in by_stage(items, "score")[control[0]]


def test_merges_get_what_their_objective_needs(declared, tmp_path):
    for name, line in (
        ("plain", "init: 0.5"),
        ("words", "objective: supervised_ctc"),
        ("close", "objective: supervised_distill"),
        ("test_time", "learn_on: adapt"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n{line}\n")
    items = declared(
        *EACH, "--seeds", "2", "--merge_dir", str(tmp_path), "--test_sets", "near far",
        "--merges", "plain words close test_time", "--stage=merge", "--stop_stage=merge",
    )  # fmt: skip
    plain, words, close, adapted = by_stage(items, "merge").values()
    assert not {"--asr_expert", "--adapt_dump"} & set(plain)
    for command in (words, close):
        expert = "exp/asr_expert_tiny_train_asr_unigram500_seed2"
        assert value(command, "--asr_expert") == expert
    assert "--asr_expert" not in adapted
    assert value(adapted, "--adapt_dump") == "dump/near"


def test_connectivity_is_asked_for(declared):
    stage = ("--stage=score", "--stop_stage=score", "--seeds=2 3")
    assert not any("connectivity" in folder for _, folder, _ in declared(*EACH, *stage))
    words = ("--connectivity", "true", "--connectivity_args", "--points 5")
    scored = by_stage(declared(*EACH, *stage, *words), "score")
    folder = next(folder for folder in scored if "connectivity" in folder)
    command = scored[folder]
    assert value(command, "--ser") == "exp/ser_expert_tiny_train_ser_seed2"
    assert value(command, "--dump") == "dump/dev"
    assert re.fullmatch(
        r"adaltm=exp/merge_adaltm_train_merge_\w{6}_seed2", value(command, "--merges")
    )
    assert command[-2:] == ["--points", "5"]
    assert value(scored["exp/report"], "--connectivity") == f"{folder}/connectivity.json"


def test_merges_are_named_or_given_by_path(declared, tmp_path):
    row = tmp_path / "mine0.1.yaml"
    row.write_text("learn_on: held_out\n")
    merges = ("--merges", f"static {row}", "--seeds", "1", "--export_merges", "mine0.1")
    items = declared(*merges)
    plain = declared("--merges", "static", "--seeds", "1")
    static, mine = by_stage(items, "merge").values()
    assert static == next(iter(by_stage(plain, "merge").values()))
    assert value(static, "--merge_config") == "conf/merge/static.yaml"
    assert value(mine, "--merge_config") == str(row)
    assert re.fullmatch(r"exp/merge_mine0.1_train_merge_\w{6}_seed1", value(mine, "--output_dir"))
    report = by_stage(items, "score")["exp/report"]
    assert value(report, "--systems").split()[-1] == f"mine0.1:1={value(mine, '--output_dir')}"
    assert list(by_stage(items, "export")) == [value(mine, "--output_dir")]
    words = ["./adaltm.sh", "--merges", f"static {tmp_path}/static.yaml"]
    result = subprocess.run(words, cwd=DEMO, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"conf/merge/static.yaml and {tmp_path}/static.yaml have one name" in result.stderr


@pytest.mark.parametrize(
    ("option", "given", "twice"),
    [
        ("merges", "adaltm static adaltm", "adaltm"),
        ("merges", "static conf/merge/static.yaml", "static"),
        ("seeds", "1 2 1", "1"),
        ("baselines", "mtlser mtlser", "mtlser"),
    ],
)
def test_no_system_is_there_twice(option, given, twice):
    words = ["./adaltm.sh", f"--{option}", given, "--merge_dir", "conf/merge", "--dry_run"]
    result = subprocess.run(words, cwd=DEMO, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: --{option}: '{twice}' is given twice\n"


def test_lists_that_nobody_typed_may_name_more_than_a_run_has(declared):
    report = by_stage(declared("--merges", "static adaltm", "--seeds", "1"), "score")["exp/report"]
    start = report.index("--compare") + 1
    assert report[start : start + 2] == ["adaltm:static", "--recipe"]
    words = ("--merges", "static", "--seeds", "1", "--compare", "adaltm:static static:asr_expert")
    refused = subprocess.run(["./adaltm.sh", *words], cwd=DEMO, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--compare: this run has no 'adaltm'" in refused.stderr
    # A run.sh has the list, the user typed the merges.
    found = declared(*words, typed="./run.sh --merges static")
    report = by_stage(found, "score")["exp/report"]
    start = report.index("--compare") + 1
    assert report[start : start + 2] == ["static:asr_expert", "--recipe"]


def test_a_share_of_the_labels_is_for_what_learns_from_them(declared, tmp_path):
    """Base and ASR expert are shared with other shares."""
    for name, line in (("plain", "init: 0.5"), ("dev", "learn_on: held_out")):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n{line}\n")
    merges = (
        "--seeds",
        "1",
        "--merges",
        " ".join(f"{tmp_path}/{n}.yaml" for n in ("plain", "dev")),
    )
    everything, share = declared(*merges), declared(*merges, "--label_share", "0.1")
    assert by_stage(everything, "asr_expert") == by_stage(share, "asr_expert")
    assert by_stage(everything, "base") == by_stage(share, "base")
    (before,), (after,) = (list(by_stage(items, "ser_expert")) for items in (everything, share))
    assert re.fullmatch(r"exp/ser_expert_tiny_train_ser_\w{6}_raw", after) and after != before
    shape = "data/label_share/ser_shape_0.1"
    chosen = [command for _, _, command in share if "espnet_adaltm.bin.label_share" in command]
    assert [(value(c, "--out"), value(c, "--share")) for c in chosen] == [(shape, "0.1")]
    plain, dev = by_stage(share, "merge").values()
    for command in (by_stage(share, "ser_expert")[after], plain):
        assert value(command, "--train_shape_file") == shape
    assert "--train_shape_file" not in dev
    assert "label_share" not in json.dumps(everything)
    for wrong in ("0", "1.5", "50%", "0.10", "1.0"):
        words = ["./adaltm.sh", "--label_share", wrong]
        result = subprocess.run(words, cwd=DEMO, capture_output=True, text=True)
        assert result.returncode == 1
        assert f"above 0 and up to 1, such as 0.05, not '{wrong}'" in result.stderr


def test_reports_in_different_places_have_different_stamps(declared):
    words = ("--stage=score", "--stop_stage=score", "--seeds=1", "--merges=static")
    assert "exp/report" in by_stage(declared(*words), "score")
    other = by_stage(declared(*words, "--results_dir", "exp/ablations/rate/0.1"), "score")
    assert len([folder for folder in other if re.fullmatch(r"exp/report_\w{6}", folder)]) == 1
