import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_adaltm import files
from espnet_adaltm.errors import UserError


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_open_writes_utf8_with_plain_line_ends(tmp_path):
    with files.atomic_open(tmp_path / "deep/er/x.txt") as handle:
        handle.write("ż\n")
        assert not (tmp_path / "deep/er/x.txt").exists()
    assert (tmp_path / "deep/er/x.txt").read_bytes() == "ż\n".encode()
    assert listing(tmp_path / "deep/er") == ["x.txt"]


def test_atomic_open_respects_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "x", "x")
        with files.atomic_dir(tmp_path / "d"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_a_failed_write_keeps_the_old_file(tmp_path):
    files.write_text(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), files.atomic_open(tmp_path / "x") as handle:
        handle.write("new")
        raise RuntimeError
    assert (tmp_path / "x").read_text() == "old"
    assert listing(tmp_path) == ["x"]


def test_a_failed_folder_keeps_the_old_one(tmp_path):
    with files.atomic_dir(tmp_path / "d") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_dir(tmp_path / "d") as folder:
        (folder / "b").write_text("new")
        raise RuntimeError
    assert listing(tmp_path) == ["d"]
    assert listing(tmp_path / "d") == ["a"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path):
    for name in ("a", "b"):
        with files.atomic_dir(tmp_path / "d") as folder:
            (folder / name).write_text(name)
    assert listing(tmp_path) == ["d"]
    assert listing(tmp_path / "d") == ["b"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path, monkeypatch, failing):
    with files.atomic_dir(tmp_path / "d") as folder:
        (folder / "a").write_text("old")
    calls = iter(range(1, 9))
    replace = os.replace

    def fails_once(source, target):
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(UserError, match="no space left"), files.atomic_dir(tmp_path / "d"):
        pass
    assert listing(tmp_path) == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "old"


def replace_and_die(path, name, before):
    real = getattr(*name)

    def dies(*args, **options):
        if next(before) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **options)

    setattr(*name, dies)
    with files.atomic_dir(path) as folder:
        (folder / "b").write_text("new")


@pytest.mark.parametrize(
    ("name", "calls", "left"),
    [((os, "replace"), 0, ["a"]), ((os, "replace"), 1, []), ((shutil, "rmtree"), 0, ["b"])],
)
def test_a_killed_exchange_leaves_nothing_that_looks_like_output(tmp_path, name, calls, left):
    with files.atomic_dir(tmp_path / "d") as folder:
        (folder / "a").write_text("old")
    process = multiprocessing.get_context("fork").Process(
        target=replace_and_die, args=(tmp_path / "d", name, iter(range(calls, -9, -1)))
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    others = [entry for entry in listing(tmp_path) if entry != "d"]
    assert others
    assert all(entry.startswith(".d.") and entry.endswith(".tmp") for entry in others)
    assert (listing(tmp_path / "d") if (tmp_path / "d").exists() else []) == left
    write(tmp_path / "d", "atomic_dir")
    assert listing(tmp_path) == ["d"]


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "d").write_text("old")
    with (
        pytest.raises(UserError, match="d cannot be written .Not a directory"),
        files.atomic_dir(tmp_path / "d"),
    ):
        pass
    assert listing(tmp_path) == ["d"]
    assert (tmp_path / "d").read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_told_and_leaves_the_old_file(tmp_path, monkeypatch, call, code):
    files.write_text(tmp_path / "x", "old")

    def full(*_, **__):
        raise OSError(code, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"):
            files.write_json(tmp_path / "x", {"new": 1})
        if call == "replace":
            with pytest.raises(UserError, match="no space"), files.atomic_dir(tmp_path / "d"):
                pass
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_full_disk_while_a_library_writes_by_name(tmp_path, full_disk):
    files.write_text(tmp_path / "x", "old")
    with (
        pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"),
        files.atomic_path(tmp_path / "x") as temporary,
    ):
        temporary.write_text("new")
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(UserError, match="no space"), full_disk(2):
        files.write_text(tmp_path / "x", "newer")
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_file_written_by_name_takes_its_place_and_mode(tmp_path):
    old = os.umask(0o027)
    try:
        with files.atomic_path(tmp_path / "deep/x") as temporary:
            temporary.write_text("new")
            temporary.chmod(0o600)
            assert not (tmp_path / "deep/x").exists()
    finally:
        os.umask(old)
    assert (tmp_path / "deep/x").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "deep/x").stat().st_mode) == 0o640
    assert listing(tmp_path / "deep") == ["x"]


def write_and_die(path, kind):
    opened = getattr(files, kind)(path)
    opened.__enter__()
    os.kill(os.getpid(), signal.SIGKILL)


