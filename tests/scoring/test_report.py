import json
import subprocess
import sys

import numpy as np
import pytest
from scoring_common import make_dump, make_system

from espnet_adaltm.bin import report
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring import environment, tables, vector_plots
from espnet_adaltm.scoring.seeds import Seeds


@pytest.fixture
def arguments(tmp_path):
    dump = make_dump(tmp_path / "dump" / "test", size=240)
    make_system(tmp_path / "good1", dump, set(range(24)), {1})
    make_system(tmp_path / "good2", dump, set(range(36)), {2})
    make_system(tmp_path / "bad", dump, set(range(120)), set(range(60)))
    make_system(tmp_path / "asr", dump, emotion=False)
    write_json(tmp_path / "base.json", {"kind": "pretrained", "unit_accuracy": 0.23456})
    names = f"good:1={tmp_path}/good1 good:2={tmp_path}/good2 bad={tmp_path}/bad"
    return [
        *("--systems", f"asr={tmp_path}/asr {names}", "--dumps", str(dump)),
        *("--labels", str(dump.parent / "labels.json"), "--compare", "good:bad"),
        *("--out_dir", str(tmp_path / "out"), "--recipe", "demo", "--resamples", "200"),
        *("--base", str(tmp_path), "--command", "./run.sh --size full", "--note", "A toy."),
    ]


def _cells(text, start):
    line = next(line for line in text.splitlines() if line.startswith(start))
    return line.strip("|").split("|")


def test_report_says_what_the_numbers_say(arguments, tmp_path, capsys):
    report.main([*arguments, "--plots", "false"])
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    good, bad, asr = (_cells(text, f"|{name}|") for name in ("good", "bad", "asr"))
    assert good[1] == "2"
    assert good[2].startswith("**87.5 ±")  # the mean over seeds, 0.9 and 0.85
    assert good[4].startswith("**87.5 ±")
    assert "σ 3.5" in good[4]
    assert bad[4].startswith("50.0 ±")
    assert "σ" not in bad[4]
    # nearly as good as good: neither bold nor starred; bad is told from good in every column
    assert asr[2:] == ["-", "-", "-", "0.0 ±0.0", "0.0 ±0.0", "-"]
    assert bad[4].endswith(" \\*")
    assert "\\*" not in "".join(good)
    tests = _cells(text, "|good - bad|all|WA|")
    assert tests[3] == "**+37.5** \\*\\*"
    assert tests[5:7] == ["0.010", "0.010"]
    # bad is wrong on the 24 utterances that good is wrong on, and on 96 others: 2 / 2^96
    assert _cells(text, "|good - bad|1, -|")[2:] == ["96", "0", "2.5e-29", "3.1e-22"]
    for expected in (
        "# Results of demo",
        "A toy.",
        "./run.sh --size full",
        "- unit accuracy: `0.2346`",
        f"- espnet version: `espnet {environment.version('espnet')}`",
        "  - Commit date: `",
        "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|",
        "|system|macro-F1|by utterance, percentile|by utterance, BCa|by speaker, percentile|",
        "|good|27.5 ±",  # 0.9 and 0.85 right, 0.6 sure: the mean of 0.3 and 0.25
        "### Macro-F1 by channel (utterances)",
        # 81, 81 and 78 of 240 utterances, in all of them a class is a third
        "voice alone would reach WA 78.3, of the words alone\n77.5",
    ):
        assert expected in text, expected
    assert "\\*: differs from `good`, p < 0.05 in the two-sided" in " ".join(text.split())
    assert str(tmp_path) not in text
    shown = capsys.readouterr().out
    assert "**" not in shown
    assert "σ" not in shown
    assert "87.5 ±" in shown
    assert shown.count("CER") == 1
    assert max(map(len, shown.splitlines())) < 100


def test_word_and_character_errors_have_a_table_each(arguments, tmp_path):
    report.main([*arguments, "--plots", "false"])
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    words, characters = text.split("### CER")
    word = _cells(words.partition("### WER")[2], "|good_seed1/test|")
    character = _cells(characters, "|good_seed1/test|")
    dump = (tmp_path / "dump" / "test" / "text").read_text().splitlines()
    lines = [line.split(maxsplit=1)[1] for line in dump]
    assert word[1:3] == ["240", str(sum(len(line.split()) for line in lines))]
    assert character[1:3] == ["240", str(sum(map(len, lines)))]
    lost = len(lines[1].split()[0]) + 1  # the first word of the second utterance and a blank
    assert character[5] == f"{100 * lost / sum(map(len, lines)):.1f}"
    assert character[8] == word[8] == "0.4"  # one utterance of 240
    result = read_json(tmp_path / "out" / "results.json")["systems"]["good"]["sets"]["test"]
    assert result["char"]["1"]["Wrd"] == sum(map(len, lines))
    assert result["all"]["cer"]["seeds"][0] == pytest.approx(lost / sum(map(len, lines)))


