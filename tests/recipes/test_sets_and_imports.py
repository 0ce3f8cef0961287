"""What adaltm.sh declares for pools, blind sets and ready experts, and how recipes use it."""

import json
import os
import subprocess
import sys

import pytest
import test_names

ROOT = test_names.DEMO.parents[2]
declared = test_names.declared
by_stage, value = test_names.by_stage, test_names.value
SETS = ("--test_sets", "test1 test2", "--pools", "test1+test2", "--blind_sets", "test3")
FEW = ("--merges", "static", "--seeds", "1", "--feats_type", "extracted")


def words_after(command, option, stop):
    start = command.index(option) + 1
    return command[start : command.index(stop, start)]


def refused(*words):
    given = ["./adaltm.sh", "--dry_run", "true", *words]
    result = subprocess.run(given, cwd=test_names.DEMO, capture_output=True, text=True)
    assert result.returncode == 1
    return result.stderr


def test_pools_are_scored_and_blind_sets_decoded(declared):
    items = declared(*SETS, *FEW)
    formatted = [value(c, "--data") for s, _, c in items if s == "audio" and "--data" in c]
    assert formatted == [f"data/{name}" for name in ("train", "dev", "test1", "test2", "test3")]
    decoded = {(folder, value(c, "--dump")) for s, folder, c in items if s == "decode"}
    sets = {dump for _, dump in decoded}
    assert sets == {"dump/test1", "dump/test2", "dump/test3"}
    assert len(decoded) == 3 * 3  # both experts and the merge
    features = [value(c, "--dump") for _, f, c in items if f == "exp/base_tiny/feats"]
    assert "dump/test3" in features
    named = next(c for _, _, c in items if "espnet_adaltm.bin.prepare_labels" in c)
    assert not any("test3" in word for word in named)
    report = by_stage(items, "score")["exp/report"]
    scored = ["dump/test1", "dump/test2", "dump/test1+test2"]
    assert words_after(report, "--dumps", "--labels") == scored


def test_sets_that_contradict_each_other():
    assert "--pools: test3 is none of --test_sets" in refused("--pools", "test+test3")
    assert "--blind_sets: test is trained on or scored" in refused("--blind_sets", "test")


def test_ready_experts_are_brought_in_instead_of_trained(declared):
    given = ("--asr_expert", "someone/wavlm-ctc", "--ser_expert", "someone/wavlm-emotion")
    items = declared(*FEW, *given)
    ((asr, command),) = by_stage(items, "asr_expert").items()
    assert asr == "exp/asr_expert_tiny_from_wavlm-ctc"
    assert "espnet_adaltm.bin.import_expert" in command
    assert value(command, "--source") == "someone/wavlm-ctc"
    assert value(command, "--kind") == "asr"
    assert "--labels" not in command
    ((ser, command),) = by_stage(items, "ser_expert").items()
    assert ser == "exp/ser_expert_tiny_from_wavlm-emotion"
    assert value(command, "--labels") == "data/labels.json"
    assert value(command, "--base") == "exp/base_tiny"
    (vectors,) = by_stage(items, "task_vectors").values()
    assert (value(vectors, "--asr"), value(vectors, "--ser")) == (asr, ser)
    # The control's experts come from another base: they are trained.
    experts = by_stage(declared(*FEW, *given, "--control_base", "random"), "asr_expert")
    assert len(experts) == 2
    assert "espnet_adaltm.bin.train_asr" in experts["exp/asr_expert_random_train_asr_unigram500"]
    # Another expert, other vectors and merges.
    other = declared(*FEW, "--asr_expert", "someone/other", "--ser_expert", given[3])
    assert by_stage(other, "merge").keys() != by_stage(items, "merge").keys()


