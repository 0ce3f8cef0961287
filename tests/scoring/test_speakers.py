"""Who speaks: accuracies by hand, what is refused, and where they are shown."""

import csv
import re

import pytest
from scoring_common import LABELS, make_dump, make_system

from espnet_adaltm.bin import report, score
from espnet_adaltm.data.leaky_split import NAME
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.published import compare
from espnet_adaltm.scoring.readers import read_hypothesis, read_reference
from espnet_adaltm.scoring.speakers import held_out_rows, score_answers

KNOWN = ["s0", "s1", "s2"]  # of the six that speak


def make_joint(folder, dump, wrong, aside=0):
    """A system that also names speakers, ``wrong`` of them, with some utterances put aside."""
    make_system(folder, dump)
    (folder / "merge.json").unlink()
    write_json(
        folder / "baseline.json",
        {"kind": "mtlser", "labels": list(LABELS.labels), "speakers": KNOWN},
    )
    truth = read_scp(dump / "utt2spk")
    said = {}
    for index, (utt, speaker) in enumerate(truth.items()):
        known = KNOWN.index(speaker) if speaker in KNOWN else 0
        said[utt] = KNOWN[(known + (index in wrong)) % 3]
    write_scp(folder / "decode" / dump.name / "utt2spk_hyp", said)
    if aside:
        held = {f"t{i}": KNOWN[i % 3] for i in range(10)}
        write_scp(folder / "held_out/utt2spk", held)
        other = dict(held)
        other |= {f"t{i}": KNOWN[(i + 1) % 3] for i in range(aside)}
        write_scp(folder / "held_out/utt2spk_hyp", other)
    return folder


@pytest.fixture
def dump(tmp_path):
    return make_dump(tmp_path / "dump" / "test")


def test_only_speakers_of_the_training_count(tmp_path, dump):
    # utterance i is of speaker i % 6: of the wrong ones, 0, 6 and 8 are of known speakers
    system = make_joint(tmp_path / "x", dump, wrong={0, 3, 6, 8, 11}, aside=3)
    answers = read_hypothesis(system, read_reference(dump, LABELS), LABELS).speakers
    assert (len(answers.right), answers.speakers, answers.unseen) == (30, 3, 30)
    assert sum(answers.right.values()) == 27
    out = tmp_path / "results.json"
    words = ["--system", str(system), "--name", "joint", "--dumps", str(dump)]
    score.main([*words, "--labels", str(dump.parent / "labels.json"), "--out", str(out)])
    results = read_json(out)
    found = results["sets"]["test"]["speaker"]
    assert found["metrics"]["spk_acc"]["value"] == pytest.approx(0.9)
    assert 0.7 < found["metrics"]["spk_acc"]["low"] < 0.85
    assert found["unseen"] == 30
    assert results["held_out_speakers"]["metrics"]["spk_acc"]["value"] == pytest.approx(0.7)
    assert results["held_out_speakers"]["utterances"] == 10


def test_a_set_of_strangers_has_no_accuracy(tmp_path, dump, capsys):
    write_scp(dump / "utt2spk", dict.fromkeys(read_scp(dump / "wav.scp"), "stranger"))
    system = make_joint(tmp_path / "x", dump, wrong=set())
    answers = read_hypothesis(system, read_reference(dump, LABELS), LABELS).speakers
    scores = score_answers(answers, resamples=10, level=0.95, seed=0)
    assert scores == {"utterances": 0, "speakers": 0, "unseen": 60}


