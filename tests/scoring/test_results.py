import json

import numpy as np
import pytest
from scoring_common import LABELS, make_dump, make_system, replace_line

from espnet_adaltm.bin import score
from espnet_adaltm.data.tokens import train_tokens
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.readers import read_hypothesis, read_reference, read_references
from espnet_adaltm.scoring.results import Bootstrap, score_system


@pytest.fixture
def dump(tmp_path):
    return make_dump(tmp_path / "dump" / "test")


@pytest.fixture
def system(tmp_path, dump):
    return make_system(tmp_path / "exp", dump, wrong=set(range(12)), deleted={0, 7})


def _score(system, dump, **options):
    references = [read_reference(dump, LABELS)]
    return score_system(system, references, LABELS, name="x", options=Bootstrap(**options))


def test_known_errors_give_known_scores(system, dump):
    result = _score(system, dump)["sets"]["test"]
    emotion = result["emotion"]
    assert result["utterances"] == 60
    # 4 of 20 of every class are taken for the next one
    assert emotion["confusion"] == [[16, 4, 0], [0, 16, 4], [4, 0, 16]]
    for metric in ("macro_f1", "uar", "wa", "weighted_f1", "macro_precision"):
        value = emotion["metrics"][metric]
        assert value["value"] == pytest.approx(0.8)
        assert 0.66 < value["low"] < 0.74
        assert 0.86 < value["high"] < 0.93
    assert emotion["calibration_error"] == pytest.approx(0.8 - 0.6)
    assert emotion["metrics"]["ece"]["value"] == pytest.approx(0.8 - 0.6)
    # right: 0.4^2 + 2 * 0.2^2; wrong: 0.6^2 + 0.8^2 + 0.2^2
    assert emotion["metrics"]["brier"]["value"] == pytest.approx(0.8 * 0.24 + 0.2 * 1.04)
    (bin_,) = emotion["reliability"]
    assert (bin_["count"], bin_["confidence"]) == (60, pytest.approx(0.6))
    assert bin_["low"] < 0.6 <= bin_["high"] + 1e-12
    assert emotion["absent_classes"] == []
    # the first 12 utterances: 6 of `both`, of `voice` and `words` 3 each
    wa = {name: c["metrics"]["wa"]["value"] for name, c in emotion["channels"].items()}
    counts = {name: c["utterances"] for name, c in emotion["channels"].items()}
    assert counts == {"both": 21, "voice": 21, "words": 18}
    assert wa == pytest.approx({"both": 15 / 21, "voice": 18 / 21, "words": 15 / 18})
    # 21, 21 and 18 utterances, each class 7, 7 and 6 times: 18 * 2/3 or 21 * 2/3 are out of reach
    ceilings = emotion["channel_ceilings"]
    assert ceilings == pytest.approx({"voice": 1 - 12 / 60, "words": 1 - 14 / 60})
    word = result["asr"]["word"]
    assert word["Snt"] == 60
    assert word["Del"] == pytest.approx(100 * 2 / word["Wrd"])
    assert (word["Sub"], word["Ins"]) == (0, 0)
    assert word["S.Err"] == pytest.approx(100 * 2 / 60)
    assert result["asr"]["metrics"]["wer"]["value"] == pytest.approx(word["Err"] / 100)


def test_references_may_cover_a_part_of_the_set(tmp_path):
    dump = make_dump(tmp_path / "dump" / "dev", unlabelled=30)
    system = make_system(tmp_path / "exp", dump, wrong={0, 40, 41})
    emotion = _score(system, dump)["sets"]["dev"]["emotion"]
    assert emotion["utterances"] == 30
    assert emotion["metrics"]["wa"]["value"] == pytest.approx(29 / 30)