@pytest.fixture
def adaltm_calls(tmp_path):
    """Runs run.sh of a recipe with an adaltm.sh that notes what it is asked to do."""

    def calls(corpus, *words, prepared=()):
        recipe = tmp_path / "egs" / corpus / "adaltm1"
        recipe.mkdir(parents=True, exist_ok=True)
        source = ROOT / "egs" / corpus / "adaltm1"
        for name in ("run.sh", "utils", "path.sh", "cmd.sh", "local"):
            if not (recipe / name).exists():
                (recipe / name).symlink_to((source / name).resolve())
        noted = tmp_path / "calls"
        noted.unlink(missing_ok=True)
        fake = f"#!/bin/bash\nprintf '%s\\0' \"$@\" END >>{noted}\n"
        (recipe / "adaltm.sh").write_text(fake)
        (recipe / "adaltm.sh").chmod(0o755)
        for name in prepared:
            (recipe / name).parent.mkdir(parents=True, exist_ok=True)
            (recipe / name).write_text("")
        python = tmp_path / "bin" / "python"
        python.parent.mkdir(exist_ok=True)
        # What run.sh starts by itself are job commands, and programs that only matter elsewhere.
        python.write_text(
            '#!/bin/sh\ncase "$*" in *run_job*) exec '
            f'{sys.executable} "$@";; *) printf "%s\\0" python "$@" END >>{noted};; esac\n'
        )
        python.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if k != "ADALTM_RESUME"}
        environment |= {"ADALTM_ROOT": str(ROOT), "ADALTM_PYTHON": str(python)}
        done = subprocess.run(
            ["./run.sh", *words], cwd=recipe, env=environment, capture_output=True, text=True
        )
        text = noted.read_text() if noted.exists() else ""
        found, call = [], []
        for word in text.split("\0")[:-1]:
            if word == "END":
                found.append(call)
                call = []
            else:
                call.append(word)
        return found, done

    return calls


MSP = ("--msp_root", "/corpus", "--msp_version", "1.12")


