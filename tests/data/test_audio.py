import io
import struct

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_adaltm.data.audio import cut, load_audio, measure, resample, to_int16
from espnet_adaltm.errors import UserError

RATE = 16000


def sine(rate, seconds=1.0, amplitude=0.5, frequency=440.0):
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(rate * seconds) / rate)).astype(
        np.float32
    )


def noise(seconds=3.0):
    return 0.1 * np.random.default_rng(0).standard_normal(int(RATE * seconds)).astype(np.float32)


def encoded(samples, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


FORMATS = [
    ("wav", {"format": "WAV", "subtype": "PCM_16"}),
    ("flac", {"format": "FLAC", "subtype": "PCM_16"}),
    ("ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("mp3", {"format": "MP3"}),
    ("aiff", {"format": "AIFF", "subtype": "PCM_16"}),
    ("sph", {"format": "NIST", "subtype": "PCM_16"}),
    ("w64", {"format": "W64", "subtype": "PCM_16"}),
]


@pytest.mark.parametrize(("suffix", "options"), FORMATS)
def test_whole_files_are_read(tmp_path, suffix, options):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(encoded(noise(), **options))
    samples, rate = load_audio(str(path))
    assert (rate, samples.dtype, samples.shape) == (RATE, np.float32, (3 * RATE,))


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize(("suffix", "options"), FORMATS)
def test_truncated_files_are_refused(tmp_path, suffix, options, share):
    path = tmp_path / f"x.{suffix}"
    whole = encoded(noise(), **options)
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="truncated") as caught:
        load_audio(str(path))
    assert str(path) in str(caught.value)


def test_ogg_cut_between_two_pages(tmp_path):
    whole = encoded(noise(), format="OGG", subtype="VORBIS")
    (tmp_path / "x.ogg").write_bytes(whole[: whole.rfind(b"OggS")])
    with pytest.raises(UserError, match="truncated.*last Ogg page"):
        load_audio(str(tmp_path / "x.ogg"))


def test_16_bit_audio_survives_bit_for_bit(tmp_path):
    original = np.random.default_rng(1).integers(-32768, 32768, 5000).astype(np.int16)
    soundfile.write(tmp_path / "x.flac", original, RATE, subtype="PCM_16")
    pcm, clipped = to_int16(load_audio(str(tmp_path / "x.flac"))[0])
    assert (pcm == original).all()
    assert not clipped


def test_samples_beyond_full_scale_are_clipped_and_reported():
    pcm, clipped = to_int16(np.array([1.5, -1.5, 0.5], dtype=np.float32))
    assert pcm.tolist() == [32767, -32768, 16384]
    assert clipped
    assert not to_int16(np.array([1.0, -1.0], dtype=np.float32))[1]


def test_stereo_is_averaged(tmp_path):
    stereo = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    soundfile.write(tmp_path / "x.wav", stereo, RATE, subtype="FLOAT")
    assert np.allclose(load_audio(str(tmp_path / "x.wav"))[0], 0.125)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_sine_stays_the_same_sine(rate):
    result = resample(sine(rate), rate, RATE)
    assert len(result) == RATE
    middle = slice(RATE // 10, -RATE // 10)
    difference = result[middle] - sine(RATE)[middle]
    assert np.abs(difference).max() < 0.02 * 0.5
    spectrum = np.abs(np.fft.rfft(result))
    assert spectrum.argmax() == 440
    assert np.sqrt(2 * np.mean(result[middle] ** 2)) == pytest.approx(0.5, rel=0.02)


def test_resampling_filters_what_would_fold_back():
    above_nyquist = resample(sine(44100, frequency=10000.0), 44100, RATE)
    assert np.abs(above_nyquist[1600:-1600]).max() < 0.005


def test_pipes_run_and_their_failures_are_told(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(encoded(sine(RATE), format="WAV", subtype="PCM_16"))
    assert len(load_audio(f"cat {path} |", allow_pipes=True)[0]) == RATE
    with pytest.raises(UserError, match="cat .*nope.wav.* failed with status 1: .*nope.wav"):
        load_audio(f"cat {tmp_path}/nope.wav |", allow_pipes=True)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF - 36])
def test_wav_from_a_pipe_has_no_true_size(tmp_path, size):
    content = bytearray(encoded(sine(RATE), format="WAV", subtype="PCM_16"))
    where = content.find(b"data") + 4
    content[where : where + 4] = struct.pack("<I", size)
    (tmp_path / "x.wav").write_bytes(content)
    assert len(load_audio(str(tmp_path / "x.wav"))[0]) == RATE


def test_unfinished_recording(tmp_path):
    content = bytearray(encoded(sine(RATE), format="WAV", subtype="PCM_16"))
    where = content.find(b"data") + 4
    content[where : where + 4] = bytes(4)
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(UserError, match="unfinished"):
        load_audio(str(tmp_path / "x.wav"))


def test_flac_without_length(tmp_path):
    content = bytearray(encoded(sine(RATE), format="FLAC", subtype="PCM_16"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(content)
    with pytest.raises(UserError, match="does not state its length"):
        load_audio(str(tmp_path / "x.flac"))


def test_kaldi_arks(tmp_path):
    samples = (sine(RATE) * 32767).astype(np.int16)
    kaldiio.save_ark(str(tmp_path / "x.ark"), {"utt": (RATE, samples)})
    loaded, rate = load_audio(f"{tmp_path}/x.ark:4")
    assert rate == RATE
    assert (loaded * 32768 == samples).all()
    with pytest.raises(UserError, match=r"x\.ark:7 is no readable audio"):
        load_audio(f"{tmp_path}/x.ark:7")
    with pytest.raises(UserError, match=r"y\.ark does not exist"):
        load_audio(f"{tmp_path}/y.ark:4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "zero bytes"),
        (b"<html>not audio</html>" * 99, "cannot be decoded"),
        (encoded(np.array([0.1, np.nan]), format="WAV", subtype="FLOAT"), "NaN"),
        (encoded(np.array([0.1, np.inf]), format="WAV", subtype="FLOAT"), "infinite"),
    ],
    # Encoded bytes hold the time of day: as names they would differ between workers.
    ids=["missing", "empty", "html", "nan", "infinite"],
)
def test_broken_audio_names_the_path(tmp_path, content, message):
    path = tmp_path / "x.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_audio(str(path))
    assert str(path) in str(caught.value)


def test_cut():
    samples = np.arange(100, dtype=np.float32)
    assert cut(samples, 100, 0.1, 0.3).tolist() == list(range(10, 30))
    assert cut(samples, 100, 0.9, -1).tolist() == list(range(90, 100))
    assert len(cut(samples, 100, 0.5, 1.4)) == 50
    with pytest.raises(UserError, match="beyond the recording of 1.000 s"):
        cut(samples, 100, 0.5, 1.6)
    with pytest.raises(UserError, match="beyond"):
        cut(samples, 100, 1.1, -1)


def test_measure():
    pcm = np.concatenate([np.zeros(8000), np.full(2000, 32767), np.full(6000, 16384)])
    stats = measure(pcm.astype(np.int16), RATE)
    assert stats.num_samples == 16000
    assert stats.leading_silence == pytest.approx(0.5)
    assert stats.clipped == pytest.approx(0.125)
    assert stats.peak == pytest.approx(32767 / 32768)
    assert measure(pcm.astype(np.int16), RATE).digest == stats.digest
    pcm[0] = 1
    assert measure(pcm.astype(np.int16), RATE).digest != stats.digest
    assert measure(np.zeros(0, dtype=np.int16), RATE).clipped == 0.0
