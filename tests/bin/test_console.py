"""The program espnet-adaltm: quick help, predictions in every format, exit codes."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from decoding_common import make_scene
from export_common import make_system

from espnet_adaltm import __version__
from espnet_adaltm.bin import main as console
from espnet_adaltm.bin.predict import as_csv, as_table
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.recognizer import EmotionRecognizer, Moment, Prediction

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    torch.set_num_threads(1)
    root = make_scene(tmp_path_factory.mktemp("console"))
    system = load_system(root / "merge", asr_expert=root / "asr")
    EmotionRecognizer(system).save_pretrained(root / "export")
    rng = np.random.default_rng(0)
    for name, size in (("a", 16_000), ("b", 12_000)):
        soundfile.write(root / f"{name}.wav", 0.1 * rng.standard_normal(size), 16_000)
    return root


@pytest.fixture
def run(scene, monkeypatch, capsys):
    """Run the program in the scene's folder: exit status, output, errors."""
    monkeypatch.chdir(scene)
    monkeypatch.delenv("ADALTM_MODEL", raising=False)

    def call(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = 0
        try:
            console.main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def fake(emotion="happy", text=None, speaker=None):
    probabilities = {"angry": 0.125, "happy": 0.875}
    moment = Moment(0.0, 1.5, emotion, probabilities)
    return Prediction(emotion, probabilities, text, speaker, 1.5, (moment,))


@pytest.mark.parametrize("command", ["", *console.COMMANDS])
def test_help_needs_neither_torch_nor_transformers(command):
    if command == "compare":
        pytest.importorskip("espnet_adaltm.bin.compare")
    words = [command, "--help"] if command else ["--help"]
    code = (
        "import sys\nfrom espnet_adaltm.bin.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert shown[0].startswith(f"usage: espnet-adaltm {command}".rstrip())


def test_the_words_of_the_program_itself(run):
    assert run("--version") == (0, f"espnet-adaltm {__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"\n  {name} " in out for name in console.COMMANDS)
    status, out, err = run()
    assert (status, out) == (2, "")
    assert err.startswith("usage: espnet-adaltm COMMAND")
    status, out, err = run("predit", "x.wav")
    assert (status, out) == (2, "")
    assert "unknown command 'predit' (did you mean 'predict'?)" in err
    assert run("predict", "--no_such_option")[0] == 2


def test_python_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "espnet_adaltm", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"espnet-adaltm {__version__}\n"


def test_predictions_as_json(run, scene):
    status, out, err = run("predict", "-m", "export", "a.wav", "b.wav", "--format", "json")
    assert (status, err) == (0, "")
    first, second = json.loads(out)
    expected = EmotionRecognizer.from_pretrained(scene / "export").predict(scene / "a.wav")
    assert first["recording"] == "a.wav"
    assert first["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert first["text"] == expected.text
    assert second["seconds"] == 0.75
    assert len(second["timeline"]) == 1


def test_predictions_as_csv_into_a_file(run, scene, tmp_path):
    out = tmp_path / "said.csv"
    words = ("predict", "-m", scene / "merge", "dump/test/wav.scp", "--format", "csv", "-o", out)
    status, printed, _ = run(*words)
    assert (status, printed) == (0, "")
    rows = list(csv.DictReader(out.open()))
    assert [row["recording"] for row in rows] == [f"u{index}" for index in range(10)]
    for row in rows:
        values = {name: float(row[name]) for name in ("angry", "happy", "sad")}
        assert sum(values.values()) == pytest.approx(1, abs=3e-6)
        assert max(values, key=values.get) == row["emotion"]
        assert row["text"] == row["speaker"] == ""


def test_tables_are_columns_for_people():
    rows = [("a.wav", fake(text="hello there")), ("longer/name.wav", fake("angry", text="no"))]
    assert as_table(rows) == (
        "recording        seconds  emotion  angry %  happy %  text\n"
        "a.wav               1.50  happy       12.5     87.5  hello there\n"
        "longer/name.wav     1.50  angry       12.5     87.5  no\n"
    )
    assert as_table([]) == as_csv([]) == ""
    assert as_csv([("x", fake(speaker="ann", text='"so", he said'))]) == (
        "recording,seconds,emotion,angry,happy,speaker,text\n"
        'x,1.500,happy,0.125000,0.875000,ann,"""so"", he said"\n'
    )


def test_standard_input_is_audio_or_a_list(run, scene, monkeypatch):
    monkeypatch.setenv("ADALTM_MODEL", "export")
    piped = run("predict", "-", "--format", "json", stdin=(scene / "a.wav").read_bytes())
    listed = run("predict", "--files_from", "-", "--format", "json", stdin=b"a.wav\n\n")
    assert piped[0] == listed[0] == 0
    (first,), (second,) = json.loads(piped[1]), json.loads(listed[1])
    assert first.pop("recording") == "standard input"
    assert second.pop("recording") == "a.wav"
    assert first == second


def test_broken_recordings_are_named_and_the_others_told(run, tmp_path):
    status, out, err = run("predict", "-m", "export", "a.wav", "gone.wav", "b.wav")
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == ["recording", "a.wav", "b.wav"]
    assert err.splitlines() == [
        "error: gone.wav does not exist",
        "error: 1 of 3 recording(s) could not be read",
    ]


def test_timelines_are_drawn(run, tmp_path):
    picture = tmp_path / "time.png"
    windows = ("--window", "0.5", "--step", "0.25", "--format", "json")
    status, out, _ = run(
        "predict", "-m", "export", "a.wav", "b.wav", *windows, "--timeline", picture
    )
    assert status == 0
    assert picture.read_bytes().startswith(PNG)
    assert [len(row["timeline"]) for row in json.loads(out)] == [6, 3]  # steps of whole frames
    status, _, err = run("predict", "-m", "export", *["a.wav"] * 21, "--timeline", picture)
    assert status == 1
    assert "a timeline of 21 recordings would be too long" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--model is missing"),
        (("-m", "export"), "no recording is given"),
        (("-m", "export", "-", "-"), "standard input can be read once"),
        (("-m", "export", "--files_from", "gone"), "--files_from gone cannot be read"),
        (("-m", "nowhere", "a.wav"), "nowhere is neither a folder nor a model"),
        (("-m", "base", "a.wav"), "recognizer.json is missing"),
        (("-m", "export", "a.wav", "--window", "0"), "windows of 0 s"),
        (("-m", "export", "a.wav", "--device", "cuda"), "no GPU is usable here"),
        (("-m", "export", "."), "is a folder without wav.scp"),
        (("-m", "export", "echo |"), "is a shell command, which is not run"),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    status, out, err = run("predict", *words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_info_of_an_export_and_of_what_it_came_from(run):
    status, out, _ = run("info", "export", "--format", "json")
    found = json.loads(out)
    assert status == 0
    assert found["recognizer"]["labels"] == ["angry", "happy", "sad"]
    assert found["encoder"]["layers"] == 2
    assert found["encoder"]["frame (ms)"] == 20.0
    assert found["classes of transformers"] == ["WavLMForCTC"]
    base = json.loads(run("info", "base", "--format", "json")[1])["parameters"]
    # the factors of weight norm are stored: a magnitude more for each of the 8 positions
    assert base["model.safetensors"] == {
        "encoder": found["parameters"]["model.safetensors"]["encoder"]
    }
    assert found["parameters"]["model.safetensors"]["heads"] > 0
    status, out, _ = run("info", "merge")
    assert status == 0
    assert "coefficients\n  group   asr    ser\n  block0  0.000  0.000\n" in out
    assert "emotions" in out
    status, _, err = run("info", ".")
    assert status == 1
    assert "holds no model" in err


def test_info_counts_numbers(run, tmp_path):
    system = make_system(tmp_path)
    EmotionRecognizer(system).save_pretrained(tmp_path / "out")
    found = json.loads(run("info", tmp_path / "out", "--format", "json")[1])["parameters"]
    heads = sum(t.numel() for n, t in system.state_dict().items() if not n.startswith("encoder."))
    assert found["model.safetensors"]["heads"] == heads
    assert found["model.safetensors"]["encoder"] == 16 + sum(
        t.numel() for t in system.encoder.state_dict().values()
    )


def test_merge_is_the_module_of_the_pipeline(run, tmp_path):
    status, _, err = run("merge", "--base", "base", "--out", tmp_path / "out")
    assert status == 1
    assert err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_merged_encoder_is_told_to_have_no_head(run, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "method: task_arithmetic\nweights: {asr: 0.5, ser: 0.5}\n"
    )
    words = ["--base", "base", "--experts", "asr=asr", "ser=ser", "--out", tmp_path / "merged"]
    assert run("merge", "--config", tmp_path / "recipe.yaml", *words)[0] == 0
    status, out, err = run("predict", "-m", tmp_path / "merged", "a.wav")
    assert (status, out) == (1, "")
    assert f"{tmp_path}/merged is a merged encoder without an emotion head" in err
    assert "run stage" not in err


def test_export_writes_everything_and_uploads_nothing(run, scene, tmp_path, monkeypatch):
    import huggingface_hub

    uploads = []

    class Api:
        def create_repo(self, name, **options):
            uploads.append((name, options))

        def upload_folder(self, repo_id, folder_path):
            uploads.append((repo_id, folder_path))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    out = tmp_path / "export"
    words = ("export", "--system", "merge", "--asr_expert", "asr", "--out", out)
    status, printed, _ = run(*words, "--labels", "labels.json", "--recipe", "mini")
    assert (status, printed) == (0, f"written: {out}\n")
    assert not uploads
    assert (out / "coefficients.png").read_bytes().startswith(PNG)
    assert read_json(out / "about.json")["method"] == "adaltm"
    assert "Merge `adaltm`" in (out / "README.md").read_text()
    assert run("predict", "-m", out, "a.wav")[0] == 0
    status, _, err = run(*words, "--push_to_hub", "not a name")
    assert status == 1
    assert "not a name is no name of a model on the Hub" in err
    assert run(*words, "--push_to_hub", "user/model", "--private")[0] == 0
    assert uploads == [
        ("user/model", {"private": True, "exist_ok": True}),
        ("user/model", str(out)),
    ]


def test_an_expert_of_words_is_not_exported(run, tmp_path):
    words = ("export", "--system", "asr", "--base", "base", "--out", tmp_path / "out")
    status, _, err = run(*words)
    assert status == 1
    assert "recognises no emotions" in err
    assert not (tmp_path / "out").exists()


def test_interrupted_and_piped_into_head(monkeypatch, tmp_path):
    module = type(sys)("espnet_adaltm.bin.score")
    monkeypatch.setitem(sys.modules, "espnet_adaltm.bin.score", module)

    def interrupted(words):
        raise KeyboardInterrupt

    module.main = interrupted
    with pytest.raises(SystemExit) as end:
        console.main(["score"])
    assert end.value.code == 130
    write_json(tmp_path / "many.json", list(range(10)))
    code = "from espnet_adaltm.bin.main import main; main(['--help'])"
    shell = f'{sys.executable} -c "{code}" | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout.splitlines()[1] == "0"
    assert done.stderr == ""
