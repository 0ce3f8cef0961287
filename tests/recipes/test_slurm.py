"""Jobs, trainings and the whole recipe through a real Slurm, where one is installed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import ask, job_states, running
from test_pipeline import make_recipe
from training_common import make_corpus, options
from waiting import wait_for

from espnet_adaltm.jobs import code_in_log

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "egs" / "TEMPLATE" / "adaltm1"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(slurm_cluster.missing()), reason=f"not installed: {slurm_cluster.missing()}"
    ),
]

# A training whose steps take a time that is known: without it, nobody could say when it is where.
SLOW = """
import sys, time
from espnet_adaltm.training import launch
from espnet_adaltm.training.espnet_models import AdaltmModel
task, start, step = sys.argv[1], *map(float, sys.argv[2:4])
load, original = launch.load_task, AdaltmModel.result
def load_task(name):
    print("loading", flush=True)
    time.sleep(start)
    return load(name)
def result(self, *args):
    time.sleep(step if self.training else 0)
    return original(self, *args)
launch.load_task, AdaltmModel.result = load_task, result
launch.main(task, sys.argv[4:])
"""
BATCHES = 4  # of an epoch of the toy corpus


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment in which Slurm's commands reach the cluster, and our own programs are found."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm") / "s") as environment:
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        yield {**environment, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def conf(tmp_path):
    """What a user of a cluster with time limits writes into conf/slurm.conf."""
    path = tmp_path / "slurm.conf"
    shipped = (ROOT / "conf/slurm.conf").read_text()
    path.write_text(f"{shipped}\ndefault partition=cpu\ndefault time=30\ndefault warn_seconds=5\n")
    return path


def submit(environment, conf, *words, cwd):
    """Start our job command."""
    return subprocess.Popen(
        [str(TEMPLATE / "utils/slurm.pl"), "--config", str(conf), *map(str, words)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def training(corpus, folder, *, epochs, step=0, begin=0, task="ser"):
    """Words that train a toy, with a pause of ``step`` seconds in every step."""
    program = folder.parent / "slow.py"
    program.write_text(SLOW)
    names = {"ser": "ser_task:SERTask", "merge": "merge_task:MergeTask"}
    changes = {"max_epoch": epochs, "mask_time_prob": 0.05, "noise_prob": 0.5}
    argv = options(corpus, folder, task, **changes)
    return [sys.executable, str(program), names[task], *map(str, [begin, step, *argv])]


def outcome(folder):
    """Bytes of what a training leaves for others, and its losses."""
    names = ("expert.safetensors", "head.safetensors", "history.json", "coefficients.json")
    return {n: (folder / n).read_bytes() for n in names if (folder / n).exists()}


def here(words, environment):
    subprocess.run(words, env=environment, check=True, capture_output=True)


def test_array_with_environment_partition_and_a_failure(slurm, conf, tmp_path):
    environment = {**slurm, "HF_HOME": "/some/cache", "ADALTM_TEST_WORDS": "two words"}
    script = 'echo "$HF_HOME|$ADALTM_TEST_WORDS|$SLURM_JOB_PARTITION"; [ INDEX != 3 ]'
    words = ["--num_threads", "2", "INDEX=1:4", "log/l.INDEX.log", "bash", "-c", script]
    process = submit(environment, conf, *words, cwd=tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 of 4 jobs failed: log/l.3.log" in error
    for index in range(1, 5):
        log = tmp_path / f"log/l.{index}.log"
        assert "/some/cache|two words|cpu" in log.read_text().splitlines()
        assert code_in_log(log) == (1 if index == 3 else 0)
    jobs = [job for job in job_states(slurm) if job["JobName"] == "l.INDEX"]
    assert sorted(job["ArrayTaskId"] for job in jobs) == ["1", "2", "3", "4"]
    assert len({job["ArrayJobId"] for job in jobs}) == 1
    assert {job["TimeLimit"] for job in jobs} == {"00:30:00"}


def test_variables_arrive_where_the_cluster_passes_nothing_on(slurm, conf, tmp_path):
    conf.write_text(conf.read_text().replace("command sbatch", "command sbatch --export=NONE"))
    environment = {**slurm, "HF_HOME": "/some/cache", "UNKNOWN_TO_US": "1"}
    words = ["log", "bash", "-c", 'echo "$HF_HOME|${UNKNOWN_TO_US:-}|$SLURM_CONF"']
    process = submit(environment, conf, *words, cwd=tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"/some/cache||{slurm['SLURM_CONF']}" in (tmp_path / "log").read_text()


def test_warned_training_saves_and_is_continued_by_itself(slurm, conf, corpus, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    here(training(corpus, whole, epochs=6), slurm)
    log = tmp_path / "log/train.log"
    words = training(corpus, pieces, step=0.4, epochs=6)
    process = submit(slurm, conf, log, *words, cwd=tmp_path)
    for epoch in (2, 4):  # what Slurm does at the end of a job's time, earlier
        wait_for_line(log, f"{epoch}/6 epoch started", process)
        [number] = running(slurm)
        ask(slurm, "scancel", "--batch", "--signal=USR1", number)
        wait_for((tmp_path / f"log/train.job{number}.log").exists, "second job", 60)
        assert code_in_log(tmp_path / f"log/train.job{number}.log") == 75
    _, error = process.communicate(timeout=180)
    assert process.returncode == 0, error
    assert "submitted again (1 of at most 100)" in error
    assert "submitted again (2 of at most 100)" in error
    jobs = [job for job in job_states(slurm) if job["JobName"] == "train"]
    assert [job["ExitCode"] for job in jobs][-3:] == ["75:0", "75:0", "0:0"]
    assert "batches from" in read(log)  # not from the beginning of an epoch
    assert outcome(pieces) == outcome(whole)


def test_time_limit_of_slurm_itself(slurm, conf, corpus, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    epochs, begun = 10, time.monotonic()
    here(training(corpus, whole, epochs=epochs), slurm)
    # One minute is the shortest limit; a busy machine needs longer to begin. The steps alone take
    # longer than the limit.
    minutes = 1 + int((time.monotonic() - begun) / 40)
    step = (60 * minutes + 10) / (BATCHES * epochs)
    words = training(corpus, pieces, step=step, epochs=epochs)
    process = submit(slurm, conf, "--time", minutes, "train.log", *words, cwd=tmp_path)
    _, error = process.communicate(timeout=1200)
    print(error, *(" ".join(job.values()) for job in job_states(slurm)), sep="\n")
    assert process.returncode == 0, error
    assert "time is up, all is saved" in error
    stopped = list(tmp_path.glob("train.job*.log"))
    assert stopped
    assert all("SIGUSR1: saved in epoch" in read(log) for log in stopped)
    assert outcome(pieces) == outcome(whole)


def test_training_that_gets_no_further_fails_instead_of_going_round(slurm, conf, corpus, tmp_path):
    log = tmp_path / "train.log"
    words = training(corpus, tmp_path / "t", begin=5, epochs=1)
    process = submit(slurm, conf, log, *words, cwd=tmp_path)
    wait_for_line(log, "loading", process)
    [number] = running(slurm)
    ask(slurm, "scancel", "--batch", "--signal=USR1", number)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "before this run had trained on one batch" in error
    assert "give the job more time" in error
    assert "submitted again" not in error


def test_jobs_are_submitted_again_so_often_and_no_more(slurm, conf, tmp_path):
    script = "echo again >>times; [ JOB = 1 ] || exit 75"
    words = ["--max_resubmits", "2", "JOB=1:3", "l.JOB", "bash", "-c", script]
    process = submit(slurm, conf, *words, cwd=tmp_path)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 75
    assert (tmp_path / "times").read_text().count("again") == 3 + 2 * 2
    assert "submitted again (2 of at most 2)" in error
    assert [code_in_log(tmp_path / f"l.{index}") for index in (1, 2, 3)] == [0, 75, 75]


def test_cancelled_submission_cancels_the_job(slurm, conf, tmp_path):
    process = submit(slurm, conf, "log", "sleep", "100", cwd=tmp_path)
    wait_for(lambda: "log" in running(slurm).values(), "job")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    wait_for(lambda: not running(slurm), "end of the job", 30)


def test_two_nodes_train_as_one_process_stop_together_and_go_on(slurm, conf, corpus, tmp_path):
    """As `--num_nodes 2` does it."""
    (tmp_path / "utils").symlink_to(TEMPLATE / "utils")

    def launch(folder, log, step):
        words = training(corpus, folder, step=step, epochs=5, task="merge")
        command = ["--cmd", f"utils/slurm.pl --config {conf}", "--ngpu", "0", "--num_nodes", "2"]
        command += ["--log", str(log), "--", *words]
        return subprocess.Popen(
            [sys.executable, "-m", "espnet_adaltm.training.nodes", *command],
            cwd=tmp_path,
            env=slurm,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = launch(tmp_path / "whole", tmp_path / "whole.log", 0)
    _, error = whole.communicate(timeout=300)
    assert whole.returncode == 0, error[-2000:]
    job = job_states(slurm)[-1]
    assert job["NodeList"] == "n[1-2]"
    log = tmp_path / "pieces.log"
    process = launch(tmp_path / "pieces", log, 0.5)
    wait_for_line(log, "2/5 epoch started", process)
    [number] = running(slurm)
    ask(slurm, "scancel", "--batch", "--signal=USR1", number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-2000:]
    assert "submitted again (1 of" in error
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


# ------------------------------------------------------------------------------ recipe
def recipe_run(recipe, environment, *words):
    """Start the smallest recipe as a user does."""
    return subprocess.Popen(
        ["./run.sh", "--size", "ci", "--merges", "static adaltm", "--compare", "adaltm:static"]
        + ["--stop_stage", "score", *words],
        cwd=recipe,
        env={**environment, "ADALTM_ROOT": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_recipe_with_a_cancelled_job_ends_with_the_results_of_a_local_run(slurm, conf, tmp_path):
    local, remote = (make_recipe(tmp_path / name) for name in ("local", "remote"))
    (remote / "conf/slurm.conf").write_text(conf.read_text())
    on_slurm = {**slurm, "cmd_backend": "slurm"}
    process = recipe_run(remote, on_slurm)
    log = next_log(remote, process)
    [number] = [n for n, name in running(slurm).items() if name == "train"][:1]
    ask(slurm, "scancel", number)
    said, _ = process.communicate(timeout=120)
    print(said)
    assert process.returncode == 1
    assert f"log: {log.relative_to(remote)}" in said
    process = recipe_run(remote, on_slurm)
    said, _ = process.communicate(timeout=1800)
    print(said)
    assert process.returncode == 0
    assert "skip, done before" in said
    assert "(continuing" in said
    done = recipe_run(local, slurm)
    said, _ = done.communicate(timeout=1800)
    print(said)
    assert done.returncode == 0
    name = "exp/ci/results.json"
    assert (remote / name).read_bytes() == (local / name).read_bytes()
    for pattern in ("*/expert.safetensors", "*/history.json", "*/decode/test/utt2prob"):
        found = list((local / "exp/ci").glob(pattern))
        assert len(found) >= 2
        for path in found:
            other = remote / path.relative_to(local)
            assert other.read_bytes() == path.read_bytes(), path
    systems = json.loads((remote / name).read_text())["systems"]
    assert len(systems) >= 4
    jobs = job_states(slurm)
    print(*(" ".join(job.values()) for job in jobs), sep="\n")
    names = {job["JobName"] for job in jobs}
    assert {"data", "audio_train", "pretrain", "train", "decode_test", "score", "report"} <= names
    decode_as_an_array(slurm, conf, remote)


def next_log(recipe, process):
    """Log of the ASR expert's training, once it is in its second epoch."""

    def found():
        logs = list((recipe / "exp/ci").glob("asr_expert*/train.log"))
        return bool(logs) and "2/2 epoch started" in read(logs[0])

    wait_for(lambda: found() or process.poll() is not None, "training of the ASR expert", 900)
    assert process.poll() is None, process.stdout.read()[-3000:]
    return next((recipe / "exp/ci").glob("asr_expert*/train.log"))


