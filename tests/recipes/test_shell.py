"""The shell layer: options, stages, new recipes, and shellcheck."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from espnet_adaltm.files import is_running

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "egs" / "TEMPLATE" / "adaltm1"
DEMO = ROOT / "egs" / "mini_espeak" / "adaltm1"

OPTIONS = r"""
set -euo pipefail
. utils/parse_options.sh
option stage data "where to begin"
option nj 4 "how many"
option force false "again"
option asr_args "" "overrides"
parse_options "$@"
printf '%s\n' "${stage}" "${nj}" "${force}" "${asr_args}"
"""


def bash(script: str, *words: str, cwd: Path = TEMPLATE) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", script, "script", *words], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], ["data", "4", "false", ""]),
        (["--stage", "3"], ["3", "4", "false", ""]),
        (["--stage=3", "--nj=8"], ["3", "8", "false", ""]),
        (["--force", "true"], ["data", "4", "true", ""]),
        (["--asr-args", "--max_epoch 3 --lr=1"], ["data", "4", "false", "--max_epoch 3 --lr=1"]),
        (["--asr_args=--max_epoch 3"], ["data", "4", "false", "--max_epoch 3"]),
        (["--asr_args", ""], ["data", "4", "false", ""]),
        (["--nj", "1", "--nj", "2"], ["data", "2", "false", ""]),
        (["--stage", "$(touch evil) `touch evil` ; touch evil"], None),
    ],
)
def test_accepted(words, values):
    result = bash(OPTIONS, *words)
    assert result.returncode == 0, result.stderr
    expected = values or [words[1], "4", "false", ""]
    assert result.stdout.splitlines() == expected
    assert not (TEMPLATE / "evil").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo", "1"], "unknown option --foo (--help lists them)"),
        (["--stagee", "1"], "did you mean --stage?"),
        (["--stag=1"], "did you mean --stage?"),
        (["--force", "yes"], "--force is true or false, not 'yes'"),
        (["--force"], "--force needs a value"),
        (["--nj", "--stage", "3"], "--nj needs a value, found the option --stage"),
        (["3"], "unexpected argument '3'"),
        (["-nj", "3"], "unexpected argument '-nj'"),
    ],
)
def test_refused(words, message):
    result = bash(OPTIONS, *words)
    assert result.returncode == 1
    assert message in result.stderr


def test_what_a_script_does_not_know_is_passed_on():
    script = OPTIONS.replace('parse_options "$@"', 'take_options "$@"') + 'echo "${rest[*]}"'
    words = ["--other", "--nj", "--stage=2", "--more=--nj", "--nj", "7"]
    result = bash(script, *words)
    assert result.stdout.splitlines() == ["2", "7", "false", "", "--other --nj --more=--nj"]


def adaltm(
    *words: str, cwd: Path = DEMO, script: str = "./adaltm.sh"
) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "ADALTM_RESUME"}
    return subprocess.run(
        [script, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


ROWS = ("--merge_dir", "../../../conf/merge")


def test_help_lists_every_option_and_stage():
    result = adaltm("--help")
    assert result.returncode == 0
    text = (TEMPLATE / "adaltm.sh").read_text()
    names = re.findall(r"^option (\w+) ", text, re.MULTILINE)
    assert len(names) > 40
    for name in names:
        assert re.search(rf"^  --{name} .*\(default: ", result.stdout, re.MULTILINE), name
    functions = re.findall(r"^stage_(\w+)\(\)", text, re.MULTILINE)
    listed = re.findall(r"^ +(\d+)  (\w+) ", result.stdout, re.MULTILINE)
    assert [name for _, name in listed] == functions
    assert [int(number) for number, _ in listed] == list(range(1, 13))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "99"], "--stage '99' is not a stage"),
        (["--stage", "0"], "--stage '0' is not a stage"),
        (["--stage", "train"], "11  score"),
        (["--stop_stage=13"], "--stop_stage '13' is not a stage"),
        (["--stage", "1x"], "not a stage"),
        (["--stage", ""], "not a stage"),
        (["--stage", "merge", "--stop_stage", "3"], "comes after"),
        (["--foo"], "unknown option --foo"),
        (["--ngpu", "one"], "--ngpu is a whole number"),
        (["--feats_type", "fbank"], "--feats_type is raw or extracted"),
        (["--expert_seed", "all"], "--expert_seed is a whole number or each, not 'all'"),
        (["--seeds", "1 x"], "--seeds are whole numbers, not '1 x'"),
        (["--seeds", "1 08"], "--seeds are whole numbers, not '1 08'"),
        (["--expert_seed", "each", "--seeds", "0 1"], "each takes --seeds from 1 on, not '0 1'"),
        (["--expert_seed", "each", "--seeds", ""], "each takes --seeds from 1 on, not ''"),
        (["--connectivity", "yes"], "--connectivity is true or false, not 'yes'"),
        (["--compare", "adaltm:ser_onlyy"], "--compare: this run has no 'ser_onlyy' (did you mean"),
        (
            ["--compare=my_row:adaltm"],
            "--compare: this run has no 'my_row'; it has asr_expert",
        ),
        (["--compare", "adaltm"], "--compare: 'adaltm' is not first:second"),
        (
            ["--export-merges", "adalt"],
            "--export_merges: this run has no 'adalt' (did you",
        ),
        (["--export_merges", "ser_expert"], "--export_merges: this run has no 'ser_expert'"),
    ],
)
def test_stage_and_values_refused(words, message):
    result = adaltm(*words)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["--stage=3", "--stop_stage=3"], [3]),
        (["--stage", "tokens", "--stop_stage", "base"], [3, 4]),
        (["--stage", "9", "--stop_stage", "decode"], [9, 10]),
        ([], list(range(1, 13))),
    ],
)
def test_stages_selected(words, numbers, tmp_path):
    places = [f"--{name}dir={tmp_path}/{name}" for name in ("data", "dump", "exp")]
    result = adaltm("--dry_run", "true", *ROWS, *places, *words)
    assert result.returncode == 0, result.stderr
    found = [int(number) for number in re.findall(r"^\[(\d+)/12 ", result.stdout, re.MULTILINE)]
    assert sorted(set(found)) == numbers
    assert found == sorted(found)
    assert not any(tmp_path.iterdir())


def test_missing_input_names_its_stage(tmp_path):
    places = [f"--{name}dir={tmp_path}/{name}" for name in ("data", "dump", "exp")]
    result = adaltm("--stage", "3", *ROWS, *places)
    assert result.returncode == 1
    assert "run stage 2 (audio) first" in result.stderr


def test_run_script_passes_options_on(tmp_path):
    result = adaltm(
        "--expdir", str(tmp_path), "--size=ci", "--dry_run=true", "--stage=5", script="./run.sh"
    )
    assert result.returncode == 0, result.stderr
    assert f"[6/12 ser_expert] {tmp_path}/ser_expert_tiny_train_ser: train" in result.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "ci"], True),
        (["--stage=1", "--stop_stage", "12"], True),
        (["--size", "full"], False),
        (["--stage", "5"], False),
        (["--stop_stage", "score"], False),
        (["--dry_run"], False),
        (["--status"], False),
    ],
)
def test_the_run_script_claims_what_it_has_done(tmp_path, words, told):
    for name in ("utils", "run.sh"):
        (tmp_path / name).symlink_to(DEMO / name)
    stub = tmp_path / "adaltm.sh"  # all goes well
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    result = adaltm(*words, cwd=tmp_path, script="./run.sh")
    assert result.returncode == 0, result.stderr
    assert ("This run shows that everything works" in result.stdout) is told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "large"], ""),
        (["--foo"], "unknown option --foo"),
        (["--stage", "99"], ""),
        (["--sizee", "ci"], "unknown option --sizee (did you mean --size?)"),
        (["--label_share"], "--label_share needs a value"),
        (["--baseline", "mtlser"], "unknown option --baseline (did you mean --baselines?)"),
    ],
)
def test_run_script_refuses(words, message):
    result = adaltm(*words, script="./run.sh")
    assert result.returncode == 1
    assert f"error: {message}" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--merges", "static adaltmm"], "adaltmm.yaml does not exist (did you mean 'adaltm'?)"),
        (["--merges", "static {}/odd.yaml"], "odd.yaml: granularity 'blok' is unknown: use global"),
        (["--asr_config", "conf/ci/train_asrr.yaml"], "conf/ci/train_asrr.yaml does not exist"),
    ],
)
def test_configurations_are_looked_at_before_anything_runs(tmp_path, words, message):
    (tmp_path / "odd.yaml").write_text("granularity: blok\n")
    places = [
        f"--{name}={tmp_path}/{name}" for name in ("datadir", "dumpdir", "expdir", "audio_dir")
    ]
    words = [word.format(tmp_path) for word in words]
    result = adaltm(*places, *words, script="./run.sh")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("error: ") == 1
    assert message in result.stderr
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {"odd.yaml"}
    foreseen = adaltm(*places, *words, "--dry_run", script="./run.sh")
    assert "[1/12 data]" in foreseen.stdout
    if "--merges" in words:
        assert (foreseen.returncode, foreseen.stderr) == (1, result.stderr)
    # Stages before merging do not ask for rows.
    assert adaltm(*places, *words, "--stop_stage=4", "--dry_run", script="./run.sh").returncode == 0


def test_names_depend_on_overrides_that_change_the_result(tmp_path):
    def names(*words: str) -> list[str]:
        places = [f"--{name}dir={name}" for name in ("data", "dump", "exp")]
        out = adaltm("--dry_run", "true", "--stage=5", "--stop_stage=5", *places, *words).stdout
        return re.findall(r"exp/(\w+)", out)

    plain = names()
    assert plain == ["asr_expert_tiny_train_asr_unigram500_raw"]
    same = ("--ngpu", "2", "--num_workers=3", "--asr_args", "--max_epoch 3", "--ser_args", "--lr 1")
    assert names(*same) == plain
    extracted = names("--feats_type=extracted")
    assert extracted == ["asr_expert_tiny_train_asr_unigram500"]
    assert names("--token_type=char", "--n_tokens=0") == ["asr_expert_tiny_train_asr_char_raw"]
    changed = names("--asr_args", "--optim_conf lr=1e-4")
    assert re.fullmatch(r"asr_expert_tiny_train_asr_unigram500_[0-9a-f]{6}_raw", changed[0])
    assert names("--asr_args", " --optim_conf  lr=1e-4 ") == changed
    assert names("--asr_args", "--optim_conf lr=2e-4") != changed


STUB_STAGES = r"""
set -euo pipefail
. utils/parse_options.sh
. utils/stages.sh
option force false ""
option dry_run false ""
parse_options "$@"
train_cmd=utils/run.pl
stages=("one: makes one" "two: needs it")
stage_one() {
    item make "${out}/1" --outputs "${out}/1/x" -- bash -c "echo hello; echo 1 >${out}/1/x"
}
stage_two() { item make "${out}/2" --inputs "${out}/1/x@one" --outputs "${out}/2/x" -- "${do[@]}"; }
after_two() { echo "after two"; }
do=(cp "${out}/1/x" "${out}/2/x")
. ../../../tools/activate_python.sh
"""


def test_stages_run_items_through_the_job_command(tmp_path):
    script = f"out={tmp_path}\n{STUB_STAGES}\nrun_stages 1 2"
    first, second = bash(script), bash(script)
    assert first.returncode == second.returncode == 0, first.stderr
    assert "hello" in (tmp_path / "1" / "make.log").read_text().splitlines()
    assert first.stdout.endswith("after two\n")
    assert second.stdout.count("skip") == 2
    assert (tmp_path / "2" / "x").read_text() == "1\n"
    forced = bash(script, "--force", "true")
    assert "skip" not in forced.stdout


def test_missing_stage_is_named(tmp_path):
    result = bash(f"out={tmp_path}\n{STUB_STAGES}\nrun_stages 2 2")
    assert result.returncode == 1
    assert "run stage 1 (one) first" in result.stderr


def test_failing_item_shows_its_log_and_stops(tmp_path):
    script = f"out={tmp_path}\n{STUB_STAGES}\ndo=(cat /no/such/file)\nrun_stages 1 2"
    result = bash(script)
    assert result.returncode == 1
    assert "cat: /no/such/file: No such file" in result.stderr
    assert "after two" not in result.stdout


def test_terminated_script_ends_what_it_started(tmp_path):
    script = f"out={tmp_path}\n{STUB_STAGES}\nrun_stages 1 2"
    do = f'do=(bash -c "echo \\$\\$ >{tmp_path}/pid; sleep 60")'
    process = subprocess.Popen(["bash", "-c", script.replace("run_stages", f"{do}\nrun_stages")],
                               cwd=TEMPLATE, stdout=subprocess.DEVNULL)  # fmt: skip
    pid = tmp_path / "pid"
    end = time.monotonic() + 30
    while not (pid.exists() and pid.read_text().strip()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 143
    while is_running(int(pid.read_text())):
        assert time.monotonic() < end + 30
        time.sleep(0.02)


def test_new_recipe(tmp_path):
    target = tmp_path / "my_corpus" / "adaltm1"
    subprocess.run([TEMPLATE / "setup.sh", target], check=True, capture_output=True)
    assert "12  export" in adaltm("--help", cwd=target).stdout
    assert "--model" in adaltm("--help", cwd=target, script="./run.sh").stdout
    words = ("--model", "wavlm_large", "--base", "me/large", "--dry_run", "--stage=base")
    large = adaltm(*words, "--stop_stage=merge", cwd=target, script="./run.sh")
    configs = set(re.findall(r"conf/\S+(?= does not exist)", large.stdout))
    assert (large.returncode, configs) == (0, set()), large.stdout
    wrong = adaltm(*words, "--model=huge", "--stop_stage=12", cwd=target, script="./run.sh")
    assert f"{ROOT}/conf/huge/train_asr.yaml does not exist" in wrong.stdout
    result = adaltm("--stop_stage", "1", cwd=target, script="./run.sh")
    assert result.returncode == 1
    assert "write local/data.sh first" in result.stderr
    again = subprocess.run([TEMPLATE / "setup.sh", target], capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_every_recipe_has_the_template_files():
    recipes = [path for path in (ROOT / "egs").glob("*/adaltm1") if path != TEMPLATE]
    assert len(recipes) >= 3
    for recipe in recipes:
        for name in ("adaltm.sh", "utils"):
            assert (recipe / name).resolve() == TEMPLATE / name
        for name in ("run.sh", "local/data.sh"):
            assert os.access(recipe / name, os.X_OK), recipe / name


def test_job_command_is_chosen_by_name():
    show = '. ./cmd.sh; echo "${cuda_cmd}"'
    assert bash(show).stdout == "utils/run.pl\n"
    slurm = bash(f"ADALTM_ROOT=../../..; cmd_backend=slurm; {show}").stdout
    assert slurm == "utils/slurm.pl --config ../../../conf/slurm.conf\n"
    assert bash(f"cuda_cmd=queue.pl; {show}").stdout == "queue.pl\n"
    assert bash(f"cmd_backend=pbs; {show}").returncode == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.sh", "*.pl", ".ci/run"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = [name for name in listed.stdout.split() if not (ROOT / name).is_symlink()]
    assert len(files) > 10
    result = subprocess.run(
        ["shellcheck", "-x", "-P", "SCRIPTDIR", "-P", ".", *files],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