def test_a_class_absent_from_the_reference_counts_as_zero(tmp_path, dump):
    path = dump / "utt2emo"
    path.write_text("".join(f"{li}\n" for li in path.read_text().splitlines() if "sad" not in li))
    system = make_system(tmp_path / "exp", dump)
    emotion = _score(system, dump)["sets"]["test"]["emotion"]
    assert emotion["absent_classes"] == ["sad"]
    assert emotion["metrics"]["uar"]["value"] == pytest.approx(2 / 3)
    assert emotion["metrics"]["wa"]["value"] == 1.0


def test_systems_with_one_output_get_one_part(tmp_path, dump):
    asr = make_system(tmp_path / "asr", dump, emotion=False)
    ser = make_system(tmp_path / "ser", dump, text=False)
    assert list(_score(asr, dump)["sets"]["test"]) == ["utterances", "asr"]
    assert list(_score(ser, dump)["sets"]["test"]) == ["utterances", "emotion"]


def test_resampling_by_speaker_changes_the_interval_only(system, dump):
    # all errors are in the first 12 utterances: two of each speaker, so nothing varies
    by_speaker = _score(system, dump, unit="speaker")["sets"]["test"]["emotion"]["metrics"]["wa"]
    assert by_speaker == {"value": pytest.approx(0.8), "low": 0.8, "high": 0.8, "bca": [0.8, 0.8]}
    (dump / "utt2spk").unlink()
    with pytest.raises(UserError, match="'u000' has no speaker"):
        _score(system, dump, unit="speaker")


def test_kind_of_interval_is_a_choice(system, dump):
    percentile, bca = (
        _score(system, dump, interval=kind)["sets"]["test"]["emotion"]["metrics"]["macro_f1"]
        for kind in ("percentile", "bca")
    )
    assert percentile["bca"] == bca["bca"] == [bca["low"], bca["high"]]
    assert (percentile["low"], percentile["high"]) != (bca["low"], bca["high"])
    assert percentile["value"] == bca["value"]


def test_program_writes_the_same_bytes_twice(system, dump, tmp_path, capsys):
    arguments = f"--system {system} --name adaltm --seed 3 --dumps {dump} "
    arguments += f"--labels {dump.parent / 'labels.json'} --out {tmp_path}/results.json"
    score.main(arguments.split())
    first = (tmp_path / "results.json").read_bytes()
    score.main(arguments.split())
    assert (tmp_path / "results.json").read_bytes() == first
    value = json.loads(first)
    assert (value["system"], value["seed"]) == ("adaltm", 3)
    options = {"resamples": 10_000, "level": 0.95, "seed": 0, "unit": "utterance"}
    assert value["bootstrap"] == {**options, "interval": "percentile"}
    assert "macro_f1 80.0 [" in capsys.readouterr().out
    assert str(tmp_path) not in first.decode()


