"""Every shipped row trains, says what it did, and is decoded as it was trained."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_common import (
    CONF,
    EMOTIONS,
    TASKS,
    merge_options,
    read,
    start,
    stats,
    train,
    weights,
    yaml,
)

from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp

ROWS = sorted(path.stem for path in CONF.glob("*.yaml"))

pytestmark = pytest.mark.integration


# Everything at once: words, speakers aside, the expert's head.
COMBINED = """
name: combined
tasks: [asr, ser]
granularity: block
init: 0.5
objective: supervised_ctc
ctc_weight: 0.3
learn_on: held_out
head_init: ser_expert
"""


def trained_model(argv, folder, epoch):
    """The model as a training built it, with the weights of an epoch."""
    from espnet_adaltm.training.launch import load_task

    task = load_task(TASKS["merge"])
    args = task.get_parser().parse_args(argv)
    task.prepare(args)
    model = task.build_model(args).eval()
    model.load_state_dict(weights(folder, f"{epoch}epoch.pth"))
    return model


@pytest.mark.parametrize("row", ROWS)
def test_row_trains_and_is_decoded_as_trained(corpus, experts, tmp_path, row):
    folder = tmp_path / "merge"
    argv = merge_options(corpus, experts, folder, row, adapt_dump=corpus / "dump/dev")
    train("merge", argv)
    written = read(folder, "merge.json")
    assert written["name"] == row
    learned = written["options"]["trainable"]
    table = read(folder, "coefficients.json")
    start = written["options"]["init"]
    if table["tasks"] and learned:
        moved = np.abs(np.array(table["final"]) - start)
        assert moved.max() > 0.01
    checkpoints = [folder, *folder.glob("grid/*")]
    sizes = [path.stat().st_size for place in checkpoints for path in place.glob("*.pth")]
    assert 0 < max(sizes) < 100_000
    # decoding makes the vectors again from the experts', and gives the trained encoder
    system = load_system(folder, asr_expert=experts / "asr")
    trained = folder
    if "grid" in written:
        trained = folder / written["grid"]["tried"][written["grid"]["chosen"]]["folder"]
    model = trained_model(argv, trained, written["selected"]["best_epoch"])
    state = system.encoder.encoder_state()
    for name, tensor in model.encoder.bake().items():
        assert torch.equal(state[name], tensor), name
    head = load_file(folder / "head.safetensors")
    assert all(torch.equal(head[name], t) for name, t in model.head.state_dict().items())


def test_a_changed_random_method_is_noticed_in_decoding(corpus, experts, tmp_path):
    argv = merge_options(corpus, experts, tmp_path, "random_vectors", seed=5)
    train("merge", argv)
    written = read(tmp_path, "merge.json")
    assert written["options"]["preprocess"] == {"method": "random", "seed": 5}
    load_system(tmp_path)
    written["options"]["preprocess"]["seed"] = 6
    (tmp_path / "merge.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="'asr' made again .* is not the one of the training"):
        load_system(tmp_path)


def test_controls_follow_the_seed_of_the_run(corpus, experts, tmp_path):
    built = {}
    for seed in (1, 2):
        argv = merge_options(corpus, experts, tmp_path / str(seed), "random_vectors", seed=seed)
        train("merge", argv)
        built[seed] = load_system(tmp_path / str(seed)).encoder.encoder_state()
    name = "encoder.layers.0.attention.q_proj.weight"
    assert not torch.allclose(built[1][name], built[2][name], atol=1e-3)


def test_held_out_speakers_are_disjoint_and_recorded(corpus, experts, tmp_path):
    row = yaml(tmp_path, "learn_on: held_out")
    train("merge", merge_options(corpus, experts, tmp_path / "m", row))
    protocol = read(tmp_path / "m", "merge.json")["protocol"]
    learn, choose = (set(protocol["speakers"][part]) for part in ("learn", "choose"))
    known = read_scp(corpus / "dump/dev/utt2spk")
    assert not learn & choose
    assert learn | choose == set(known.values())
    assert len(learn) == len(choose) == 3
    assert "half of the validation speakers" in protocol["means"]
    shapes = {part: read_scp(tmp_path / f"m/data/{part}_shape") for part in ("train", "valid")}
    assert {known[utt] for utt in shapes["train"]} == learn
    assert {known[utt] for utt in shapes["valid"]} == choose
    # another seed draws other noise, but cuts the same
    train("merge", merge_options(corpus, experts, tmp_path / "n", row, seed=9))
    assert read(tmp_path / "n", "merge.json")["protocol"] == protocol


def test_held_out_needs_speakers_and_every_emotion_on_both_sides(corpus, experts, tmp_path):
    dump = tmp_path / "dump/dev"
    dump.mkdir(parents=True)
    for path in (corpus / "dump/dev").iterdir():
        (dump / path.name).write_bytes(path.read_bytes())
    utterances = read_scp(dump / "wav.scp")
    row = yaml(tmp_path, "learn_on: held_out")
    argv = merge_options(corpus, experts, tmp_path / "m", row, valid_dump=dump)
    write_scp(dump / "utt2spk", {utt: f"s{i % 3}" for i, utt in enumerate(utterances)})
    with pytest.raises(UserError, match="at least 4 validation speakers, found 3"):
        train("merge", argv)
    # now every speaker has one emotion only
    write_scp(dump / "utt2spk", {utt: f"s{i % 6}" for i, utt in enumerate(utterances)})
    one = {utt: EMOTIONS[i % 6 // 2] for i, utt in enumerate(utterances)}
    write_scp(dump / "utt2emo", one)
    missing = "'happy' has 6 utterances of the speakers to learn on and 0 of those"
    with pytest.raises(UserError, match=f"{missing}.*give another held_out_seed"):
        train("merge", argv)
    assert not (tmp_path / "m/identity.json").exists()
    row.write_text("learn_on: held_out\nheld_out_seed: 2")
    train("merge", argv)


def test_data_options_that_learn_on_would_ignore_are_refused(corpus, experts, tmp_path):
    row = yaml(tmp_path, "learn_on: held_out")
    shape = {"train_shape_file": corpus / "dump/train/ser_shape"}
    with pytest.raises(UserError, match="held_out reads --valid_dump: leave out --train_shape"):
        train("merge", merge_options(corpus, experts, tmp_path / "m", row, **shape))
    with pytest.raises(UserError, match="learn_on adapt needs --adapt_dump"):
        train("merge", merge_options(corpus, experts, tmp_path / "m", "adamerging_test"))


def relabelled(corpus, out):
    """The corpus with the emotions of its utterances shuffled."""
    out.mkdir()
    for name in ("train", "dev"):
        dump = out / "dump" / name
        dump.mkdir(parents=True)
        for path in (corpus / "dump" / name).iterdir():
            (dump / path.name).write_bytes(path.read_bytes())
        emotions = read_scp(dump / "utt2emo")
        mixed = np.random.default_rng(0).permutation(list(emotions.values()))
        write_scp(dump / "utt2emo", dict(zip(emotions, mixed)))
    return {"train_dump": out / "dump/train", "valid_dump": out / "dump/dev"}


@pytest.mark.parametrize("learn_on", ["train", "held_out", "adapt"])
def test_entropy_uses_no_label(corpus, experts, tmp_path, learn_on):
    """Shuffled labels change no coefficient of any epoch, nor which epoch is chosen."""
    row = yaml(
        tmp_path,
        f"objective: entropy\nlearn_on: {learn_on}\nhead_init: ser_expert\ntrain_head: false",
    )
    common = {"max_epoch": 3, "adapt_dump": corpus / "dump/train"}
    train("merge", merge_options(corpus, experts, tmp_path / "true", row, **common))
    changed = relabelled(corpus, tmp_path / "shuffled")
    train("merge", merge_options(corpus, experts, tmp_path / "false", row, **common, **changed))
    one, two = (read(tmp_path / name, "coefficients.json") for name in ("true", "false"))
    assert one == two
    assert np.abs(np.array(one["final"]) - 0.5).max() > 0.01
    first, second = (stats(tmp_path / name) for name in ("true", "false"))
    for epoch in first:
        assert first[epoch]["valid"]["loss"] == second[epoch]["valid"]["loss"]
    # the labels did reach the metrics, which are for reading only
    scores = [[s[e]["valid"]["macro_f1"] for e in s] for s in (first, second)]
    assert scores[0] != scores[1]
    assert "none" in read(tmp_path / "true", "merge.json")["protocol"]["labels"]


def test_entropy_trains_on_speech_that_has_no_labels_at_all(corpus, experts, tmp_path):
    dump = tmp_path / "dump/dev"
    dump.mkdir(parents=True)
    for name in ("wav.scp", "all_shape", "utt2spk"):
        (dump / name).write_bytes((corpus / "dump/dev" / name).read_bytes())
    argv = merge_options(corpus, experts, tmp_path / "m", "adamerging", valid_dump=dump)
    train("merge", argv)
    assert "macro_f1" not in stats(tmp_path / "m")[1]["valid"]
    assert np.shape(read(tmp_path / "m", "coefficients.json")["final"])[0] == 2


def test_ctc_reads_transcripts_where_there_are_some(corpus, experts, tmp_path):
    root = tmp_path / "dump"
    for name in ("train", "dev"):
        (root / name).mkdir(parents=True)
        for path in (corpus / "dump" / name).iterdir():
            (root / name / path.name).write_bytes(path.read_bytes())
        text = read_scp(root / name / "text")
        write_scp(root / name / "text", dict(list(text.items())[::2]))
    places = {"train_dump": root / "train", "valid_dump": root / "dev"}
    row = yaml(tmp_path, "objective: supervised_ctc\nctc_weight: 0.7")
    train("merge", merge_options(corpus, experts, tmp_path / "some", row, **places))
    values = stats(tmp_path / "some")[1]
    assert values["train"]["loss_ctc"] > 0
    assert {"wer", "cer", "macro_f1", "loss_ctc", "loss_emotion"} <= values["valid"].keys()
    total = values["valid"]["loss_emotion"] + 0.7 * values["valid"]["loss_ctc"]
    assert values["valid"]["loss"] == pytest.approx(total, rel=1e-5)
    write_scp(root / "train/text", {"zz": "nobody"})
    with pytest.raises(UserError, match="no utterance of .* has a transcript"):
        train("merge", merge_options(corpus, experts, tmp_path / "none", "adaltm_ctc", **places))


def test_ctc_term_keeps_the_words(corpus, experts, tmp_path):
    """A heavy CTC term brings the CTC loss of the merged encoder below that of AdaLTM."""
    found = {}
    for weight in (1e-6, 30.0):
        row = yaml(tmp_path, f"objective: supervised_ctc\nctc_weight: {weight}", f"w{weight}")
        folder = tmp_path / str(weight)
        train("merge", merge_options(corpus, experts, folder, row, max_epoch=6))
        found[weight] = stats(folder)[6]["valid"]["loss_ctc"]
    assert found[30.0] < found[1e-6]


def test_coefficients_have_the_rate_of_their_row(corpus, experts, tmp_path):
    slow = yaml(tmp_path, "coef_lr: 1.0e-6")
    train("merge", merge_options(corpus, experts, tmp_path / "m", slow))
    final = np.array(read(tmp_path / "m", "coefficients.json")["final"])
    assert 0 < np.abs(final - 0.5).max() < 1e-4


@pytest.mark.parametrize(("factor", "epochs"), [(0.1, 1), (1.5, 3), (2, 4)])
def test_a_row_takes_a_multiple_of_the_epochs(corpus, experts, tmp_path, factor, epochs):
    row = yaml(tmp_path, f"epoch_factor: {factor}")
    train("merge", merge_options(corpus, experts, tmp_path / "m", row, max_epoch=2))
    plain = yaml(tmp_path, "granularity: block", "plain")
    train("merge", merge_options(corpus, experts, tmp_path / "n", plain, max_epoch=epochs))
    assert read(tmp_path / "m", "merge.json")["options"]["epoch_factor"] == factor
    assert sorted(stats(tmp_path / "m")) == list(range(1, epochs + 1))
    same = [read(tmp_path / folder, "coefficients.json")["epochs"] for folder in ("m", "n")]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("learn_on: train", "learn_on: held_out", "learn_on was 'train' and is now 'held_out'"),
        (
            "objective: supervised_ctc",
            "objective: supervised",
            "objective was 'supervised_ctc' and is now 'supervised'",
        ),
        (
            "preprocess: {method: random}",
            "preprocess: {method: random, seed: 8}",
            "preprocess: seed was 3 and is now 8",
        ),
        (
            "preprocess: {method: ties}",
            "preprocess: {method: ties, density: 0.1}",
            "preprocess: density was not given and is now 0.1",
        ),
        (
            "method: dare\nmethod_conf: {density: 0.5}",
            "method: ties\nmethod_conf: {density: 0.5}",
            "method was 'dare' and is now 'ties'",
        ),
        (
            "objective: supervised_ctc",
            "objective: supervised_ctc\nctc_weight: 0.2",
            "ctc_weight was 1.0 and is now 0.2",
        ),
        ("coef_lr: 0.1", "coef_lr: 0.2", "coef_lr was 0.1 and is now 0.2"),
        (
            "train_head: true",
            "train_head: false\nhead_init: ser_expert",
            "train_head was True and is now False",
        ),
    ],
)
def test_a_changed_row_refuses_to_resume(corpus, experts, tmp_path, before, after, message):
    row = yaml(tmp_path, before)
    train("merge", merge_options(corpus, experts, tmp_path / "m", row))
    row.write_text(after)
    with pytest.raises(UserError, match=f"other options: .*--merge_conf: {message}") as error:
        train("merge", merge_options(corpus, experts, tmp_path / "m", row, max_epoch=2))
    assert "granularity" not in str(error.value)
    assert sorted(stats(tmp_path / "m")) == [1]


def test_changed_transcripts_and_speakers_refuse_to_resume(corpus, experts, tmp_path):
    dump = tmp_path / "dump/dev"
    dump.mkdir(parents=True)
    for path in (corpus / "dump/dev").iterdir():
        (dump / path.name).write_bytes(path.read_bytes())
    row = yaml(tmp_path, COMBINED)
    argv = {
        epochs: merge_options(
            corpus, experts, tmp_path / "m", row, valid_dump=dump, max_epoch=epochs
        )
        for epochs in (1, 2)
    }
    train("merge", argv[1])
    text = (dump / "text").read_text()
    write_scp(dump / "text", dict.fromkeys(read_scp(dump / "text"), "abc"))
    with pytest.raises(UserError, match="the contents of the train text changed"):
        train("merge", argv[2])
    (dump / "text").write_text(text)
    speakers = read_scp(dump / "utt2spk")
    write_scp(dump / "utt2spk", {utt: f"new-{name}" for utt, name in speakers.items()})
    with pytest.raises(UserError, match="the contents of the train shape file changed"):
        train("merge", argv[2])


def killed(argv, calls):
    from test_resume import die_on_call

    from espnet_adaltm.training import espnet_models

    die_on_call(espnet_models.AdaltmModel, "encode", calls)
    train("merge", argv)


@pytest.mark.parametrize(
    ("row", "calls"),  # of the encoder, until it is killed in the second epoch
    [("combined", 7), ("adaltm_distill", 13), ("adamerging", 7), ("random_vectors", 13)],
)
def test_an_interrupted_row_ends_bit_identical(corpus, experts, tmp_path, row, calls):
    common = {"max_epoch": 3, "noise_prob": 0.5, "mask_time_prob": 0.05, "batch_bins": 60_000}
    row = yaml(tmp_path, COMBINED) if row == "combined" else row
    whole, broken = (
        merge_options(corpus, experts, tmp_path / name, row, **common) for name in ("w", "b")
    )
    train("merge", whole)
    process = start(killed, broken, calls)
    process.join(timeout=120)
    assert process.exitcode < 0
    assert (tmp_path / "b/checkpoint.pth").exists()
    assert not (tmp_path / "b/3epoch.pth").exists()
    train("merge", broken)
    for name in ("coefficients.json", "head.safetensors"):
        assert (tmp_path / "w" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one, two = (weights(tmp_path / name, "latest.pth") for name in ("w", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)
