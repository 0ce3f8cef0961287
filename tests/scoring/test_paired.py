import numpy as np
import pytest
from scoring_common import LABELS, make_dump, make_system

from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring import breakdown, paired, tables
from espnet_adaltm.scoring.aggregate import aggregate, parse_systems
from espnet_adaltm.scoring.readers import read_reference
from espnet_adaltm.scoring.results import Bootstrap
from espnet_adaltm.scoring.set_scores import score_set

OPTIONS = Bootstrap(resamples=400)


@pytest.fixture
def scene(tmp_path):
    """Two seeds that err on 24 and 36 of 240, one run that errs on 120, and annotators."""
    dump = make_dump(tmp_path / "dump" / "test", size=240)
    shares = {"angry": "angry=0.6 happy=0.2 sad=0.2", "happy": "happy=1.0", "sad": "sad=1.0"}
    emotions = read_scp(dump / "utt2emo")
    write_scp(dump / "utt2soft", {u: shares[e] for u, e in emotions.items()})
    for name, wrong in (("good1", 24), ("good2", 36), ("bad", 120)):
        make_system(tmp_path / name, dump, set(range(wrong)), set(range(wrong // 12)))
    entries = [f"good:1={tmp_path}/good1", f"good:2={tmp_path}/good2", f"bad={tmp_path}/bad"]
    return dump, parse_systems(entries)


def _scores(scene, **options):
    dump, systems = scene
    return score_set(systems, read_reference(dump, LABELS), LABELS, Bootstrap(400, **options))


def test_tests_by_speaker_stand_beside_those_by_utterance(scene):
    scores = _scores(scene)
    (test,) = paired.paired_tests(scores, [("good", "bad")], ["all"], ["wa"], OPTIONS)
    assert list(test.by_unit) == ["utterance", "speaker"]
    utterance = test.by_unit["utterance"]
    assert utterance["p"] == test.p
    assert utterance["percentile"] == [test.low, test.high]
    # The wrong ones are spread evenly over the six speakers: there is nothing to draw.
    low, high = utterance["bca"]
    assert low < test.difference < high
    for kind in ("percentile", "bca"):
        assert test.by_unit["speaker"][kind] == pytest.approx([test.difference] * 2)
    (test,) = paired.paired_tests(
        _scores(scene, unit="speaker"), [("good", "bad")], ["all"], ["wa"],
        Bootstrap(400, unit="speaker", interval="bca"),
    )  # fmt: skip
    assert list(test.by_unit) == ["speaker", "utterance"]
    assert [test.low, test.high] == test.by_unit["speaker"]["bca"]


def test_speakers_are_not_drawn_where_one_is_unknown(scene):
    dump, _ = scene
    known = read_scp(dump / "utt2spk")
    del known["u007"]
    write_scp(dump / "utt2spk", known)
    assert _scores(scene).other_units == {}
    write_scp(dump / "utt2spk", dict.fromkeys(read_scp(dump / "wav.scp"), "one"))
    assert _scores(scene).other_units == {}


@pytest.mark.parametrize(("speakers", "drawn"), [(5, set()), (6, {"speaker"})])
def test_few_speakers_are_not_drawn(scene, speakers, drawn):
    dump, _ = scene
    utterances = enumerate(read_scp(dump / "wav.scp"))
    write_scp(dump / "utt2spk", {utt: f"s{index % speakers}" for index, utt in utterances})
    assert set(_scores(scene).other_units) == drawn


def test_utterances_of_unknown_speakers_stand_for_themselves(scene):
    dump, _ = scene
    write_scp(
        dump / "utt2spk", dict.fromkeys(read_scp(dump / "wav.scp"), "Unknown") | {"u000": "a"}
    )
    reference = read_reference(dump, LABELS)
    clusters = Bootstrap(unit="speaker").clusters(reference, list(reference.utterances))
    assert len(set(clusters)) == 240


def test_mcnemar_of_every_pair_of_seeds(scene):
    scores = _scores(scene)
    found = paired.mcnemar_tests(scores, "good", "bad")
    assert [(t.first, t.second) for t in found] == [(1, None), (2, None)]
    assert [(t.only_first, t.only_second) for t in found] == [(96, 0), (84, 0)]
    same = paired.mcnemar_tests(scores, "good", "good")
    assert [(t.first, t.second, t.p_exact) for t in same] == [(1, 1, 1.0), (2, 2, 1.0)]


def test_stars_are_of_the_reference_and_corrected(scene):
    dump, systems = scene
    scores = _scores(scene)
    tests = paired.run_tests(scores, systems, [("good", "bad")], OPTIONS)
    assert tests.reference == "good"
    assert tests.stars["wa"] == {"bad": "*"}
    assert tests.best["wa"] == "good"
    assert tests.best["wer"] == "good"
    assert tests.best["jsd"] == "good"  # the lower the better
    assert paired.run_tests(scores, systems, [], OPTIONS).stars == {}
    assert paired.reference_system([("a", "b"), ("c", "d"), ("c", "a")]) == "c"
    assert [paired.stars(p) for p in (0.0009, 0.009, 0.049, 0.05)] == ["***", "**", "*", ""]
    header, rows = tables.main_table(scores, systems, OPTIONS, tests)
    assert header[-2:] == ["ECE", "JSD"]
    assert rows[1][4].endswith("\\*")


def test_distance_to_the_annotators(scene):
    """Right on happy: (0.2, 0.6, 0.2) against (0, 1, 0); angry: what they say themselves."""
    scores = _scores(scene)
    near, far = np.array([0.2, 0.6, 0.2]), np.eye(3)[1]
    middle = (near + far) / 2
    bits = near @ np.log2(near / middle) + np.log2(1 / middle[1])
    distance = np.sqrt(bits / 2)
    wrong = score_wrong()
    # angry is taken for happy, happy for sad, sad for angry, in a third of the cases each
    mistakes = (wrong["angry"] + wrong["happy"] + wrong["sad"]) / 3
    right = 2 * distance / 3
    want = [(n * mistakes + (240 - n) * right) / 240 for n in (24, 36)]
    assert scores.get("jsd")["good"].points == pytest.approx(want)


def score_wrong():
    from scipy.spatial.distance import jensenshannon

    truth = {"angry": [0.6, 0.2, 0.2], "happy": [0, 1, 0], "sad": [0, 0, 1]}
    said = {"angry": [0.2, 0.6, 0.2], "happy": [0.2, 0.2, 0.6], "sad": [0.6, 0.2, 0.2]}
    return {name: jensenshannon(truth[name], said[name], base=2) for name in truth}


def test_scores_by_speaker_add_up(scene):
    scores = _scores(scene)
    found = breakdown.by_speaker(scores)
    assert list(found) == [f"s{i}" for i in range(6)]
    assert sum(facts["utterances"] for facts in found.values()) == 240
    mean = np.mean([facts["systems"]["good"]["wa"] for facts in found.values()])
    assert mean == pytest.approx(scores.get("wa")["good"].mean)
    words = dict.fromkeys(found, 0)
    reference = scores.reference
    for utterance, text in reference.texts.items():
        words[reference.speakers[utterance]] += len(text.split())
    errors = sum(facts["systems"]["bad"]["wer"] * words[s] for s, facts in found.items())
    assert errors / sum(words.values()) == pytest.approx(scores.get("wer")["bad"].mean)


def test_most_confused_utterances_come_first(scene):
    dump, _ = scene
    path = dump.parent.parent / "bad/decode/test/utt2prob"
    rows = read_scp(path)
    rows["u005"], rows["u002"] = "0.900000 0.100000 0.000000", "0.900000 0.050000 0.050000"
    write_scp(path, rows)  # both are sad, taken for angry
    scores = _scores(scene)
    found = breakdown.most_confused(scores, "bad", 3)
    assert [entry.utterance for entry in found] == ["u005", "u002", "u000"]
    assert (found[0].truth, found[0].said) == (2, 0)
    assert found[0].votes == {"good": 0, "bad": 0}
    assert found[0].probabilities.tolist() == [0.9, 0.1, 0.0]
    # The twelve that one of its seeds has right are undecided, not confused.
    assert len(breakdown.most_confused(scores, "good", 300)) == 24
    assert breakdown.most_confused(scores, "nobody", 3) == []


def test_json_holds_every_interval(scene):
    dump, systems = scene
    result, (scores,), _ = aggregate(
        systems, [read_reference(dump, LABELS)], LABELS, [("good", "bad")], OPTIONS
    )
    wa = result["systems"]["good"]["sets"]["test"]["all"]["wa"]
    assert {unit: list(kinds) for unit, kinds in wa["intervals"].items()} == {
        "utterance": ["percentile", "bca"],
        "speaker": ["percentile", "bca"],
    }
    assert wa["intervals"]["utterance"]["percentile"] == [wa["low"], wa["high"]]
    assert result["sets"]["test"]["with_soft"] == 240
    assert result["confusions"]["test"]["bad"] == scores.confusions["bad"].tolist()
    assert sum(row["count"] for row in result["reliability"]["test"]["good"]) == 480