def test_ceilings_of_the_channels(arguments, tmp_path):
    report.main([*arguments, "--plots", "false"])
    ceilings = read_json(tmp_path / "out" / "results.json")["channel_ceilings"]
    assert ceilings == {"test": pytest.approx({"voice": 188 / 240, "words": 186 / 240})}
    path = tmp_path / "dump" / "test" / "utt2channel"
    path.write_text(path.read_text().replace("voice", "tone"))
    report.main([*arguments, "--plots", "false"])
    assert read_json(tmp_path / "out" / "results.json")["channel_ceilings"] == {}
    assert "alone would reach" not in (tmp_path / "out" / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("./run.sh --size full", "./run.sh --size full"),
        ("./run.sh --nemo_root /home/x/nEMO/", "./run.sh --nemo_root /path/to/nEMO"),
        ("./run.sh --nemo_root=/home/x/nEMO", "./run.sh --nemo_root=/path/to/nEMO"),
        (r"./run.sh --root /home/x/my\ data", "./run.sh --root '/path/to/my data'"),
        (
            r"./run.sh --local_data_opts --a\ /mnt/x/y\ --b\ z",
            "./run.sh --local_data_opts '--a /path/to/y --b z'",
        ),
        (
            r"./run.sh --train_args --c\ a:/x/b,/x/c",
            "./run.sh --train_args '--c a:/path/to/b,/path/to/c'",
        ),
        ("./run.sh --u https://a.org/b/c", "./run.sh --u https://a.org/b/c"),
        (r"./run.sh --seeds 1\ 2 --base ../x/wavlm", "./run.sh --seeds '1 2' --base ../x/wavlm"),
        ("echo 'open /home/x/y", "echo 'open /path/to/y"),
    ],
)  # fmt: skip
def test_commands_are_shown_without_the_places_of_a_machine(typed, shown):
    assert report.without_places(typed) == shown
    assert report.without_places(shown) == shown


def test_aggregated_results_are_the_same_twice(arguments, tmp_path):
    report.main([*arguments, "--plots", "false"])
    first = (tmp_path / "out" / "results.json").read_bytes()
    report.main([*arguments, "--plots", "false"])
    assert (tmp_path / "out" / "results.json").read_bytes() == first
    assert str(tmp_path) not in first.decode()
    assert "date" not in read_json(tmp_path / "out" / "results.json")


def test_pictures_are_drawn_and_linked(arguments, tmp_path):
    rng = np.random.default_rng(0)
    for seed in ("good1", "good2"):
        epochs = (0.5 + 0.01 * rng.standard_normal((4, 2, 3)).cumsum(0)).tolist()
        write_json(
            tmp_path / seed / "coefficients.json",
            {
                "tasks": ["asr", "ser"],
                "groups": ["block0", "block1", "block2"],
                "epochs": epochs,
                "best_epoch": 4,
                "final": epochs[-1],
            },
        )
        history = {str(e): {"train": {"loss": 1 / e}, "valid": {"loss": 2 / e}} for e in (1, 2)}
        write_json(tmp_path / seed / "history.json", history)
    (tmp_path / "pretrain").mkdir()
    write_json(tmp_path / "pretrain" / "history.json", history)
    constant = {"tasks": ["asr"], "groups": ["all"], "epochs": [[[0.5]]] * 3, "final": [[0.5]]}
    write_json(tmp_path / "bad" / "coefficients.json", constant)
    write_json(tmp_path / "asr" / "coefficients.json", {**constant, "tasks": [], "final": []})
    write_json(
        tmp_path / "similarity.json",
        {
            "blocks": ["block0", "block1"],
            "relative_norm": {"asr": [0.0, 0.1], "ser": [0.0, 0.2]},
            "cosine": {"asr,ser": [None, 0.3]},
        },  # as an earlier version left it: no modules, no signs
    )
    report.main([*arguments, "--task_vectors", str(tmp_path)])
    drawn = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert drawn == {
        "coefficients_good.png",
        "coefficients_good_epochs.png",
        "confusion_bad_test.png",
        "confusion_good_test.png",
        "reliability_test.png",
        "task_vectors.json",
        "task_vectors.png",
        "trade_off_test.png",
        "training.png",
        "training_compared.png",
    }
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert all(f"](plots/{name})" in text for name in drawn if name.endswith(".png"))


SIMILARITY = {
    "tasks": ["asr", "ser"],
    "blocks": ["block0", "block1"],
    "relative_norm": {"asr": [0.0, 0.1], "ser": [0.0, 0.2]},
    "cosine": {"asr,ser": [None, 0.3]},
    "sign_conflict": {"asr,ser": [None, 0.4]},
    "modules": {
        "groups": ["block0.cnn", "block1.attention", "block1.norm"],
        "relative_norm": {"asr": [0.0, 0.1, 0.2], "ser": [0.0, 0.2, 0.3]},
        "cosine": {"asr,ser": [None, 0.3, 0.1]},
        "sign_conflict": {"asr,ser": [None, 0.4, 0.5]},
    },
}