def test_msp_podcast_passes_its_choices_on(adaltm_calls):
    ((call,), done) = adaltm_calls("msp_podcast", *MSP, "--classes", "4", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    data = value(call, "--local_data_opts").split()
    assert data[:4] == ["--msp_root", "/corpus", "--msp_version", "1.12"]
    assert value(data, "--classes") == "4"
    assert value(data, "--drop_empty_text") == "true"
    assert value(call, "--pools") == "test1+test2"
    assert value(call, "--blind_sets") == "test3"
    assert value(call, "--base") == "microsoft/wavlm-large"
    assert value(call, "--report_args") == "--audio none"
    assert "--ser_args" not in call
    words = ("--targets", "votes", "--test3", "false")
    ((call,), _) = adaltm_calls("msp_podcast", *MSP, *words)
    assert value(call, "--ser_args") == value(call, "--merge_args") == "--soft_labels true"
    assert "--blind_sets" not in call


def test_msp_podcast_makes_the_papers_other_row(adaltm_calls):
    words = ("--ood_asr_expert", "someone/ctc", "--baselines", "")
    found, done = adaltm_calls(
        "msp_podcast", *MSP, *words, prepared=["ood/results.json", "results.json"]
    )
    assert done.returncode == 0, done.stderr
    first, second, comparison = found
    assert "--asr_expert" not in first
    assert value(second, "--asr_expert") == "someone/ctc"
    # The last of an option counts.
    assert second[len(second) - 1 - second[::-1].index("--merges") + 1] == "adaltm_ood"
    assert value(comparison, "--ood_results") == "./ood/results.json"


def test_rows_of_the_other_run_may_be_compared():
    """adaltm_ood is in the second run only, all else in the first."""
    words = ["./run.sh", *MSP, "--ood_asr_expert", "someone/ctc", "--dry_run", "--baselines", ""]
    pairs = "adaltm:ser_only adaltm_ood:asr_expert"
    recipe = ROOT / "egs" / "msp_podcast" / "adaltm1"
    for compare, message in ((pairs, ""), (f"{pairs} adaltm:odd", "this run has no 'odd'; it has")):
        given = [*words, "--compare", compare, "--export_merges", "adaltm adaltm_ood"]
        told = subprocess.run(given, cwd=recipe, capture_output=True, text=True)
        assert (told.returncode == 0) is (message == ""), told.stderr
        assert message in told.stderr


def test_msp_podcast_says_what_it_lacks(adaltm_calls):
    assert "--msp_root is missing" in adaltm_calls("msp_podcast")[1].stderr
    assert "--msp_version is missing" in adaltm_calls("msp_podcast", *MSP[:2])[1].stderr
    ((call,), _) = adaltm_calls("msp_podcast", prepared=["data/train/wav.scp"])
    assert value(call, "--stage") == "audio"


IEMOCAP = ("--iemocap_root", "/corpus")
DUMPED = [f"dump/all/{name}" for name in ("wav.scp", "utt2spk", "audio_stats.tsv")]


@pytest.mark.parametrize(("folds", "kind"), [("5", "group"), ("10", "speaker")])
def test_iemocap_runs_every_fold(adaltm_calls, folds, kind):
    found, done = adaltm_calls(
        "iemocap", *IEMOCAP, "--folds", folds, "--seeds", "1", prepared=DUMPED
    )
    assert done.returncode == 0, done.stderr
    whole, making, *runs, report = found
    assert value(whole, "--stage") == "data"
    assert value(whole, "--stop_stage") == "audio"
    assert value(whole, "--train_set") == value(whole, "--test_sets") == "all"
    assert value(making, "--leave_out") == kind
    assert f"dump/{folds}/fold1/test/wav.scp" in making
    assert len(runs) == int(folds)
    runs.sort(key=lambda call: int(value(call, "--expdir").rpartition("fold")[2]))
    for number, call in enumerate(runs, 1):
        assert value(call, "--stage") == "tokens"
        assert (
            value(call, "--expdir") == value(call, "--results_dir") == f"exp/{folds}/fold{number}"
        )
        assert value(call, "--dumpdir") == f"dump/{folds}/fold{number}"
        assert value(call, "--seeds") == "1"
        assert value(call, "--report_args") == "--audio none"
    assert report[1:3] == ["-m", "espnet_adaltm.bin.run_item"]
    assert "espnet_adaltm.bin.report_folds" in report
    assert words_after(report, "--folds", "--compare") == [
        f"exp/{folds}/fold{number}" for number in range(1, int(folds) + 1)
    ]


def test_iemocap_stages_and_folds_can_be_chosen(adaltm_calls):
    found, done = adaltm_calls("iemocap", *IEMOCAP, "--stop_stage", "audio")
    assert done.returncode == 0, done.stderr
    assert [value(call, "--stop_stage") for call in found] == ["audio"]
    words = ("--stage", "merge", "--stop_stage", "decode", "--only_folds", "2 4")
    (making, *runs), _ = adaltm_calls("iemocap", *words, prepared=DUMPED)
    assert "espnet_adaltm.bin.run_item" in making
    assert [value(call, "--expdir") for call in runs] == ["exp/5/fold2", "exp/5/fold4"]
    assert {(value(c, "--stage"), value(c, "--stop_stage")) for c in runs} == {("merge", "decode")}
    for words, message in (
        ((), "--iemocap_root is missing"),
        (("--folds", "4"), "--folds is 5 (sessions) or 10 (speakers), not '4'"),
        (("--stage", "tokens", "--only_folds", "1 6"), "--only_folds are numbers up to 5, not '6'"),
    ):
        assert message in adaltm_calls("iemocap", *words)[1].stderr


def test_iemocap_folds_are_one_array_job_on_a_cluster(adaltm_calls, tmp_path, monkeypatch):
    """With Slurm the folds are submitted together, and run where their job does."""
    submit = tmp_path / "submit"
    submit.write_text(f"#!/bin/bash\nprintf '%s\\0' submit \"$@\" END >>{tmp_path}/calls\n")
    submit.chmod(0o755)
    monkeypatch.setenv("cmd_backend", "slurm")
    monkeypatch.setenv("cuda_cmd", f"{submit} --conf x")
    words = ("--stage", "tokens", "--ngpu", "1")
    (_, job, _), done = adaltm_calls("iemocap", *words, prepared=DUMPED)
    assert done.returncode == 0, done.stderr
    assert job[:8] == ["submit", "--conf", "x", "--gpu", "1", "--max_jobs_run", "1", "JOB=1:5"]
    assert job[8] == "exp/5/log/fold.JOB.log"
    assert job[9:11] == ["env", "cmd_backend=local"]
    assert value(job, "--expdir") == "exp/5/foldJOB"
    assert json.dumps(job).count("foldJOB") >= 4
