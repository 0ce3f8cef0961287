"""Items: what runs, what is skipped, what starts over and what goes on."""

import errno
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from espnet_adaltm.bin import run_item
from espnet_adaltm.errors import UserError
from espnet_adaltm.locks import locked, myself
from espnet_adaltm.stamps import Hashes, Item, clear, split_options

ROOT = Path(__file__).parents[1]
COUNT = "import sys; open(sys.argv[1], 'a').write('x')"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """Work in an empty folder with one input."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("one")
    Path("conf.yaml").write_text("# a comment\nlr: 0.1\nmax_epoch: 3\n")


def run(*extra: str, command: tuple[str, ...] = (), inputs: tuple[str, ...] = ("in.txt@stage 1",)):
    """Run an item that appends an x to w/out; returns the exit status."""
    words = ["--name", "n", "--workdir", "w", "--inputs", *inputs, "--outputs", "w/out", *extra]
    return run_item.main([*words, "--", sys.executable, "-c", COUNT, "w/out", *command])


def runs() -> int:
    """How often the command ran since the folder was last emptied."""
    return len(Path("w/out").read_text())


def test_done_is_skipped(capsys):
    assert run() == 0
    assert run() == 0
    assert runs() == 1
    assert "skip" in capsys.readouterr().out


def test_stamp_holds_command_inputs_and_outputs():
    run()
    stamp = json.loads(Path("w/.stamps/n.json").read_text())
    assert stamp["command"][0] == "python"
    assert stamp["inputs"]["in.txt"][0] == 3
    # sha256 of b"one"
    assert stamp["inputs"]["in.txt"][2].startswith("7692c3ad3540bb803c020b3aee66cd88")
    assert stamp["outputs"] == {"w/out": 1}
    assert not Path("w/.stamps/n.started.json").exists()


def test_changed_input_starts_over(capsys):
    run()
    Path("w/left_over").touch()
    Path("in.txt").write_text("two")
    assert run() == 0
    assert runs() == 1
    assert not Path("w/left_over").exists()
    assert "changed: in.txt" in capsys.readouterr().out


def test_same_contents_with_another_date_are_skipped():
    run()
    os.utime("in.txt", (1, 1))
    run()
    assert runs() == 1
    assert json.loads(Path("w/.stamps/n.json").read_text())["inputs"]["in.txt"][1] == 10**9


def test_changed_option_starts_over(capsys):
    run(command=("--lr", "1"))
    Path("w/left_over").touch()
    run(command=("--lr", "2"))
    assert not Path("w/left_over").exists()
    assert "(changed: --lr (1 -> 2)) ..." in capsys.readouterr().out


def test_many_changes_are_one_short_line(capsys):
    many = [f"exp/some_system_{i}/decode/test/utt2prob" for i in range(40)]
    for path in many:
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text("one")
    run(command=("--systems", " ".join(many[:20])), inputs=tuple(many[:20]))
    run(command=("--systems", " ".join(many)), inputs=tuple(many))
    line = next(line for line in capsys.readouterr().out.splitlines() if "changed" in line)
    assert line == (
        f"w: n (changed: --systems (now with {many[20]}, {many[21]} and 18 more), "
        f"{many[20]} (now an input) and 19 more) ..."
    )
    for path in many[:3]:
        Path(path).write_text("two")
    run(command=("--systems", " ".join(many)), inputs=tuple(many))
    told = f"(changed: {many[0]}, {many[1]} and 1 more) ..."
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--ngpu", "--num_workers", "--mine"])
def test_irrelevant_option_is_skipped(option):
    run("--ignore_options", "mine", command=(option, "1"))
    run("--ignore_options", "mine", command=(option, "2"))
    run("--ignore_options", "mine", command=(f"{option}=3",))
    assert runs() == 1


def test_more_epochs_go_on():
    run(command=("--max_epoch", "3"))
    run(command=("--max_epoch", "5"))
    assert runs() == 2


def test_more_epochs_in_a_configuration_go_on_and_comments_do_not_count():
    inputs = ("conf.yaml",)
    run(inputs=inputs)
    Path("conf.yaml").write_text("# another comment\n\nlr: 0.1\nmax_epoch: 3\n")
    run(inputs=inputs)
    assert runs() == 1
    Path("conf.yaml").write_text("lr: 0.1\nmax_epoch: 9\n")
    run(inputs=inputs)
    assert runs() == 2
    Path("conf.yaml").write_text("lr: 0.2\nmax_epoch: 9\n")
    run(inputs=inputs)
    assert runs() == 1


def test_a_comment_behind_a_value_counts():
    inputs = ("conf.yaml",)
    run(inputs=inputs)
    Path("conf.yaml").write_text("lr: 0.1  # a comment\nmax_epoch: 3\n")
    Path("w/out").write_text("kept unless the item starts over")
    run(inputs=inputs)
    assert Path("w/out").read_text() == "x"


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 0)])
def test_damaged_output_is_made_again(damage):
    run()
    damage("w/out")
    run()
    assert runs() == 1


def test_force():
    run()
    Path("w/left_over").touch()
    run("--force", "true")
    assert not Path("w/left_over").exists()


def test_missing_input_names_its_stage(capsys):
    os.unlink("in.txt")
    assert run() == 1
    assert "in.txt is missing: run stage 1 first" in capsys.readouterr().err
    assert not Path("w/out").exists()


def test_empty_input_is_refused(capsys):
    Path("in.txt").write_text("")
    assert run() == 1
    assert "in.txt is empty: run stage 1 again" in capsys.readouterr().err


def test_missing_output_is_an_error(capsys):
    assert run("--outputs", "w/out", "w/other") == 1
    assert "w/other is missing" in capsys.readouterr().err
    assert not Path("w/.stamps/n.json").exists()


@pytest.mark.parametrize(
    ("typed", "goes_on"),
    [
        ("./run.sh --size ci", "./run.sh --size ci"),
        ("./run.sh --stage 2 --size ci --stop_stage 9", "./run.sh --size ci --stop_stage 9"),
        ("./run.sh --stage=asr_expert --stop_stage=9", "./run.sh --stop_stage=9"),
        (r"./run.sh --note my\ --stage\ 3 --stage 3", r"./run.sh --note my\ --stage\ 3"),
        (r"./run.sh --note $'a\nb --stage 3'", r"./run.sh --note $'a\nb --stage 3'"),
    ],
)
def test_failure_is_told_with_how_to_resume(capsys, monkeypatch, typed, goes_on):
    """From the stage that failed to where the user wanted to stop."""
    monkeypatch.setenv("ADALTM_RESUME", typed)
    words = ["--name", "n", "--workdir", "w", "--stage", "5/12 asr_expert", "--outputs", "w/out"]
    assert run_item.main([*words, "--", "false"]) == 1
    error = capsys.readouterr().err
    assert "status 1" in error
    assert error.endswith(f"; to resume: {goes_on} --stage 5\n")
    assert Path("w/resume.txt").read_text() == f"{goes_on} --stage 5\n"


def test_failure_goes_on_without_emptying():
    fail_once = "import os, sys; os.path.exists('w/a') or (open('w/a', 'w'), sys.exit(3)); "
    words = ["--name", "n", "--workdir", "w", "--outputs", "w/out", "--", sys.executable, "-c"]
    code = fail_once + "open('w/out', 'w').write('x')"
    assert run_item.main([*words, code]) == 1
    assert run_item.main([*words, code]) == 0


def test_shared_folder_keeps_the_others():
    run("--shared", "true")
    Path("w/others").touch()
    Path("in.txt").write_text("two")
    run("--shared", "true")
    assert Path("w/others").exists()
    assert runs() == 1


def test_working_directory_is_never_emptied():
    with pytest.raises(UserError, match="choose another folder"):
        clear(Item("n", Path("."), ["true"]))
    assert Path("in.txt").exists()


@pytest.mark.parametrize("text", ["{", "", "[]", '{"command": []}'])
def test_unreadable_stamp_means_run_again(text):
    run()
    Path("w/.stamps/n.json").write_text(text)
    run()
    assert runs() == 2


def test_time_and_failure_are_noted():
    run()
    stamp = json.loads(Path("w/.stamps/n.json").read_text())
    assert datetime.now().astimezone() - datetime.fromisoformat(stamp["done"]) < timedelta(
        minutes=5
    )
    assert 0 <= stamp["seconds"] < 60
    words = ["--name", "f", "--workdir", "w", "--shared", "true", "--outputs", "w/f"]
    assert run_item.main([*words, "--", "bash", "-c", "[ -e go ] && echo x >w/f"]) == 1
    started = json.loads(Path("w/.stamps/f.started.json").read_text())
    assert started["failed"]["why"] == "failed with status 1"
    Path("go").touch()
    assert run_item.main([*words, "--", "bash", "-c", "[ -e go ] && echo x >w/f"]) == 0
    # It went on: how long all of it took is not known.
    assert "seconds" not in json.loads(Path("w/.stamps/f.json").read_text())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; sys.exit(4)", "failed with status 4"),
        ("import os; os.kill(os.getpid(), 9)", "status 137 (SIGKILL: often for want of memory)"),
        ("import os; os.kill(os.getpid(), 11)", "failed with status 139 (SIGSEGV)"),
        ("import os; os.kill(os.getpid(), 15)", "was stopped with status 143 (SIGTERM)"),
    ],
)
@pytest.mark.parametrize("job", [(), ("--job", f"{ROOT}/egs/TEMPLATE/adaltm1/utils/run.pl")])
def test_how_a_command_ended_is_told(code, told, job, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    words = ["--name", "n", "--workdir", "w", "--outputs", "w/out", *job, "--log", "w/n.log"]
    assert run_item.main([*words, "--", sys.executable, "-c", code]) == 1
    assert told in capfd.readouterr().err
    failed = "failed" in json.loads(Path("w/.stamps/n.started.json").read_text())
    assert failed == told.startswith(("failed", "status"))


def test_an_item_that_is_being_made_is_not_made_twice(capsys):
    item = Item("n", Path("w"), ["true"])
    with locked(item.lock, myself("./run.sh --size ci"), "x"):
        assert run() == 1
    error = capsys.readouterr().err
    assert f"w: n is in the making by another run: process {os.getpid()} on " in error
    assert "(./run.sh --size ci)" in error
    assert not Path("w/out").exists()
    assert run() == 0


def test_what_another_run_made_meanwhile_is_not_made_again(monkeypatch, capsys):
    judge = run_item.judge
    seen = []

    def slow(*arguments, **options):
        verdict = judge(*arguments, **options)
        if not seen:
            seen.append(verdict)
            assert run() == 0  # another run, between the look and the lock
        return verdict

    monkeypatch.setattr(run_item, "judge", slow)
    assert run() == 0
    assert runs() == 1
    assert "skip, done before" in capsys.readouterr().out


# ------------------------------------------------------------------- disks and clocks
def leftovers() -> list[Path]:
    return [path for path in Path("w").rglob("*") if path.name.endswith(".tmp")]


def test_full_disk_before_the_command(full_disk, capsys):
    with full_disk(100):
        assert run() == 1
    assert "no space left on the disk" in capsys.readouterr().err
    assert not Path("w/out").exists()
    assert leftovers() == []
    assert run() == 0


def test_full_disk_after_the_command(full_disk, capsys):
    """The command ended well, but that could not be noted: it runs again, and goes on."""
    run()
    room = Path("w/.stamps/n.json").stat().st_size - 20
    Path("w/.stamps/n.json").unlink()
    Path("w/out").unlink()
    with full_disk(room):
        assert run() == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "no space left on the disk" in error
    assert Path("w/out").exists()
    assert not Path("w/.stamps/n.json").exists()
    assert leftovers() == []
    assert run() == 0
    assert runs() == 2


LIMITED = """
import resource, sys
from espnet_adaltm.bin import run_item
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(run_item.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("room", [0, 200, 3000])
def test_files_that_cannot_grow(room):
    """The system itself refuses to write: the lock, the first stamp, or what the command makes."""
    code = "with open('w/out', 'w') as out: out.write(5000 * 'x')"
    words = ["--name", "n", "--workdir", "w", "--inputs", "in.txt@stage 1", "--outputs", "w/out"]
    command = [*words, "--", sys.executable, "-c", code]
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), *command],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert limited.returncode == 1
    errors = [line for line in limited.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "status 1" in errors[0] if room == 3000 else "File too large" in errors[0]
    assert not Path("w/.stamps/n.json").exists()
    assert leftovers() == []
    assert run_item.main(command) == 0
    assert Path("w/out").stat().st_size == 5000


def test_a_disk_that_only_reads_is_one_clear_error(monkeypatch, capsys):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        assert run() == 1
    error = capsys.readouterr().err
    assert error == (
        "error: w: n: w/.stamps: Read-only file system: "
        "choose folders that can be written (--expdir, --dumpdir, --datadir)\n"
    )


@pytest.mark.parametrize("years", [-30, 30])
def test_no_decision_depends_on_a_clock(years):
    run()
    shifted = time.time() + years * 365 * 86400
    for path in ("in.txt", "w/out", "w/.stamps/n.json", "w"):
        os.utime(path, (shifted, shifted))
    run()
    assert runs() == 1
    Path("in.txt").write_text("two")
    os.utime("in.txt", (shifted - 1, shifted - 1))  # older than what was made from it
    Path("w/out").write_text("kept unless the item starts over")
    run()
    assert Path("w/out").read_text() == "x"


@pytest.mark.parametrize(
    "words", [["--nme", "n", "--", "true"], ["--name", "n"], ["--workdir", "w", "--", "true"]]
)
def test_wrong_item_is_refused(words, capsys):
    assert run_item.main(words) == 1
    assert "error:" in capsys.readouterr().err


def test_split_options():
    rest, taken = split_options(["p", "--a", "1", "--b=2", "--c", "--d"], frozenset("abc"))
    assert rest == ["p", "--d"]
    assert taken == ["--a", "1", "--b=2", "--c"]


def test_files_are_hashed_once(monkeypatch):
    hashed = []
    monkeypatch.setattr("espnet_adaltm.stamps.sha256_file", lambda path: hashed.append(path) or "h")
    hashes = Hashes()
    assert hashes.entry("in.txt") == hashes.entry("in.txt")
    assert hashed == ["in.txt"]
