from collections import Counter

import pytest

from espnet_adaltm.data.label_share import nested_subset, write_label_share
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp

# 40 utterances: 4 speakers, 24 angry and 16 sad
EMOTIONS = {f"u{i:02d}": "angry" if i % 5 < 3 else "sad" for i in range(40)}
SPEAKERS = {f"u{i:02d}": f"s{i // 10}" for i in range(40)}


def test_shares_hold_by_emotion_take_from_all_speakers_and_are_nested():
    smaller, larger = (nested_subset(EMOTIONS, SPEAKERS, share, 0) for share in (0.25, 0.5))
    assert Counter(EMOTIONS[utt] for utt in smaller) == {"angry": 6, "sad": 4}
    assert Counter(EMOTIONS[utt] for utt in larger) == {"angry": 12, "sad": 8}
    assert smaller < larger
    assert Counter(SPEAKERS[utt] for utt in larger) == dict.fromkeys(["s0", "s1", "s2", "s3"], 5)
    assert nested_subset(EMOTIONS, SPEAKERS, 1.0, 0) == EMOTIONS.keys()
    assert nested_subset(EMOTIONS, SPEAKERS, 0.25, 0) == smaller
    assert nested_subset(EMOTIONS, SPEAKERS, 0.25, 1) != smaller


def test_shape_file_of_a_share(tmp_path):
    labelled = dict(list(EMOTIONS.items())[:20])
    write_scp(tmp_path / "ser_shape", {utt: str(100 + i) for i, utt in enumerate(labelled)})
    write_scp(tmp_path / "utt2emo", labelled)
    write_scp(tmp_path / "utt2spk", SPEAKERS)
    assert write_label_share(tmp_path, 0.5, tmp_path / "out") == 10
    written = read_scp(tmp_path / "out")
    assert len(written) == 10
    assert written.items() < read_scp(tmp_path / "ser_shape").items()
    with pytest.raises(UserError, match="leaves no utterance that is 'sad'"):
        write_label_share(tmp_path, 0.05, tmp_path / "out")
    with pytest.raises(UserError, match="--share 1.5"):
        write_label_share(tmp_path, 1.5, tmp_path / "out")
