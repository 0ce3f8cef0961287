"""Test sets scored as one: the same as a set that holds all of their utterances."""

import shutil

import numpy as np
import pytest
from scoring_common import LABELS, make_dump, make_system

from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.pools import parts_of
from espnet_adaltm.scoring.readers import read_hypothesis, read_reference, read_references
from espnet_adaltm.scoring.results import Bootstrap, score_system

TABLES = ("wav.scp", "utt2emo", "utt2spk", "utt2channel", "text")
ANSWERS = ("utt2prob", "utt2emo", "text")


def divide(source, first, second, names, at):
    """Put the utterances before and after ``at`` of every table into two folders."""
    for name in names:
        table = list(read_scp(source / name).items())
        write_scp(first / name, {u: v for u, v in table if u < at})
        write_scp(second / name, {u: v for u, v in table if u >= at})


@pytest.fixture
def halves(tmp_path):
    """A set, its two halves, and a system that decoded all three."""
    dump = make_dump(tmp_path / "dump" / "whole", unlabelled=10)
    system = make_system(tmp_path / "exp", dump, wrong={1, 7, 8, 30, 44}, deleted={2, 40})
    one, two = (dump.parent / name for name in ("test1", "test2"))
    divide(dump, one, two, TABLES, "u025")
    decoded = system / "decode"
    divide(decoded / "whole", decoded / "test1", decoded / "test2", ANSWERS, "u025")
    return dump.parent, system


def test_a_pool_is_the_set_of_all_its_utterances(halves):
    dumps, system = halves
    whole = read_reference(dumps / "whole", LABELS)
    pool = read_reference(dumps / "test1+test2", LABELS)
    assert pool.name == "test1+test2"
    assert [part.name for part in pool.parts] == ["test1", "test2"]
    for name in ("utterances", "emotions", "texts", "speakers", "channels"):
        assert getattr(pool, name) == getattr(whole, name), name
    ours, theirs = (read_hypothesis(system, reference, LABELS) for reference in (pool, whole))
    assert np.array_equal(ours.prediction, theirs.prediction)
    assert np.array_equal(ours.probabilities, theirs.probabilities)
    assert np.array_equal(ours.words.errors, theirs.words.errors)
    assert np.array_equal(ours.characters.lengths, theirs.characters.lengths)
    options = Bootstrap(resamples=50)
    scores = [score_system(system, [r], LABELS, name="x", options=options) for r in (pool, whole)]
    assert scores[0]["sets"]["test1+test2"] == scores[1]["sets"]["whole"]


def test_pools_stand_beside_their_sets(halves):
    dumps, system = halves
    names = ("test1", "test2", "test1+test2")
    references = read_references([dumps / name for name in names], LABELS)
    result = score_system(
        system, references, LABELS, name="x", options=Bootstrap(resamples=10)
    )["sets"]  # fmt: skip
    sizes = [result[name]["emotion"]["utterances"] for name in names]
    assert sizes == [25, 25, 50]
    right = [sizes[i] * result[n]["emotion"]["metrics"]["wa"]["value"] for i, n in enumerate(names)]
    assert right == pytest.approx([22, 23, 45])


def test_what_is_not_said_about_every_set_is_not_said_about_the_pool(halves):
    dumps, system = halves
    (system / "decode" / "test2" / "text").unlink()
    pool = read_reference(dumps / "test1+test2", LABELS)
    hypothesis = read_hypothesis(system, pool, LABELS)
    assert hypothesis.words is None
    assert len(hypothesis.prediction) == 50
    (system / "decode" / "test2" / "utt2prob").unlink()
    with pytest.raises(UserError, match=r"test2 has neither utt2prob nor text"):
        read_hypothesis(system, pool, LABELS)


def test_nothing_counts_twice(halves):
    dumps, _ = halves
    with pytest.raises(UserError, match=r"utterance 'u000' is in test1 and in whole"):
        read_reference(dumps / "test1+whole", LABELS)
    with pytest.raises(UserError, match="no pool of sets"):
        parts_of(dumps / "test1+test1")
    with pytest.raises(UserError, match="no pool of sets"):
        parts_of(dumps / "test1+")
    with pytest.raises(UserError, match=r"dump/none/wav.scp is missing"):
        read_reference(dumps / "test1+none", LABELS)
    shutil.copytree(dumps / "test1", dumps / "a+b")  # a folder of that name is a set
    assert read_reference(dumps / "a+b", LABELS).parts == ()
