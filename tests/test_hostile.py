"""Files that others wrote cannot run anything, leave their folder, or pass for something else."""

import ast
import os
import pickle
import re
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

import espnet_adaltm
from espnet_adaltm.backbone.arks import Waveforms
from espnet_adaltm.bin import format_audio, predict
from espnet_adaltm.config import load_yaml
from espnet_adaltm.data.audio import load_audio
from espnet_adaltm.data.datadir import read_data_dir, write_data_dir
from espnet_adaltm.decoding.batch import feature_inputs
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_dir, atomic_open, write_text
from espnet_adaltm.kaldi import read_scp, safe_kaldiio, write_scp
from espnet_adaltm.text import printable

PACKAGE = Path(espnet_adaltm.__file__).parent
RATE = 16_000


class Evil:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in a folder of its own, in which nothing may have been run at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("pwned"))


def sound(path, seconds=0.25):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(RATE * seconds)), RATE)


# ---------------------------------------------------------------------------- the code as it is
def calls():
    """Every call of the package: file, what is called, keywords."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                words = {
                    word.arg: getattr(word.value, "value", "unknown") for word in node.keywords
                }
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", dotted(node.func), words


def dotted(node):
    """``a.b.c`` of a name; what is no name is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_nothing_in_the_package_evaluates_or_unpickles():
    forbidden = re.compile(
        r"eval|exec|compile|__import__|os\.(system|popen)|(c?[pP]ickle|dill|joblib|marshal|shelve)\..*"
        r"|yaml\.(load|full_load|unsafe_load|load_all)|.*\.extractall|.*\.unpack_archive"
        r"|subprocess\.(getoutput|getstatusoutput)|importlib\.util\.spec_from_file_location"
    )
    assert [(where, what) for where, what, _ in calls() if forbidden.fullmatch(what)] == []
    shells = [where for where, _, words in calls() if words.get("shell", False) is not False]
    assert [where.split(":")[0] for where in shells] == ["data/audio.py"]  # only if allowed
    loads = [(where, words) for where, what, words in calls() if what == "torch.load"]
    assert len(loads) > 3
    assert [where for where, words in loads if words.get("weights_only") is not True] == []
    for option in ("trust_remote_code", "allow_pickle"):
        assert [where for where, _, words in calls() if words.get(option, False) is not False] == []


