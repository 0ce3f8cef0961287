"""ESPnet's own tasks as baselines: they are ESPnet's, to the bit, and refuse what they must."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from training_common import EMOTIONS, stats, weights

from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.decoding import batch
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.readers import read_hypothesis, read_reference

pytestmark = pytest.mark.integration

TASKS = {"cls": "espnet_stock_cls:EspnetCLSTask", "asr": "espnet_stock_asr:EspnetASRTask"}
SHAPE = "attention_heads: 2, linear_units: 64, num_blocks: 1, dropout_rate: 0.1"
# What ESPnet's own programs take as well; the emotions are tones, which a mean would hide.
COMMON = {
    "batch_type": "numel",
    "batch_bins": 60_000,
    "log_interval": 1000,
    "seed": 3,
    "frontend_conf": "{n_fft: 512, hop_length: 160, n_mels: 40}",
    "normalize": "none",
    "encoder": "transformer",
    "encoder_conf": f"{{output_size: 32, input_layer: conv1d2, {SHAPE}}}",
    "optim": "adam",
    "optim_conf": "{lr: 0.005}",
    "best_model_criterion": "valid,acc,max",
}
OWN = {
    "cls": {},
    "asr": {
        "decoder": "transformer",
        "decoder_conf": f"{{{SHAPE}}}",
        "model_conf": "{ctc_weight: 0.3, report_cer: false, report_wer: false}",
    },
}


def words(options):
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def argv_of(corpus, out, kind, **changes):
    """Command line of a small training; an option set to None is left out."""
    given = {
        "output_dir": out,
        "train_dump": corpus / "dump/train",
        "valid_dump": corpus / "dump/dev",
        "labels": corpus / "labels.json",
        "max_epoch": 2,
        **COMMON,
        **OWN[kind],
    }
    if kind == "asr":
        given |= {"tokens": corpus / "tokens", "units": "piece", "decode_conf": "{beam_size: 3}"}
    given |= changes
    return words({name: value for name, value in given.items() if value is not None})


def run(kind, argv):
    from espnet_adaltm.training.launch import load_task
    from espnet_adaltm.training.launch import run as launch

    torch.set_num_threads(1)
    launch(load_task(TASKS[kind]), argv)


def prepared(kind, argv):
    """The options as ESPnet gets them."""
    from espnet_adaltm.training.launch import load_task

    task = load_task(TASKS[kind])
    args = task.get_parser().parse_args(argv)
    task.prepare(args)
    return args


@pytest.fixture
def dev(corpus, tmp_path):
    """What decoding and scoring read of the validation set."""
    source, dump = corpus / "dump/dev", tmp_path / "dump/dev"
    for name in ("wav.scp", "text", "utt2emo", "utt2spk"):
        write_scp(dump / name, read_scp(source / name))
    write_scp(dump / "utt2num_samples", read_scp(source / "all_shape"))
    return dump


@pytest.fixture
def scarce(corpus, tmp_path):
    """The training set with an emotion for every other three utterances."""
    source, dump = corpus / "dump/train", tmp_path / "scarce/train"
    for name in ("wav.scp", "text", "utt2spk", "all_shape", "asr_shape"):
        write_scp(dump / name, read_scp(source / name))
    emotions = list(read_scp(source / "utt2emo").items())
    kept = dict(pair for index, pair in enumerate(emotions) if index // 3 % 2 == 0)
    write_scp(dump / "utt2emo", kept)
    shapes = read_scp(dump / "all_shape")
    write_scp(dump / "ser_shape", {utt: shapes[utt] for utt in kept})
    return dump


def decode(folder, dump, corpus):
    """Decode as `bin/decode.py` does, twice in batches of different sizes, and score it."""
    system, inputs = load_system(folder), batch.raw_inputs(dump)
    single = batch.decode(system, inputs, batch_seconds=1e-6)
    together = batch.decode(system, inputs, batch_seconds=4)
    assert single == together  # utterances are heard one by one
    labels = load_labels(corpus / "labels.json")
    tokenizer = getattr(system, "tokenizer", None)
    batch.write_outputs(folder / "decode/dev", single, labels, tokenizer)
    return single, read_hypothesis(folder, read_reference(dump, labels), labels)


def espnet_writes(kind, folder, dump, out):
    """Decode with ESPnet's own program and the checkpoint that ESPnet's users would take."""
    from espnet_adaltm.training.espnet_stock import quiet

    options = {
        "output_dir": out,
        "num_workers": 0,
        "data_path_and_name_and_type": f"{dump}/wav.scp,speech,kaldi_ark",
    }
    config, model = folder / "config.yaml", folder / "valid.acc.ave.pth"
    with quiet():
        if kind == "cls":
            from espnet2.bin import cls_inference

            options |= {"classification_train_config": config, "output_all_probabilities": True}
            cls_inference.main(words({**options, "classification_model_file": model}))
            return read_scp(out / "prediction/score")
        from espnet2.bin import asr_inference

        options |= {"asr_train_config": config, "asr_model_file": model, "beam_size": 3}
        asr_inference.main(words(options))
        return read_scp(out / "1best_recog/token", allow_empty_value=True)


def test_classifier_learns_and_is_decoded_as_espnet_does(corpus, dev, tmp_path):
    out = tmp_path / "cls"
    argv = argv_of(corpus, out, "cls", max_epoch=12)
    run("cls", argv)
    assert max(values["valid"]["acc"] for values in stats(out).values()) > 0.85
    info = json.loads((out / "baseline.json").read_text())
    assert (info["kind"], info["labels"], info["seed"]) == ("espnet_cls", list(EMOTIONS), 3)
    decoded, scored = decode(out, dev, corpus)
    theirs = espnet_writes("cls", out, dev, tmp_path / "espnet")
    for utt, row in decoded.probabilities.items():
        assert row == pytest.approx([float(p) for p in theirs[utt].split()], abs=1e-6)
    truth = [EMOTIONS.index(emotion) for emotion in read_scp(dev / "utt2emo").values()]
    assert (scored.prediction == truth).mean() > 0.8
    assert scored.words is None

    before = (out / "finished.json").read_bytes()
    run("cls", argv)  # finished already
    assert (out / "finished.json").read_bytes() == before
    (out / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"model.safetensors is not what baseline.json describes"):
        load_system(out)


def test_recogniser_says_emotion_and_words_as_espnet_does(corpus, dev, tmp_path):
    out = tmp_path / "asr"
    shape = SHAPE.replace("dropout_rate: 0.1", "dropout_rate: 0.0")
    changes = {"encoder_conf": f"{{output_size: 32, input_layer: conv1d2, {shape}}}"}
    changes |= {"decoder_conf": f"{{{shape}}}", "max_epoch": 60}
    run("asr", argv_of(corpus, out, "asr", **changes))
    lines = read_scp(out / "data/train_text")
    text, emotions = (read_scp(corpus / "dump/train" / name) for name in ("text", "utt2emo"))
    for utt, line in lines.items():
        first, *pieces = line.split()
        assert first == f"<emo:{emotions[utt]}>"
        assert "".join(pieces).removeprefix("\u2581") == text[utt]
    decoded, scored = decode(out, dev, corpus)
    theirs = espnet_writes("asr", out, dev, tmp_path / "espnet")
    said = 0
    for utt, line in theirs.items():
        found = [token for token in line.split() if token.startswith("<emo:")]
        rest = [token for token in line.split() if token not in found]
        assert decoded.texts[utt] == "".join(rest).replace("\u2581", " ").strip()
        if found:
            row = decoded.probabilities[utt]
            assert found[0] == f"<emo:{EMOTIONS[row.index(max(row))]}>"
            said += 1
    assert said > 0.8 * len(theirs)
    truth = [EMOTIONS.index(emotion) for emotion in read_scp(dev / "utt2emo").values()]
    assert (scored.prediction == truth).mean() > 0.8
    letters = scored.characters
    assert letters.errors.sum() < 0.6 * len("".join(read_scp(dev / "text").values()))


@pytest.mark.parametrize("kind", ["cls", "asr"])
def test_espnets_own_program_ends_with_the_same_weights(corpus, tmp_path, kind):
    """Its tasks and its trainer with the same options, nothing of ours but the files."""
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.cls import CLSTask

    run(kind, argv_of(corpus, tmp_path / "ours", kind))
    args = prepared(kind, argv_of(corpus, tmp_path / "files", kind))
    tokens = tmp_path / "token_list"
    tokens.write_text("".join(f"{token}\n" for token in args.token_list))
    options = {
        **COMMON,
        **OWN[kind],
        "output_dir": tmp_path / "theirs",
        "token_list": tokens,
        "token_type": "word",
        "max_epoch": 2,
        "ngpu": 0,
        "use_matplotlib": False,
        "use_tensorboard": False,
        "num_att_plot": 0,
    }
    argv = words(options)
    for part in ("train", "valid"):
        argv += [f"--{part}_shape_file", getattr(args, f"{part}_shape_file")[0]]
        for entry in getattr(args, f"{part}_data_path_and_name_and_type"):
            argv += [f"--{part}_data_path_and_name_and_type", ",".join(entry)]
    {"cls": CLSTask, "asr": ASRTask}[kind].main(cmd=argv)
    ours, theirs = (weights(tmp_path / name, "2epoch.pth") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["cls", "asr"])
def test_interrupted_training_ends_with_the_same_weights(corpus, tmp_path, kind):
    run(kind, argv_of(corpus, tmp_path / "whole", kind, max_epoch=2))
    run(kind, argv_of(corpus, tmp_path / "parts", kind, max_epoch=1))
    run(kind, argv_of(corpus, tmp_path / "parts", kind, max_epoch=2))
    whole, parts = (weights(tmp_path / name, "2epoch.pth") for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    with pytest.raises(UserError, match=r"--seed was 3 and is now 4"):
        run(kind, argv_of(corpus, tmp_path / "parts", kind, seed=4))


def test_what_is_trained_on_where_emotions_are_scarce(corpus, scarce, tmp_path):
    labelled = read_scp(scarce / "utt2emo")
    args = prepared("asr", argv_of(corpus, tmp_path / "all", "asr", train_dump=scarce))
    lines = read_scp(tmp_path / "all/data/train_text")
    assert len(lines) == 48
    assert {u for u, line in lines.items() if not line.startswith("<emo> ")} == labelled.keys()
    tokens = [f"<emo:{name}>" for name in EMOTIONS]
    assert args.token_list[:6] == ["<blank>", "<unk>", *tokens, "<emo>"]
    assert args.token_list[6:-1] == sorted(args.token_list[6:-1])
    assert args.token_list[-1] == "<sos/eos>"

    changes = {"train_dump": scarce, "train_on": "labelled", "units": "word"}
    args = prepared("asr", argv_of(corpus, tmp_path / "some", "asr", **changes))
    lines = read_scp(tmp_path / "some/data/train_text")
    assert lines.keys() == labelled.keys() == read_scp(args.train_shape_file[0]).keys()
    text = read_scp(scarce / "text")
    assert lines == {utt: f"<emo:{name}> {text[utt]}" for utt, name in labelled.items()}
    assert "<emo>" not in args.token_list
    assert args.token_list[5:-1] == sorted({text[utt] for utt in labelled})

    few = dict(list(read_scp(scarce / "ser_shape").items())[:6])
    write_scp(tmp_path / "share", few)
    changes = {"train_dump": scarce, "emotion_shape": tmp_path / "share"}
    prepared("asr", argv_of(corpus, tmp_path / "share_out", "asr", **changes))
    lines = read_scp(tmp_path / "share_out/data/train_text")
    assert {u for u, line in lines.items() if not line.startswith("<emo> ")} == few.keys()
    changes = {"train_dump": scarce, "train_shape_file": tmp_path / "share"}
    args = prepared("cls", argv_of(corpus, tmp_path / "cls", "cls", **changes))
    assert args.train_shape_file == [str(tmp_path / "share")]
    assert args.token_list == [*EMOTIONS, "<unk>"]


def test_an_exported_model_names_no_place_of_this_machine(corpus, tmp_path):
    from espnet_adaltm.training.espnet_stock import _model_config
    from espnet_adaltm.training.espnet_stock_asr import EspnetASRTask

    args = prepared("asr", argv_of(corpus, tmp_path / "out", "asr"))
    text = _model_config(EspnetASRTask, args)
    assert str(tmp_path) not in text
    assert str(corpus) not in text
    options = yaml.safe_load(text)
    assert options["token_list"] == args.token_list
    assert options["encoder_conf"]["output_size"] == 32
    assert "max_epoch" not in options


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("cls", {"feats_type": "extracted"}, "--feats_type extracted: .* waveforms"),
        ("cls", {"labels": None}, "--labels is missing"),
        ("cls", {"valid_dump": None}, "--valid_dump is missing"),
        ("cls", {"encoderr": "conformer"}, "encoderr.*did you mean '--encoder'"),
        ("asr", {"tokens": None}, "--tokens is missing"),
        ("asr", {"token_type": "bpe"}, "--token_type bpe: .*--units"),
        ("asr", {"decode_conf": "{beam: 3}"}, "--decode_conf: unknown key 'beam'.*'beam_size'"),
    ],
)
def test_wrong_options_are_refused(corpus, tmp_path, kind, change, message):
    with pytest.raises(UserError, match=message):
        prepared(kind, argv_of(corpus, tmp_path / "out", kind, **change))


@pytest.mark.parametrize("kind", ["cls", "asr"])
def test_classes_that_are_never_heard_or_not_known_are_refused(corpus, scarce, tmp_path, kind):
    more = {"labels": [*EMOTIONS, "bored"], "codes": {}, "counts": {}, "policy": ""}
    (tmp_path / "more.json").write_text(json.dumps(more))
    changes = {"labels": tmp_path / "more.json"}
    with pytest.raises(UserError, match="utt2emo: no training utterance is 'bored'"):
        prepared(kind, argv_of(corpus, tmp_path / "out", kind, **changes))
    emotions = read_scp(scarce / "utt2emo")
    first = next(iter(emotions))
    write_scp(scarce / "utt2emo", {**emotions, first: "bored"})
    with pytest.raises(UserError, match=f"utterance '{first}': unknown emotion 'bored'"):
        prepared(kind, argv_of(corpus, tmp_path / "out", kind, train_dump=scarce))


@pytest.mark.parametrize("kind", ["cls", "asr"])
def test_they_need_neither_speakers_nor_dialogues(corpus, scarce, tmp_path, kind):
    for name in ("utt2spk", "utt2dialog"):
        (scarce / name).unlink(missing_ok=True)
    args = prepared(kind, argv_of(corpus, tmp_path / "out", kind, train_dump=scarce))
    shape = read_scp(Path(args.train_shape_file[0]))
    assert shape.keys() >= read_scp(scarce / "text").keys() & read_scp(scarce / "utt2emo").keys()


def test_transcripts_that_look_like_emotions_are_refused(corpus, scarce, tmp_path):
    text = read_scp(scarce / "text")
    first = next(iter(text))
    write_scp(scarce / "text", {**text, first: "<emo:sad> a"})
    with pytest.raises(UserError, match="has '<emo:sad>', which is a token of ESPnet's"):
        prepared("asr", argv_of(corpus, tmp_path / "out", "asr", train_dump=scarce, units="word"))


def test_too_short_an_utterance_is_named_as_such(corpus, tmp_path):
    run("cls", argv_of(corpus, tmp_path / "cls", "cls", max_epoch=1))
    system = load_system(tmp_path / "cls")
    with pytest.raises(UserError, match="an utterance of 500 samples is too short .*--min_seconds"):
        system(torch.zeros(1, 900), torch.tensor([500]))


def test_programs_list_espnets_options_and_ours():
    from espnet_adaltm.bin import train_espnet_asr, train_espnet_cls

    for program in (train_espnet_cls, train_espnet_asr):
        text = program.get_parser().format_help()
        assert "--encoder_conf" in text
        assert "--train_dump" in text
        assert str(Path.home()) not in text