BROKEN = {
    "missing": ("utt2prob", 5, "", r"utt2prob lacks 1 utterance\(s\) \(u005\)"),
    "extra": ("utt2emo", 59, "u059 sad\nu999 sad", r"has 1 utterance\(s\) \(u999\)"),
    "duplicate": ("utt2prob", 5, "u004 0.6 0.2 0.2", "utt2prob:6: duplicate key 'u004'"),
    "nan": ("utt2prob", 5, "u005 nan 0.2 0.2", "'u005' has a probability that is not finite"),
    "sum": ("utt2prob", 5, "u005 0.5 0.2 0.2", "'u005'.* sum to 0.9"),
    "negative": ("utt2prob", 5, "u005 1.2 -0.4 0.2", "'u005'.* non-negative"),
    "columns": ("utt2prob", 5, "u005 0.5 0.5", "'u005' has 2 probabilities, expected 3"),
    "words": ("utt2prob", 5, "u005 a b c", "'u005'.* not numbers"),
    "contradiction": ("utt2emo", 20, "u020 angry", "'u020' is 'angry'.* highest at 'sad'"),
    "unknown": ("utt2emo", 20, "u020 bored", "'u020': unknown emotion 'bored'"),
    "missing text": ("text", 3, "", r"text lacks 1 utterance\(s\) \(u003\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_outputs_are_refused_by_name(system, dump, case):
    name, number, line, message = BROKEN[case]
    replace_line(system / "decode" / "test" / name, number, line)
    with pytest.raises(UserError, match=message):
        read_hypothesis(system, read_reference(dump, LABELS), LABELS)


def test_other_labels_are_refused(system, dump):
    write_json(system / "expert.json", {"kind": "ser", "labels": ["happy", "angry", "sad"]})
    with pytest.raises(UserError, match=r"expert.json: the label lists differ in their order"):
        read_hypothesis(system, read_reference(dump, LABELS), LABELS)


def test_undecoded_system_names_the_stage(dump, tmp_path):
    with pytest.raises(UserError, match=r"nothing/decode/test has neither.* stage `decode`"):
        read_hypothesis(tmp_path / "nothing", read_reference(dump, LABELS), LABELS)


def test_empty_hypotheses_are_deletions(system, dump):
    lengths = [len(line.split()) - 1 for line in (dump / "text").read_text().splitlines()]
    replace_line(system / "decode" / "test" / "text", 20, "u020")
    got = read_hypothesis(system, read_reference(dump, LABELS), LABELS).words
    assert got.deletions[20] == lengths[20]
    assert got.errors.sum() == 2 + lengths[20]


SPELLINGS = ("The  Red DOOR", "the red door ajar", "\u017b\u00f3\u0142\u0107 cafe\u0301")
FOLDED = ("the red door", "the red door ajar", "\u017c\u00f3\u0142\u0107 caf\u00e9")


def _spelled(dump, system, lowercase):
    """Three utterances and their transcripts by a system with such tokens; returns the errors."""
    utterances = read_scp(dump / "wav.scp")
    chosen = dict(zip(utterances, SPELLINGS))
    write_scp(dump / "text", chosen)
    folder = system / "decode/test"
    write_scp(folder / "text", dict.fromkeys(utterances, "") | dict(zip(utterances, FOLDED)))
    if lowercase is not None:
        model = train_tokens([*SPELLINGS, *FOLDED], "char", lowercase=lowercase)
        (folder / "tokens.model").write_bytes(model)
    words = read_hypothesis(system, read_reference(dump, LABELS), LABELS).words
    assert words.lengths.tolist() == [3, 4, 2]
    return words.errors.tolist()


def test_references_are_spelled_as_the_tokens_of_the_system_spell(system, dump):
    assert _spelled(dump, system, lowercase=None) == [3, 0, 2]
    assert _spelled(dump, system, lowercase=False) == [3, 0, 1]  # the accent is composed
    assert _spelled(dump, system, lowercase=True) == [0, 0, 0]


def test_plain_references_score_the_same_with_tokens(system, dump):
    without = _score(system, dump)
    texts = list(read_scp(dump / "text").values())
    (system / "decode/test/tokens.model").write_bytes(train_tokens(texts, "char"))
    assert _score(system, dump) == without


def test_references_are_checked(dump, tmp_path):
    with pytest.raises(UserError, match="two of --dumps are called 'test'"):
        read_references([dump, dump], LABELS)
    replace_line(dump / "utt2channel", 0, "")
    with pytest.raises(UserError, match=r"utt2channel lacks 1 utterance\(s\) \(u000\)"):
        read_reference(dump, LABELS)
    replace_line(dump / "text", 0, "a000 x")
    with pytest.raises(UserError, match=r"text has 1 utterance\(s\) \(a000\) that .*wav.scp lacks"):
        read_reference(dump, LABELS)
    with pytest.raises(UserError, match=r"wav.scp is missing: run stage `audio`"):
        read_reference(tmp_path / "none", LABELS)


def test_results_hold_plain_numbers_only(system, dump, tmp_path):
    result = _score(system, dump)
    write_json(tmp_path / "r.json", result)
    assert read_json(tmp_path / "r.json") == result
    assert not np.isnan(result["sets"]["test"]["emotion"]["metrics"]["wa"]["value"])
