import kaldiio
import numpy as np
import pytest
import torch

from espnet_adaltm.backbone.geometry import CnnGeometry
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.backbone.units import (
    UnitModel,
    apply_units,
    fit_units,
    frame_features,
    hidden_features,
    load_units,
    save_units,
)
from espnet_adaltm.bin import fit_units as program
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp

GEOMETRY = CnnGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
RATE = 16000


def tone(frequency, samples, amplitude=0.3):
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)).astype(
        np.float32
    )


def make_dump(folder, waves, rate=RATE):
    folder.mkdir(parents=True)
    pcm = {utt: (rate, (wave * 32768).astype(np.int16)) for utt, wave in waves.items()}
    kaldiio.save_ark(str(folder / "wav.ark"), pcm, scp=str(folder / "wav.scp"))
    write_scp(folder / "utt2num_samples", {utt: len(wave) for utt, wave in waves.items()})
    return folder


def alternating(seed, segments=6):
    """Segments of 0.2 s, each one of three tones, and which frame lies wholly in which tone."""
    order = np.random.default_rng(seed).integers(0, 3, segments)
    wave = np.concatenate([tone((300, 1200, 4000)[which], 3200) for which in order])
    labels = [
        order[start // 3200] if start // 3200 == (start + 399) // 3200 else -1
        for start in range(0, len(wave) - 399, 320)
    ]
    return wave, np.array(labels)


@pytest.mark.parametrize("samples", [1, 50, 399, 400, 719, 720, 16000])
@pytest.mark.parametrize(("kind", "size"), [("mfcc", 39), ("logmel", 40)])
def test_one_vector_per_frame_of_the_encoder(samples, kind, size):
    features = frame_features(tone(440, samples), GEOMETRY, kind)
    assert features.shape == (int(GEOMETRY.frame_lengths(torch.tensor(samples))), size)
    assert torch.isfinite(features).all()


def test_frames_are_centred_where_the_cnn_looks():
    wave = np.zeros(6400, np.float32)
    frame = 9
    wave[frame * 320 + 200] = 1.0  # the centre of what frame 9 sees
    energy = frame_features(wave, GEOMETRY, "logmel", mean_norm=False).sum(1)
    assert int(energy.argmax()) == frame
    assert float(energy[frame - 1] - energy[frame + 1]) == pytest.approx(0.0, abs=1e-3)


def test_log_mel_finds_the_tone_and_the_mean_goes():
    features = frame_features(tone(1000, 16000), GEOMETRY, "logmel", mean_norm=False)
    # 40 HTK mel filters between 20 and 7600 Hz: 1000 Hz lies at filter 13.4 of 0..39
    mel = [2595 * np.log10(1 + f / 700) for f in (20, 1000, 7600)]
    position = 41 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 1
    assert abs(float(features.mean(0).argmax()) - position) < 1
    louder = frame_features(tone(1000, 16000) * 0.1, GEOMETRY, "logmel", mean_norm=False)
    assert float((features - louder)[:, 13].mean()) == pytest.approx(np.log(100), abs=1e-3)
    normed = frame_features(tone(1000, 16000), GEOMETRY, "mfcc")
    assert float(normed.mean(0).abs().max()) < 1e-4


def test_differences_are_slopes_over_five_frames():
    wave = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    features = frame_features(wave, GEOMETRY, "mfcc", mean_norm=False).numpy()
    for order in (1, 2):
        lower = features[:, 13 * (order - 1) : 13 * order]
        found = features[:, 13 * order : 13 * (order + 1)]
        for frame in (2, 20, 40):
            slopes = np.polyfit(np.arange(5), lower[frame - 2 : frame + 3], 1)[0]
            assert np.abs(found[frame] - slopes).max() < 1e-3


def test_unknown_kind_is_refused():
    with pytest.raises(UserError, match="'fbank'"):
        frame_features(tone(440, 800), GEOMETRY, "fbank")


def test_assignment_is_the_nearest_centroid():
    generator = np.random.default_rng(0)
    model = UnitModel(
        generator.normal(size=(7, 5)).astype(np.float32),
        generator.normal(size=5).astype(np.float32),
        np.full(5, 2.0, np.float32),
    )
    x = generator.normal(size=(50, 5)).astype(np.float32)
    standard = (x - model.mean) / model.scale
    expected = ((standard[:, None] - model.centroids) ** 2).sum(-1).argmin(1)
    assert model.assign(x).tolist() == expected.tolist()
    assert model.assign(x).dtype == np.int32


def test_units_tell_sounds_apart_and_fit_the_frames(tmp_path):
    made = {f"u{i}": alternating(i) for i in range(8)} | {"u9": (tone(300, 50), np.array([0]))}
    dump = make_dump(tmp_path / "dump", {utt: wave for utt, (wave, _) in made.items()})

    def features_fn(wave):
        return frame_features(wave, GEOMETRY, "logmel", mean_norm=False)

    model = fit_units(dump, features_fn, num_units=5, seed=1)
    again = fit_units(dump, features_fn, num_units=5, seed=1)
    assert np.array_equal(model.centroids, again.centroids)
    out = tmp_path / "units" / "train"
    assert apply_units(dump, out, model, features_fn) == 9
    assert (out / "units.scp").read_text().splitlines()[0].startswith(f"u0 {out}/units.ark:")
    units = kaldiio.load_scp(str(out / "units.scp"))
    assert list(units) == sorted(made)
    seen = [set(), set(), set()]
    for utt, (wave, labels) in made.items():
        assert units[utt].dtype == np.int32
        assert len(units[utt]) == GEOMETRY.frames(len(wave)) == len(labels)
        for unit, label in zip(units[utt], labels):
            if label >= 0 and utt != "u9":
                seen[label].add(int(unit))
    assert all(seen)
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_later_iteration_clusters_a_hidden_layer(tmp_path):
    encoder = random_encoder(tiny_config(num_hidden_layers=2, hidden_size=32), 0)
    dump = make_dump(tmp_path / "dump", {"a": tone(300, 4000), "b": tone(900, 3000)})
    features_fn = hidden_features(encoder, 1)
    model = fit_units(dump, features_fn, num_units=3)
    assert model.centroids.shape == (3, 32)
    apply_units(dump, tmp_path / "units", model, features_fn)
    units = kaldiio.load_scp(str(tmp_path / "units" / "units.scp"))
    assert [len(units[utt]) for utt in "ab"] == encoder.frame_lengths(
        torch.tensor([4000, 3000])
    ).tolist()
    with pytest.raises(UserError, match="layer 3 does not exist: expected 0 to 2"):
        hidden_features(encoder, 3)


def test_model_file(tmp_path):
    model = UnitModel(*(np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)))
    described = {"seed": "1", "kind": "mfcc", "mean_norm": "true", "layer": "0"}
    contents = set()
    for _ in range(8):  # what depends on the file would be made again if it came out otherwise
        save_units(model, tmp_path / "units.safetensors", **described)
        contents.add((tmp_path / "units.safetensors").read_bytes())
    assert len(contents) == 1
    loaded, metadata = load_units(tmp_path / "units.safetensors")
    assert metadata == described
    assert np.array_equal(loaded.centroids, model.centroids)
    (tmp_path / "units.safetensors").write_bytes(b"12345678901234")
    with pytest.raises(UserError, match="damaged"):
        load_units(tmp_path / "units.safetensors")


