"""What a recogniser can be given, and what it refuses."""

import numpy as np
import pytest
import soundfile
import torch

from espnet_adaltm.decoding.sources import NAMED, ONE, SEVERAL, open_clips, read_ahead, stream_clip
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp


@pytest.fixture(scope="module")
def samples():
    return (0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)


@pytest.fixture(scope="module")
def wav(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    return path


def only(source, **options):
    kind, clips = open_clips(source, **options)
    assert kind == ONE
    return clips[0].load()


def test_paths_and_arrays_are_the_same_samples(wav, samples):
    stereo = np.stack([samples + 0.01, samples - 0.01], 1)
    integers = np.round(samples * 2**15).astype(np.int16)
    for source in (
        wav,
        str(wav),
        samples,
        samples.astype(np.float64),
        torch.from_numpy(samples),
        stereo,
        stereo.T,
        {"array": samples, "sampling_rate": 16_000, "path": "x.wav"},
        {"raw": samples, "sampling_rate": np.int64(16_000)},
    ):
        got = only(source)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, samples, atol=2e-8)
    np.testing.assert_allclose(only(integers), samples, atol=2**-16)


def test_other_rates_are_resampled():
    time = np.arange(8_000) / 8_000
    low = np.sin(2 * np.pi * 200 * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    for got in (only(low, sample_rate=8_000), only({"array": low, "sampling_rate": 8_000})):
        assert len(got) == 16_000
        np.testing.assert_allclose(got[2000:-2000], expected[2000:-2000], atol=2e-3)


def test_lists_keep_their_order_and_names(wav, samples):
    kind, clips = open_clips([str(wav), samples, wav])
    assert kind == SEVERAL
    assert [clip.name for clip in clips] == [str(wav), "array 1", str(wav)]
    assert open_clips([]) == (SEVERAL, [])


def test_scp_and_data_directory(tmp_path, wav, samples):
    write_scp(tmp_path / "wav.scp", {"r1": wav, "r2": wav})
    kind, clips = open_clips(tmp_path / "wav.scp")
    assert kind == NAMED
    assert [clip.name for clip in clips] == ["r1", "r2"]
    write_scp(tmp_path / "utt2spk", {"r1": "s", "r2": "s"})
    assert [clip.name for clip in open_clips(tmp_path)[1]] == ["r1", "r2"]
    write_scp(tmp_path / "segments", {"u1": "r1 0.05 0.1", "u2": "r1 0.2 -1", "u3": "r2 3 4"})
    write_scp(tmp_path / "utt2spk", {"u1": "s", "u2": "s", "u3": "s"})
    first, second, beyond = open_clips(str(tmp_path))[1]
    np.testing.assert_array_equal(first.load(), samples[800:1600])
    np.testing.assert_array_equal(second.load(), samples[3200:])
    with pytest.raises(UserError, match="utterance 'u3': segment 3 to 4 s lies beyond"):
        beyond.load()


def test_shell_commands_only_run_if_allowed(tmp_path, wav, samples):
    trace = tmp_path / "ran"
    command = f"touch {trace}; cat {wav} |"
    write_scp(tmp_path / "wav.scp", {"u": command})
    with pytest.raises(UserError, match="'u' is a shell command, which is not run"):
        open_clips(tmp_path / "wav.scp")
    with pytest.raises(UserError, match="is a shell command, which is not run"):
        open_clips(command, allow_pipes=True)  # a path is a path
    assert not trace.exists()
    _, (clip,) = open_clips(tmp_path / "wav.scp", allow_pipes=True)
    np.testing.assert_array_equal(clip.load(), samples)
    assert trace.exists()


def test_standard_input(wav, samples):
    np.testing.assert_array_equal(stream_clip(wav.read_bytes(), "-").load(), samples)
    with pytest.raises(UserError, match="standard input is empty"):
        stream_clip(b"", "standard input").load()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([0.1, 0.2], "this one holds numbers"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\) and type float64: expected"),
        (np.zeros(9, np.uint8), "type uint8: expected"),
        (np.zeros(0), "has no samples"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (3.5, "float is no recording"),
        ({"sampling_rate": 16_000}, "needs `array` and `sampling_rate`"),
        ({"array": np.zeros(9), "sampling_rate": 0}, "sample rate 0"),
        (["x.wav", ["y.wav"]], "holds several recordings"),
    ],
)
def test_what_cannot_be_heard_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        for clip in open_clips(source)[1]:
            clip.load()


def test_a_folder_needs_a_list(tmp_path):
    with pytest.raises(UserError, match="folder without wav.scp"):
        open_clips(tmp_path)


def test_reading_ahead_keeps_order_and_gives_errors(tmp_path, wav, samples):
    names = [str(wav)] * 11
    names[3] = names[7] = str(tmp_path / "gone.wav")
    _, clips = open_clips(names)
    got = list(read_ahead(clips))
    assert [clip.name for clip, _ in got] == names
    for index, (_, audio) in enumerate(got):
        if index in (3, 7):
            assert isinstance(audio, UserError)
            assert "gone.wav does not exist" in str(audio)
        else:
            np.testing.assert_array_equal(audio, samples)


def test_reading_ahead_does_not_read_everything(wav):
    read = []
    _, clips = open_clips([wav] * 100)
    counted = [type(c)(c.name, lambda c=c: read.append(1) or c.load()) for c in clips]
    stream = read_ahead(counted)
    next(stream)
    stream.close()
    assert len(read) <= 10
