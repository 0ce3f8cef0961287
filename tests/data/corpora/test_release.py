from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_adaltm.data.audio import load_audio
from espnet_adaltm.data.corpora import release

SINE = 0.1 * np.sin(2 * np.pi * 220 * np.arange(1600) / 16000)
WRITTEN = {".wav": None, ".FLAC": None, ".oga": "OGG", ".aiff": None, ".aif": "AIFF", ".au": None,
           ".snd": "AU", ".caf": None, ".w64": None, ".rf64": None, ".sph": "NIST",
           ".voc": None}  # fmt: skip


@pytest.mark.parametrize("suffix", WRITTEN)
def test_whatever_libsndfile_reads_is_found_and_read(tmp_path, suffix):
    path = tmp_path / f"one.two{suffix}"
    soundfile.write(path, SINE, 16000, format=WRITTEN[suffix])
    assert release.index_audio(tmp_path) == {"one.two": path}
    samples, rate = load_audio(str(path))
    assert rate == 16000
    assert len(samples) == 1600


def test_other_files_are_not_recordings(tmp_path):
    for name in ("data.tsv", "notes.txt", "a.raw", "b.mat", "c.mp4", "d", ".wav"):
        (tmp_path / name).write_text("")
    assert release.index_audio(tmp_path) == {}


def test_the_better_of_two_formats_wins(tmp_path):
    for name in ("a.ogg", "a.caf", "a.wav", "a.mp3", "b.voc", "b.opus"):
        (tmp_path / name).write_text("")
    assert release.index_audio(tmp_path) == {"a": tmp_path / "a.wav", "b": tmp_path / "b.opus"}


def test_formats_are_those_of_the_installed_library(monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "RAW": "", "NEW": ""})
    release.audio_suffixes.cache_clear()
    try:
        assert release.audio_suffixes() == (".wav", ".new")
    finally:
        release.audio_suffixes.cache_clear()


def test_suffixes_of_the_table_are_of_known_formats():
    assert set(release._SUFFIXES.values()) <= set(soundfile.available_formats())
    assert all(Path(f"x{suffix}").suffix == suffix for suffix in release.audio_suffixes())