def test_too_few_frames_and_bad_audio_are_named(tmp_path):
    dump = make_dump(tmp_path / "short", {"a": tone(300, 800)})
    with pytest.raises(UserError, match="2 frames, fewer than the 100 units"):
        fit_units(dump, lambda wave: frame_features(wave, GEOMETRY))
    dump = make_dump(tmp_path / "slow", {"a": tone(300, 8000)}, rate=8000)
    with pytest.raises(UserError, match=r"'a': found 8000 Hz.*expected 16000 Hz"):
        fit_units(dump, lambda wave: frame_features(wave, GEOMETRY))
    (dump / "wav.ark").unlink()
    with pytest.raises(UserError, match="'a': cannot read"):
        fit_units(dump, lambda wave: frame_features(wave, GEOMETRY))
    with pytest.raises(UserError, match="run the stage 'audio' first"):
        fit_units(tmp_path, lambda wave: frame_features(wave, GEOMETRY))


def test_a_failure_leaves_nothing_behind(tmp_path):
    dump = make_dump(tmp_path / "dump", {"a": tone(300, 800), "b": tone(300, 800)})
    calls = []

    def broken(wave):
        calls.append(len(wave))
        if len(calls) == 2:
            raise RuntimeError("stop")
        return frame_features(wave, GEOMETRY)

    model = UnitModel(np.zeros((2, 39), np.float32), np.zeros(39), np.ones(39))
    with pytest.raises(RuntimeError):
        apply_units(dump, tmp_path / "out" / "a", model, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["dump"]


def test_program(tmp_path, capsys):
    dumps = [
        make_dump(tmp_path / name, {f"{name}{i}": alternating(i)[0] for i in range(2)})
        for name in ("train", "dev")
    ]
    out = tmp_path / "units"
    words = ["--train_dump", str(dumps[0]), "--dumps", *map(str, dumps), "--out", str(out)]
    program.main([*words, "--num_units", "4"])
    assert "dev: 2 utterances, 4 units" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["dev", "train", "units.safetensors"]
    assert load_units(out / "units.safetensors")[1] == {
        "seed": "0",
        "kind": "mfcc",
        "mean_norm": "true",
    }
    with pytest.raises(SystemExit):
        program.main([*words, "--layer", "2"])
    assert "--encoder and --layer belong together" in capsys.readouterr().err