def left_by(process, name="x", host=None):
    return f".{name}.{host or files._host()}.{process}.abcd_123.tmp"


KINDS = ("atomic_open", "atomic_dir", "atomic_path")


def write(path, kind):
    with getattr(files, kind)(path) as given:
        if kind == "atomic_path":
            given.write_text("new")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, kind):
    process = multiprocessing.get_context("fork").Process(
        target=write_and_die, args=(tmp_path / "x", kind)
    )
    process.start()
    process.join()
    assert len(listing(tmp_path)) == 1
    write(tmp_path / "other", kind)
    assert len(listing(tmp_path)) == 2
    write(tmp_path / "x", kind)
    assert listing(tmp_path) == ["other", "x"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_dead_processes_of_this_machine_left_goes(tmp_path, kind, monkeypatch):
    dead, mine, foreign = 4_000_001, os.getpid(), 4_000_002

    def look(process, signal):
        assert signal == 0
        if process == dead:
            raise ProcessLookupError
        if process == foreign:
            raise PermissionError

    monkeypatch.setattr(os, "kill", look)
    kept = [
        left_by(mine),
        left_by(foreign),
        left_by(dead, host="elsewhere"),
        left_by(dead, name="xx"),
        left_by(dead, name="x.y"),
        left_by(0),
        ".x.abcd_123.tmp",
        f"x.{files._host()}.{dead}.abcd.tmp",
    ]
    for name in (*kept, left_by(dead)):
        (tmp_path / name).write_text("")
    folder = tmp_path / left_by(dead).replace("abcd", "efgh")
    folder.mkdir()
    (folder / "inside").write_text("")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / left_by(dead).replace("abcd", "link")).symlink_to(outside)
    write(tmp_path / "x", kind)
    assert listing(tmp_path) == sorted([*kept, "outside", "x"])


def test_temporary_names_tell_machine_and_process(tmp_path):
    with files.atomic_open(tmp_path / "x.txt"):
        (name,) = listing(tmp_path)
    assert name.startswith(f".x.txt.{files._host()}.{os.getpid()}.")
    assert name.endswith(".tmp")


def test_other_errors_of_the_system_stay_themselves(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="broken disk"):
        files.write_text(tmp_path / "x", "new")
    assert listing(tmp_path) == []


def test_json_keeps_order_and_characters(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": 1, "a": "ż"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{"b": 1, "a": "ż"}\n'
    assert list(files.read_json(tmp_path / "x.json").items()) == [("b", 1), ("a", "ż")]


def test_json_has_what_fits_on_a_line(tmp_path):
    numbers = [x / 7 for x in range(12)]
    value = {
        "row": {"seeds": [0.1, 0.2], "low": None},
        "long": numbers,
        "nested": [{"a": "x" * 60, "b": True}, {"a": "y" * 60, "b": float("inf")}],
        "none": {},
    }
    files.write_json(tmp_path / "x.json", value)
    lines = (tmp_path / "x.json").read_text(encoding="utf-8").splitlines()
    at = lines.index(" ],")
    assert [*lines[:3], *lines[at:]] == [
        "{",
        ' "row": {"seeds": [0.1, 0.2], "low": null},',
        ' "long": [',
        " ],",
        ' "nested": [',
        '  {"a": "' + "x" * 60 + '", "b": true},',
        '  {"a": "' + "y" * 60 + '", "b": Infinity}',
        " ],",
        ' "none": {}',
        "}",
    ]
    assert "".join(lines[3:at]).split() == json.dumps(numbers)[1:-1].split()
    assert max(map(len, lines)) <= 100
    assert files.read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b'{"a": ', "not valid JSON"),
        (b'"\xe9"', "is not UTF-8"),
        (b"[1]", "found list"),
    ],
)
def test_unreadable_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "x") == expected


def test_require(tmp_path):
    (tmp_path / "x").write_text("x")
    assert files.require(tmp_path / "x", "stage 2") == tmp_path / "x"
    assert files.require(tmp_path, "stage 2") == tmp_path
    with pytest.raises(UserError, match="nope is missing: run stage 2 first"):
        files.require(tmp_path / "nope", "stage 2")
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="x is empty: run stage 2 again"):
        files.require(tmp_path / "x", "stage 2")


def test_a_process_that_ended_unseen_does_not_run():
    assert files.is_running(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    end = time.monotonic() + 30
    while files.is_running(child.pid):  # a zombie: it has not been waited for
        assert time.monotonic() < end
        time.sleep(0.02)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()
    assert not files.is_running(child.pid)
    assert files.is_running(2**80)  # no number of a process: in doubt, yes
