import errno
import os
import stat

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


def test_other_errors_of_the_system_stay_themselves(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="broken disk"):
        files.write_text(tmp_path / "x", "new")
    assert listing(tmp_path) == []


def test_json_keeps_order_and_characters(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": 1, "a": "ż"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ż"\n}\n'
    assert list(files.read_json(tmp_path / "x.json").items()) == [("b", 1), ("a", "ż")]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b'{"a": ', "not valid JSON"), (b'"\xe9"', "not valid JSON")],
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