# ------------------------------------------------------------------------------ arks and pipes
COMMANDS = ["touch pwned |", "cat x.ark; touch pwned|", "| touch pwned", " |touch pwned x.ark:3"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_lists_are_not_run(command):
    for load in (load_audio, safe_kaldiio().load_mat, predict_one):
        with pytest.raises((UserError, ValueError), match=r"command|begins with `\|`"):
            load(command)
    sound("wav/a.wav")
    write_data_dir("data/x", {"a": "wav/a.wav", "b": command}, {"a": "s", "b": "s"})
    with pytest.raises(UserError, match=r"wav\.scp: 'b'"):
        format_audio.format_data_dir("data/x", "dump/x")
    with pytest.raises(SystemExit):
        predict.main(["-m", "none", "data/x"])
    write_scp("dump/y/wav.scp", {"b": command})
    with pytest.raises(UserError, match="'b'.*command"):
        Waveforms("dump/y")["b"]
    assert not Path("dump/x").exists()


def predict_one(source):
    from espnet_adaltm.decoding.sources import open_clips

    return open_clips(source)


def test_a_file_that_is_called_like_a_command_is_not_one():
    name = "| touch pwned; x.ark"
    Path(name).write_bytes(b"a PKL")
    with pytest.raises(UserError, match="begins with"):
        load_audio(f"{name}:2")


def test_commands_run_when_they_are_allowed():
    sound("wav/a.wav")
    write_data_dir("data/x", {"a": "cat wav/a.wav; touch ran |"}, {"a": "s"})
    words = ["--data", "data/x", "--out", "dump/x", "--num_workers", "1"]
    with pytest.raises(SystemExit):
        format_audio.main(words)
    assert not Path("ran").exists()
    format_audio.main([*words, "--allow_pipes"])
    assert Path("ran").exists()
    assert read_data_dir("dump/x").num_samples == {"a": RATE // 4}


def evil_arks():
    """A pickle as kaldiio stores it, and an array of objects as NumPy does."""
    objects = np.array([Evil()], dtype=object)
    Path("pickle.ark").write_bytes(b"a PKL" + pickle.dumps(Evil()))
    with open("objects.ark", "wb") as handle:
        kaldiio.save_ark(handle, {"a": objects}, write_function="numpy")
    return ["pickle.ark:2", "objects.ark:2"]


def test_pickles_in_arks_are_not_loaded():
    for entry in evil_arks():
        with pytest.raises(UserError, match="ickle"):
            load_audio(entry)
        for name in ("wav.scp", "feats.scp"):
            write_scp(f"dump/x/{name}", {"a": entry})
        write_scp("dump/x/feats_shape", {"a": 7})
        with pytest.raises(UserError, match="'a'.*ickle"):
            Waveforms("dump/x")["a"]
        with pytest.raises(UserError, match="'a'.*ickle"):
            feature_inputs("dump/x", "dump/x", 320).load("a")


@pytest.mark.integration
def test_nor_by_the_data_sets_of_espnet():
    dataset = pytest.importorskip("espnet2.train.dataset")
    import espnet_adaltm.training.data  # noqa: F401  (every task does)

    for entry in [*evil_arks(), "touch pwned |", "| touch pwned"]:
        write_scp("x.scp", {"a": entry})
        data = dataset.ESPnetDataset([("x.scp", "speech", "kaldi_ark")], preprocess=None)
        with pytest.raises(ValueError, match="ickle|command"):
            data["a"]


@pytest.mark.parametrize("offset", ["99", "4000000000", "999999999999999999", "-1", "3[0:2]", "x"])
def test_places_outside_of_an_ark(offset):
    Path("x.ark").write_bytes(b"a " + b"\0" * 40)
    with pytest.raises(UserError, match=re.escape(f"x.ark:{offset}")):
        load_audio(f"x.ark:{offset}")


@pytest.mark.parametrize(
    "content",
    [
        b"NPY\xff" + b"\xff" * 255,  # a length of 2,040 bits
        b"AUDIO\x08" + b"\x7f" * 8,
        b"\0BFM \x04\xff\xff\xff\x7f\x04\xff\xff\xff\x7f",  # 2^31 by 2^31
        b"\0BCM " + b"\xff" * 16,
        b"\0B\x04\xff\xff\xff\x7f",
        b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff",
        b"fLaC" + b"\xff" * 60,
        b" [ 1 2",
        b"",
    ],
)
def test_arks_that_lie_about_their_size(content):
    Path("x.ark").write_bytes(b"a " + content)
    with pytest.raises(UserError, match=r"x\.ark:2"):
        load_audio("x.ark:2")
    write_scp("dump/x/wav.scp", {"a": "x.ark:2"})
    with pytest.raises(UserError, match=r"x\.ark:2"):
        Waveforms("dump/x")["a"]


# ------------------------------------------------------------------------------ links and names
def test_links_are_not_followed_where_folders_are_replaced():
    write_text("precious/file", "mine")
    write_text("out/old/x", "old")
    os.symlink("../../precious", "out/old/link")
    with atomic_dir("out/old") as folder:
        (folder / "new").touch()
    assert os.listdir("out/old") == ["new"]
    os.symlink("../precious", "out/link")
    with pytest.raises(UserError, match="out/link is a symbolic link"), atomic_dir("out/link"):
        pass
    os.symlink("../precious/file", "out/file")
    with atomic_open("out/file") as handle:
        handle.write("theirs")
    assert not Path("out/file").is_symlink()
    assert Path("precious/file").read_text() == "mine"


def test_ids_do_not_become_paths(place):
    names = [
        "../../up",
        "/etc/passwd",
        "a/b",
        "..",
        "-rf",
        "~",
        "$(touch${IFS}pwned)",
        "`x`",
        "a;b",
        "a|b",
    ]
    names.sort(key=str.encode)
    sound("wav/a.wav")
    write_data_dir(
        "data/x",
        dict.fromkeys(names, "wav/a.wav"),
        {name: name for name in names},
        utt2emo=dict.fromkeys(names, "../sad"),
    )
    before = {path for path in place.rglob("*") if "dump" not in path.parts}
    kept = format_audio.format_data_dir("data/x", "dump/x")
    assert kept.utterances == names
    assert {path for path in place.rglob("*") if "dump" not in path.parts} == before
    assert sorted(os.listdir("dump/x/audio")) == ["data.1.ark"]
    assert [len(Waveforms("dump/x")[name]) for name in names] == [RATE // 4] * len(names)


@pytest.mark.parametrize(
    "mark", ["\u202e", "\u200f", "\u200b", "\ufeff", "\x1b", "\x00", "\x85", "\xad"]
)
def test_hidden_marks_in_names_are_refused(mark):
    code = f"U\\+{ord(mark):04X}"
    for wavs, speakers in (({f"a{mark}b": "x.wav"}, "s"), ({"a": "x.wav"}, f"s{mark}p")):
        with pytest.raises(UserError, match=f"{code}|one word is expected"):
            write_data_dir("data/x", wavs, dict.fromkeys(wavs, speakers))
    Path("text").write_text(f"a{mark}b words\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"text:1: .*{code}"):
        read_scp("text")


def test_lines_of_megabytes_are_read_and_not_repeated():
    Path("text").write_text("a " + "word " * 10**6 + "\nb\n")
    with pytest.raises(UserError, match="text:2: 'b' has no value"):
        read_scp("text")
    write_data_dir("data/x", {"a": "a.wav"}, {"a": "s"})
    Path("data/x/utt2dialog").write_text("a " + "x" * 10**6 + "\n")
    with pytest.raises(UserError) as caught:
        read_data_dir("data/x")
    assert len(printable(str(caught.value))) < 1200


def test_errors_do_not_steer_the_terminal(capsys):
    with pytest.raises(SystemExit):
        format_audio.main(["--data", "gone\x1b[2J\u202e", "--out", "x"])
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert r"gone\x1b[2J\u202e" in said


# --------------------------------------------------------------------------------- configurations
def test_values_are_values_and_anchors_still_work():
    Path("x.yaml").write_text("base: &b {lr: 1.0e-3}\nours: {<<: *b, steps: 3}\nother: *b\n")
    values = load_yaml("x.yaml")
    assert values["ours"] == {"lr": 1e-3, "steps": 3}
    assert values["other"] == {"lr": 1e-3}


@pytest.mark.parametrize(
    "text",
    [
        "x: !!python/object/new:os.system [touch pwned]",
        "x: !!python/name:os.system",
        "!!python/object/apply:builtins.open [pwned, w]",
        "x: !!int ''",
        "x: !!timestamp never",
        "x: !!bool perhaps",
        "x: 0b_",
        "x: " + "9" * 5000,
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "x: \x00",
        "x: *nothing",
        "x: &a {y: *a}",
        "%YAML 9.9\n---\nx: 1",
        "x: 1\n---\nx: 2",
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_is_refused(text):
    Path("x.yaml").write_text(text)
    with pytest.raises(UserError, match="^x.yaml") as caught:
        load_yaml("x.yaml")
    assert "\n" not in str(caught.value)
