import pytest
import torch
from decoding_common import COEFFICIENTS, make_base, make_expert, make_scene
from safetensors.torch import load_file

from espnet_adaltm.backbone.blocks import block_of
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.decoding.systems import front_end_moved, load_system, read_description
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path)


def _edit(path, **changes):
    write_json(path, {**read_json(path), **changes})


def test_experts_have_their_own_weights_and_heads(scene):
    for kind in ("asr", "ser"):
        system = load_system(scene / kind, base=scene / "base")
        stored = load_file(scene / kind / "expert.safetensors")
        state = system.encoder.encoder_state()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
        assert (system.emotion_head is None) == (kind == "asr")
        assert (system.ctc_head is None) == (kind == "ser")
        assert not system.training
    assert system.labels == ("angry", "happy", "sad")


def test_merge_is_base_plus_scaled_differences(scene):
    state = load_system(scene / "merge").encoder.encoder_state()
    base = load_encoder(scene / "base").encoder_state()
    asr, ser = (load_file(scene / task / "expert.safetensors") for task in ("asr", "ser"))
    for name, tensor in base.items():
        block = block_of(name, 2)
        expected = (
            tensor
            + COEFFICIENTS[0][block] * (asr[name] - tensor)
            + COEFFICIENTS[1][block] * (ser[name] - tensor)
        )
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=1e-5)


def test_merge_without_tasks_is_the_base(scene):
    _edit(scene / "merge/coefficients.json", tasks=[], final=[])
    state = load_system(scene / "merge").encoder.encoder_state()
    base = load_encoder(scene / "base").encoder_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in base.items())


def test_merge_transcribes_only_with_an_expert(scene):
    assert load_system(scene / "merge").ctc_head is None
    system = load_system(scene / "merge", asr_expert=scene / "asr")
    stored = load_file(scene / "asr/head.safetensors")
    assert torch.equal(system.ctc_head.linear.weight, stored["linear.weight"])
    output = system(torch.randn(2, 4000), torch.tensor([4000, 2000]))
    assert output.probabilities.shape == (2, 3)
    assert len(output.texts) == 2


def test_another_base_is_refused(scene):
    other = make_base(scene / "other", seed=5)
    with pytest.raises(UserError, match=r"ser was made from the base \w{12}, but .*other is"):
        load_system(scene / "ser", base=other)
    with pytest.raises(UserError, match="--base is missing: .*ser doesn't say"):
        load_system(scene / "ser")
    stranger = make_expert(scene / "asr2", other, "asr", scene / "tokens")
    with pytest.raises(UserError, match="--asr_expert: .*asr2 was fine-tuned from the base"):
        load_system(scene / "merge", asr_expert=stranger)


def test_another_expert_is_refused(scene):
    cousin = make_expert(scene / "asr2", scene / "base", "asr", scene / "tokens", cnn=True)
    with pytest.raises(
        UserError, match="asr2/expert.safetensors is not the expert that was merged"
    ):
        load_system(scene / "merge", asr_expert=cousin)
    with pytest.raises(UserError, match="is of kind 'ser', not asr"):
        load_system(scene / "merge", asr_expert=scene / "ser")


def test_other_task_vectors_are_refused(scene):
    _edit(scene / "merge/merge.json", expert_sha256={"asr": "", "ser": "0" * 64})
    with pytest.raises(UserError, match="ser.safetensors has expert_sha256 .* 000000000000"):
        load_system(scene / "merge")


@pytest.mark.parametrize("name", ["asr/head.safetensors", "asr/expert.safetensors"])
def test_files_cut_short_are_named(scene, name):
    data = (scene / name).read_bytes()
    (scene / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{name} is damaged or cut short"):
        load_system(scene / "asr", base=scene / "base")


def test_heads_that_do_not_fit_are_refused(scene):
    _edit(scene / "ser/expert.json", labels=["angry", "sad"])
    with pytest.raises(UserError, match=r"head.safetensors does not fit its description.*size"):
        load_system(scene / "ser", base=scene / "base")
    _edit(scene / "asr/expert.json", tokens=["<blank>", "<unk>"])
    with pytest.raises(UserError, match="expert.json: the token list does not fit tokens.model"):
        load_system(scene / "asr", base=scene / "base")


def test_coefficients_of_another_shape_are_refused(scene):
    _edit(scene / "merge/coefficients.json", final=[[0.5], [0.5]])
    with pytest.raises(UserError, match=r"`final` must be \(2, 3\) finite numbers"):
        load_system(scene / "merge")
    _edit(scene / "merge/coefficients.json", final=[[0.5, 0.5, float("inf")]] * 2)
    with pytest.raises(UserError, match="finite numbers"):
        load_system(scene / "merge")


def test_descriptions_are_checked(scene, tmp_path):
    with pytest.raises(UserError, match="found none: run its training to the end"):
        read_description(tmp_path / "nothing")
    info = read_json(scene / "ser/expert.json")
    write_json(scene / "ser/expert.json", {key: info[key] for key in info if key != "head"})
    with pytest.raises(UserError, match="expert.json lacks 'head'"):
        read_description(scene / "ser")
    write_json(scene / "ser/expert.json", {**info, "kind": "tts"})
    with pytest.raises(UserError, match="kind 'tts' is none of asr, ser, merge"):
        read_description(scene / "ser")


def test_a_moved_front_end_is_noticed(scene):
    assert front_end_moved(load_system(scene / "merge").encoder, scene / "base") is None
    moved = make_expert(scene / "moved", scene / "base", "ser", scene / "tokens", cnn=True)
    encoder = load_system(moved, base=scene / "base").encoder
    assert front_end_moved(encoder, scene / "base").startswith("feature_extractor.conv_layers.0")
