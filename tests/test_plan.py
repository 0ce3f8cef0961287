"""What would be done: which item follows from which, before any of them has run."""

from pathlib import Path

import pytest

from espnet_adaltm.errors import UserError
from espnet_adaltm.items import Task, feeds
from espnet_adaltm.plan import check, dry_run, plan
from espnet_adaltm.stamps import Hashes, Item, Kind, begin, finish


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("conf").write_text("one")


def task(stage: str, workdir: str, inputs: list[str], outputs: list[str]) -> Task:
    """An item of ``1 data`` and so on, of three stages."""
    number, _, name = stage.partition(" ")
    made = [Path(path) for path in outputs]
    return Task(Item("make", Path(workdir), ["true"], inputs, made), f"{number}/3 {name}")


def chain() -> list[Task]:
    """Audio is made from data, with a file that is declared nowhere; two of the rest need it."""
    return [
        task("1 data", "data", ["conf"], ["data/scp"]),
        task("2 audio", "dump", ["data/scp@stage 1 (data)"], ["dump/a/scp"]),
        task("2 audio", "dump2", ["data/scp@stage 1 (data)"], ["dump/b/scp"]),
        task("3 train", "exp", ["dump/a/text@stage 2 (audio)"], ["exp/x"]),
        task("3 train", "exp2", ["elsewhere/y@stage 2 (audio)", "conf"], ["exp2/x"]),
        task("3 train", "exp3", ["conf"], ["exp3/x"]),
    ]


def make(tasks: list[Task]) -> None:
    """Do them."""
    for entry in tasks:
        (found,) = plan([entry], Hashes())
        begin(entry.item, found.verdict)
        for path in entry.item.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
        finish(entry.item, found.verdict, 1.0)


def test_what_feeds_an_input():
    found = feeds(chain())
    assert found[0] == {}
    assert found[1] == found[2] == {"data/scp": {0}}
    assert found[3] == {"dump/a/text": {1}}  # of that stage, with an output beside it
    assert found[4] == {"elsewhere/y": {1, 2}}  # missing: anything of that stage may make it
    assert found[5] == {}
    Path("elsewhere").mkdir()
    Path("elsewhere/y").write_text("there")
    assert feeds(chain())[4] == {}


def test_before_the_first_run():
    planned = plan(chain(), Hashes())
    assert [entry.run for entry in planned] == [True] * 6
    assert [entry.problem for entry in planned] == [""] * 6
    assert [entry.verdict is None for entry in planned] == [False, True, True, True, True, False]
    assert planned[1].why == "follows from 1 data (data: make)"
    assert planned[4].why == "follows from 2 audio (dump2: make)"
    assert planned[5].why == ""


def test_what_is_done_follows_from_what_changed():
    Path("elsewhere").mkdir()
    Path("elsewhere/y").write_text("there")
    make(chain()[:3])
    Path("dump/a/text").write_text("words")
    make(chain()[3:])
    assert not any(entry.run for entry in plan(chain(), Hashes()))
    Path("dump/b/scp").unlink()
    planned = plan(chain(), Hashes())
    assert [entry.run for entry in planned] == [False, False, True, False, False, False]
    assert planned[2].verdict.kind is Kind.DAMAGED
    Path("conf").write_text("two")
    planned = plan(chain(), Hashes())
    kinds = [entry.verdict.kind for entry in planned]
    assert kinds == [Kind.CHANGED, Kind.DONE, Kind.DAMAGED, Kind.DONE, Kind.CHANGED, Kind.CHANGED]
    assert all(entry.run for entry in planned)
    assert planned[3].why == "follows from 2 audio (dump: make)"


def test_an_input_that_nothing_makes_is_a_problem():
    planned = plan(chain()[1:], Hashes())
    missing = "data/scp is missing: run stage 1 (data) first"
    assert [entry.problem for entry in planned[:2]] == [missing, missing]
    # One input follows from the item before, the other is missing for good.
    tasks = [*chain()[:1], task("2 audio", "w", ["data/scp@stage 1 (data)", "no"], ["w/x"])]
    assert plan(tasks, Hashes())[1].problem == "no does not exist: check the option that names it"


def test_a_file_that_the_user_gives_is_told_from_one_that_a_stage_makes():
    tasks = [task("1 data", "w", ["no"], ["w/x"]), task("2 audio", "v", ["n@stage 1"], ["v/x"])]
    assert [entry.given for entry in plan(tasks, Hashes())] == [True, False]
    assert [entry.given for entry in plan(tasks[1:], Hashes())] == [False]
    assert not any(entry.given for entry in plan(chain(), Hashes()))


def test_checks_are_made_once_of_what_would_run():
    tasks = [*chain()[:1], *chain()[-1:], *chain()[4:5]]
    told = ["bash", "-c", "echo >>checked; echo warned >&2; echo error: so it is >&2; exit 1"]
    tasks[0].check, tasks[1].check = told, ["bash", "-c", "echo >>checked"]
    tasks[2].check = tasks[1].check
    with pytest.raises(UserError, match="^so it is$"):
        check(plan(tasks, Hashes()))
    make(tasks[:1])
    Path("checked").unlink()
    check(plan(tasks, Hashes()))
    assert Path("checked").read_text() == "\n"
    make(tasks[1:2])
    Path("elsewhere").mkdir()
    Path("elsewhere/y").write_text("there")
    make(tasks[2:])
    Path("checked").unlink()
    check(plan(tasks, Hashes()))
    assert not Path("checked").exists()


def test_planning_writes_nothing():
    make(chain()[:1])
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    Path("conf").touch()
    lines = dry_run(plan(chain(), Hashes()), ["1/3 data", "2/3 audio", "3/3 train", "4/3 more"])
    assert lines[0] == "[1/3 data] data: make: skip, done before"
    assert lines[1] == "[2/3 audio] dump: make: run (first time)"
    assert lines[-1] == "[4/3 more] none asked for"
    del before[Path("conf")]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(before) | {Path("conf")} == set(Path().rglob("*"))


def test_what_comes_before_is_not_told_again():
    """A part of a run whose inputs an earlier part makes."""
    early, late = chain()[:3], chain()[3:]
    (alone, *_) = plan(late, Hashes())
    assert alone.problem == "dump/a/text is missing: run stage 2 (audio) first"
    planned = plan(late, Hashes(), early)
    assert [entry.task.name for entry in planned] == ["exp: make", "exp2: make", "exp3: make"]
    assert [entry.problem for entry in planned] == [""] * 3
    assert planned[0].why == "follows from 2 audio (dump: make)"
    assert dry_run(planned, [], early)[0] == (
        "[3/3 train] exp: make: run (first time, follows from 2 audio (dump: make))"
    )
    # Another part declares it as well: by then it will be done.
    again = plan(early[:1], Hashes(), early)
    assert dry_run(again, [], early) == ["[1/3 data] data: make: as above"]