def test_task_vectors_of_several_seeds_are_averaged_and_their_numbers_lie_beside(
    arguments, tmp_path
):
    second = json.loads(json.dumps(SIMILARITY).replace("0.3", "0.5").replace("[0.0", "[null"))
    for seed, similarity in enumerate((SIMILARITY, second)):
        write_json(tmp_path / str(seed) / "similarity.json", similarity)
    folders = [str(tmp_path / str(seed)) for seed in (0, 1)]
    write_json(tmp_path / "lines.json", LINES)
    report.main(
        [*arguments, "--task_vectors", *folders, "--connectivity", f"{tmp_path}/lines.json"]
    )
    plots = tmp_path / "out" / "plots"
    mean = read_json(plots / "task_vectors.json")
    assert mean["cosine"] == {"asr,ser": [None, pytest.approx(0.4)]}
    assert mean["relative_norm"]["asr"] == [None, pytest.approx(0.1)]
    assert mean["modules"]["relative_norm"]["ser"] == [None, 0.2, pytest.approx(0.4)]
    assert mean["modules"]["groups"] == SIMILARITY["modules"]["groups"]
    assert read_json(plots / "connectivity.json") == LINES
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "![task vectors by module, mean of 2 seeds](plots/task_vectors_modules.png)" in text
    assert "](plots/connectivity.png)" in text
    assert (plots / "connectivity.png").stat().st_size > 5_000


def test_reports_of_different_encoders_have_no_mean():
    other = {**SIMILARITY, "blocks": ["block0"]}
    with pytest.raises(ValueError, match="different blocks"):
        vector_plots.mean_similarity([SIMILARITY, other])
    assert vector_plots.mean_similarity([SIMILARITY]) == SIMILARITY


LINES = {
    "set": "dev",
    "points": [0.0, 0.5, 1.0],
    "lines": [
        {
            "from": "base",
            "to": end,
            "emotion": {
                "ser_expert": {"loss": [2.0, 1.0, 0.5], "macro_f1": [0.1, 0.5, 0.6]},
                "adaltm": {"loss": [2.0, 1.0, 0.4], "macro_f1": [0.1, 0.5, 0.7]},
            },
            "words": {"loss": [3.0, 3.5, 1.0], "wer": [1.0, 1.0, 0.3]},
        }
        for end in ("asr", "adaltm")
    ],
}


def test_training_of_experts_with_seeds_is_drawn_with_the_experts(arguments, tmp_path):
    """CTC losses among those of the merges would hide them."""
    for seed, loss in (("good1", 1.0), ("good2", 3.0)):
        write_json(tmp_path / seed / "history.json", {"1": {"train": {"loss": loss}}})
        write_json(tmp_path / seed / "expert.json", {"kind": "ser"})
    report.main(arguments)
    drawn = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert "training.png" in drawn
    assert "training_compared.png" not in drawn


def test_plain_and_markdown_tables():
    header, rows = ["system", "n"], [["a", "1"], ["long name", "10"]]
    assert tables.plain(header, rows) == "\n".join(
        ["system      n", "-------------", "a           1", "long name  10"]
    )
    assert tables.markdown(header, rows).splitlines() == [
        "|system|n|",
        "|---|---:|",
        "|a|1|",
        "|long name|10|",
    ]


def test_percent_shows_half_the_interval():
    values = np.linspace(0.4, 0.6, 1001)[None]
    assert tables.percent(Seeds(np.array([0.5]), values)) == "50.0 ±9.5"
    two = Seeds(np.array([0.49, 0.51]), np.concatenate([values, values]))
    assert tables.percent(two) == "50.0 ±9.5 σ 1.4"


def test_environment_names_versions_and_revision(tmp_path):
    facts = environment.environment()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["numpy"] == np.__version__
    assert environment.version("no-such-package") == "not installed"
    assert environment.git_revision(tmp_path / "nowhere") == "unknown"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "a").write_text("a")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    git = ["git", "-C", str(tmp_path), *identity]
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    assert len(environment.git_revision(tmp_path)) >= 7
    (tmp_path / "a").write_text("b")
    assert environment.git_revision(tmp_path).endswith("-dirty")


def test_the_revision_is_taken_before_results_change(arguments, tmp_path, monkeypatch):
    def revision(_):
        return "changed" if (tmp_path / "out").exists() else "clean"

    monkeypatch.setattr(environment, "git_revision", revision)
    report.main(arguments)
    for name in ("RESULTS.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "clean" in text and "changed" not in text


def test_scoring_works_without_torch():
    code = (
        "import sys\n"
        "import espnet_adaltm.bin.score, espnet_adaltm.bin.report, espnet_adaltm.scoring.pictures\n"
        "heavy = {'torch', 'espnet2', 'transformers', 'matplotlib', 'sklearn', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