def test_inconsistent_answers_are_refused(tmp_path, dump):
    system = make_joint(tmp_path / "x", dump, wrong=set())
    path = system / "decode/test/utt2spk_hyp"
    lines = path.read_text().splitlines()
    reference = read_reference(dump, LABELS)
    path.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(UserError, match="utt2spk_hyp lacks utterance 'u000'"):
        read_hypothesis(system, reference, LABELS)
    path.write_text("\n".join(["u000 s5", *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="names the speaker 's5', which .*baseline.json lacks"):
        read_hypothesis(system, reference, LABELS)
    write_json(system / "baseline.json", {"labels": ["happy", "angry", "sad"]})
    with pytest.raises(UserError, match="label lists differ in their order"):
        read_hypothesis(system, reference, LABELS)


def run_report(tmp_path, dump, *systems):
    places = ["--dumps", str(dump), "--labels", str(dump.parent / "labels.json")]
    options = ["--out_dir", str(tmp_path / "out"), "--resamples", "50", "--plots", "false"]
    report.main([*places, *options, "--systems", *systems])
    return (tmp_path / "out/RESULTS.md").read_text(), read_json(tmp_path / "out/results.json")


def test_tables_have_a_column_if_any_system_knows_speakers(tmp_path, dump):
    plain = make_system(tmp_path / "plain", dump, wrong={0, 1})
    text, _ = run_report(tmp_path, dump, f"plain={plain}")
    assert "speaker acc." not in text
    assert "Speakers of the training" not in text
    one = make_joint(tmp_path / "one", dump, wrong={0, 6, 12}, aside=1)
    two = make_joint(tmp_path / "two", dump, wrong=set(), aside=3)
    text, result = run_report(tmp_path, dump, f"plain={plain}", f"j:1={one}", f"j:2={two}")
    header = text.partition("|system|seeds|")[2].splitlines()[0].strip("|").split("|")
    assert header[-1] == "speaker acc."
    row = next(line for line in text.splitlines() if line.startswith("|j|2|")).strip("|").split("|")
    assert row[-1].startswith("**95.0 ±") or row[-1].startswith("95.0 ±")  # of 90 and 100
    plain_row = next(line for line in text.splitlines() if line.startswith("|plain|1|"))
    assert plain_row.endswith("|-|")
    assert result["systems"]["j"]["sets"]["test"]["all"]["spk_acc"]["seeds"] == [0.9, 1.0]
    assert "|j|2|3|10|80.0 (70.0 to 90.0)|" in text


def test_held_out_rows_skip_systems_without(tmp_path, dump):
    joint = make_joint(tmp_path / "x", dump, wrong=set(), aside=2)
    rows = list(held_out_rows({"none": [tmp_path], "x": [joint]}))
    assert rows == [["x", "1", "3", "10", "80.0"]]


def test_every_table_of_the_leaky_split_says_so(tmp_path):
    dump = make_dump(tmp_path / "dump" / NAME)
    joint = make_joint(tmp_path / "joint", dump, wrong={0})
    plain = make_system(tmp_path / "plain", dump, wrong={0, 1})
    systems = (f"joint={joint}", f"plain={plain}", "--compare", "joint:plain")
    text, result = run_report(tmp_path, dump, *systems)
    tables = [line for line in text.splitlines() if line.startswith("|---")]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    marked = [line for line in rows if "(published_leaky split)|" in line]
    assert len(tables) == len(marked) >= 6
    assert "**Split `published_leaky`: a random tenth" in text
    assert list(result["systems"]["joint"]["sets"]) == [NAME]
    with (tmp_path / "out/results.csv").open(newline="") as handle:
        assert {row["set"] for row in csv.DictReader(handle)} == {NAME}
    latex = (tmp_path / "out/results.tex").read_text()
    captions = re.findall(r"\\caption\{(.*)", latex)
    assert len(captions) == latex.count(r"\toprule") == 2
    assert all("set published\\_leaky:" in caption for caption in captions)
    page = (tmp_path / "out/report.html").read_text()
    headings = re.findall(r'<section id="published_leaky-.*?<h2>(.*?)</h2>', page, re.DOTALL)
    assert len(headings) >= 4
    assert all(heading.endswith(" (published_leaky split)") for heading in headings)
    assert "Speaker-dependent and optimistic: not comparable" in page
    # Beside published results, which are of other sets, it does not appear at all.
    eight = {**result, "labels": list("abcdefgh")}
    document = compare(eight)
    assert "Not measured by us: test1, test1+test2, test2." in document
    assert document.replace("published_leaky", "") == document
    none = {**eight, "systems": {"joint": {**result["systems"]["joint"], "sets": {}}}}
    assert document == compare(none)
