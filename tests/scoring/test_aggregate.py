import numpy as np
import pytest
from scoring_common import LABELS, make_dump, make_system

from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring import aggregate as agg
from espnet_adaltm.scoring import paired
from espnet_adaltm.scoring.readers import read_reference
from espnet_adaltm.scoring.results import Bootstrap, score_system
from espnet_adaltm.scoring.seeds import Seeds, compare


@pytest.fixture
def scene(tmp_path):
    """Two seeds of a good system, one bad system, one recogniser; 240 utterances."""
    dump = make_dump(tmp_path / "dump" / "test", size=240)
    for name, wrong, deleted in (
        ("good1", range(24), {1, 2}),
        ("good2", range(12, 60), {3}),
        ("bad", range(120), range(60)),
    ):
        make_system(tmp_path / name, dump, set(wrong), set(deleted))
    make_system(tmp_path / "asr", dump, deleted={9}, emotion=False)
    entries = [f"asr={tmp_path}/asr", f"good:1={tmp_path}/good1", f"good:2={tmp_path}/good2"]
    return dump, agg.parse_systems([*entries, f"bad={tmp_path}/bad"])


def _aggregate(scene, pairs=(("good", "bad"),)):
    dump, systems = scene
    return agg.aggregate(
        systems, [read_reference(dump, LABELS)], LABELS, pairs, Bootstrap(resamples=400)
    )


def test_seeds_are_averaged_and_spread(scene):
    result, _, _ = _aggregate(scene)
    wa = result["systems"]["good"]["sets"]["test"]["all"]["wa"]
    assert wa["seeds"] == pytest.approx([0.9, 0.8])
    assert wa["mean"] == pytest.approx(0.85)
    assert wa["std"] == pytest.approx(0.1 / np.sqrt(2))
    assert 0.79 < wa["low"] < 0.85 < wa["high"] < 0.91
    bad = result["systems"]["bad"]
    assert bad["seeds"] == [None]
    assert bad["sets"]["test"]["all"]["wa"]["std"] is None
    assert "macro_f1" not in result["systems"]["asr"]["sets"]["test"]["all"]
    assert set(result["systems"]["good"]["sets"]["test"]["word"]) == {"1", "2"}


def test_joint_resampling_agrees_with_the_single_system(scene):
    dump, systems = scene
    result, _, _ = _aggregate(scene)
    single = score_system(
        systems[2].folders[None], [read_reference(dump, LABELS)], LABELS, name="bad"
    )["sets"]["test"]
    joint = result["systems"]["bad"]["sets"]["test"]
    for metric, want in {**single["emotion"]["metrics"], **single["asr"]["metrics"]}.items():
        assert joint["all"][metric]["mean"] == pytest.approx(want["value"], abs=1e-12)
        assert joint["all"][metric]["low"] == pytest.approx(want["low"], abs=0.03)
    voice = single["emotion"]["channels"]["voice"]["metrics"]["macro_f1"]
    assert joint["voice"]["macro_f1"]["mean"] == pytest.approx(voice["value"], abs=1e-12)


def test_paired_tests_of_known_differences(scene):
    result, scores, _ = _aggregate(scene)
    tests = {(t["view"], t["metric"]): t for t in result["comparisons"]["test"]}
    assert {view for view, _ in tests} == {"all", "both", "voice", "words"}
    wa = tests["all", "wa"]
    assert wa["difference"] == pytest.approx(0.85 - 0.5)
    assert 0.2 < wa["low"] < 0.35 < wa["high"] < 0.5
    assert wa["p"] == pytest.approx(2 / 401)
    assert wa["p_holm"] == wa["p"]  # one pair on the whole set; three channels are a table apart
    assert tests["voice", "wa"]["p_holm"] == pytest.approx(3 * 2 / 401)
    wer = tests["all", "wer"]
    assert wer["difference"] < 0
    assert wer["p"] == pytest.approx(2 / 401)
    pairs = {(t["first"], t["second"], t["metric"]) for t in result["all_pairs"]["test"]}
    assert ("good", "bad", "macro_f1") in pairs
    assert ("asr", "bad", "wer") in pairs
    assert ("asr", "bad", "macro_f1") not in pairs
    assert paired.best_separated(scores[0].get("macro_f1"), "macro_f1") == "good"
    assert {name: seeds.names for name, seeds in scores[0].get("wa").items()} == {
        "good": (1, 2),
        "bad": (None,),
    }
    # one deletion of 240 against a mean of 1.5: not separated
    assert paired.best_separated(scores[0].get("wer"), "wer") is None