def decode_as_an_array(slurm, conf, recipe):
    """Two sets in one array job give the answers that the recipe's own jobs gave."""
    for number, name in enumerate(("test", "dev"), 1):
        (recipe / f"dump/ci/part{number}").symlink_to(name)
    system, expert = (next((recipe / "exp/ci").glob(n)) for n in ("merge_adaltm*", "asr_expert*"))
    answers = system / "decode"
    words = ["-m", "espnet_adaltm.bin.decode", "--system", system, "--dump", "dump/ci/partJOB"]
    words += ["--labels", "data/ci/labels.json", "--feats_type", "extracted", "--base"]
    words += [next((recipe / "exp/ci").glob("base_*")), "--asr_expert", expert, "--out"]
    words += [answers / "partJOB"]
    log = "log/decode.JOB.log"
    process = submit(slurm, conf, "JOB=1:2", log, sys.executable, *words, cwd=recipe)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    for name in ("utt2prob", "text"):
        assert (answers / "part1" / name).read_bytes() == (answers / "test" / name).read_bytes()
    dev = (recipe / "dump/ci/dev/wav.scp").read_text().splitlines()
    assert len((answers / "part2/utt2prob").read_text().splitlines()) == len(dev)


def wait_for_line(log, text, process):
    """Wait until a log has a text."""
    wait_for(lambda: text in read(log) or process.poll() is not None, text, 240)
    assert text in read(log), read(log)[-2000:] + process.communicate()[1]


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""