def test_experts_of_every_seed_are_rows_like_merges_and_paired_with_them(tmp_path):
    """Seeds differ a lot, a merge from the expert of its own seed by 12 of 240 in each of them."""
    dump = make_dump(tmp_path / "dump" / "test", size=240)
    entries = []
    for seed, wrong in ((1, 10), (2, 60), (3, 110)):
        make_system(tmp_path / f"ser{seed}", dump, set(range(wrong + 12)), text=False)
        make_system(tmp_path / f"merge{seed}", dump, set(range(wrong)), set(range(seed)))
        make_system(tmp_path / f"asr{seed}", dump, deleted=set(range(2 * seed)), emotion=False)
        for name in ("asr", "ser", "merge"):
            entries.append(f"{name}:{seed}={tmp_path}/{name}{seed}")
    # Another order of seeds must not change who is paired with whom.
    systems = agg.parse_systems([*reversed(entries)])
    pairs = [("merge", "ser"), ("asr", "merge")]
    result, (scores,), _ = _aggregate((dump, systems), pairs)
    asr, ser, merge = (result["systems"][name] for name in ("asr", "ser", "merge"))
    assert asr["seeds"] == ser["seeds"] == merge["seeds"] == [3, 2, 1]
    wa = ser["sets"]["test"]["all"]["wa"]
    assert wa["seeds"] == pytest.approx([1 - n / 240 for n in (122, 72, 22)])
    assert wa["mean"] == pytest.approx(1 - 72 / 240)
    assert wa["std"] == pytest.approx(50 / 240)
    words = sum(len(text.split()) for text in read_reference(dump, LABELS).texts.values())
    wer = asr["sets"]["test"]["all"]["wer"]
    assert wer["seeds"] == pytest.approx([n / words for n in (6, 4, 2)])
    assert wer["std"] == pytest.approx(2 / words)
    assert [asr["sets"]["test"]["word"][seed]["S.Err"] for seed in "123"] == pytest.approx(
        [100 * n / 240 for n in (2, 4, 6)]
    )
    assert "wa" not in asr["sets"]["test"]["all"]
    tests = {
        (t["first"], t["second"], t["metric"]): t
        for t in result["comparisons"]["test"]
        if t["view"] == "all"
    }
    better = tests["merge", "ser", "wa"]
    assert better["difference"] == pytest.approx(12 / 240)
    # Seed by seed the difference is the same: drawing seeds adds nothing. Unpaired it would drown.
    assert better["p_seeds"] == pytest.approx(2 / 401)
    values = scores.get("wa")
    strangers = Seeds(values["ser"].points, values["ser"].values, (4, 5, 6))
    assert compare(values["merge"], strangers).p_seeds > 0.3
    assert tests["asr", "merge", "wer"]["difference"] == pytest.approx(2 / words)


def test_best_knows_which_direction_is_better():
    low, high = (Seeds(np.array([v]), np.array([[v, v, v] * 50])) for v in (0.2, 0.4))
    assert paired.best_separated({"low": low, "high": high}, "wer") == "low"
    assert paired.best_separated({"low": low, "high": high}, "uar") == "high"
    assert paired.best_separated({"low": low}, "uar") is None
    assert paired.best_separated({"low": low, "same": low}, "uar") is None


def test_confusions_are_summed_over_seeds(scene):
    _, (scores,), _ = _aggregate(scene)
    assert scores.confusions["good"].tolist() == [[136, 24, 0], [0, 136, 24], [24, 0, 136]]
    assert scores.views == {"all": 240, "both": 81, "voice": 81, "words": 78}


def test_result_depends_on_nothing_but_the_files(scene):
    assert _aggregate(scene)[0] == _aggregate(scene)[0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "names no system"),
        (["adaltm"], "'adaltm' is neither name=folder"),
        (["a:x=d"], "'a:x=d' is neither"),
        (["a:1=d", "a:1=e"], "gives 'a:1' again"),
        (["a=d", "a:1=e"], "gives 'a:1' again"),
        (["a:1=d", "a=e"], "gives 'a' again"),
    ],
)
def test_malformed_systems_are_refused(entries, message):
    with pytest.raises(UserError, match=message):
        agg.parse_systems(entries)


def test_malformed_comparisons_are_refused():
    systems = agg.parse_systems(["a=d", "b=e"])
    assert agg.parse_comparisons(["b:a"], systems) == [("b", "a")]
    for entry in ("a", "a:c", "a:a"):
        with pytest.raises(UserError, match=f"'{entry}' is not first:second with two of: a, b"):
            agg.parse_comparisons([entry], systems)
