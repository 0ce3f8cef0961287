"""ESPnet's own recogniser, taught to say the emotion first: the way of its IEMOCAP recipe.

`espnet2.tasks.asr` (hybrid CTC and attention) is trained on ``<emo:happy> hello there``, where the
emotion is a token like any other, and decoded with the beam search of `espnet2.bin.asr_inference`.
ESPnet's: everything that is learned and how (see `espnet_stock`); words as tokens, as in that
recipe. Ours: pieces of the other systems' sentencepiece model as an alternative, transcripts
normalised by that model, and ``<emo>`` in front of transcripts whose emotion is not known (that
recipe has none), without which they could not be learned from.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2.tasks.asr import ASRTask
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str_or_none
from torch import Tensor, nn

from espnet_adaltm.config import check_keys
from espnet_adaltm.data.tokens import BLANK, MODEL_FILE, SOS_EOS, Tokenizer
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_open, require
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.training.data import PARTS, DataNeeds
from espnet_adaltm.training.espnet_stock import (
    UNK,
    StockTask,
    add_stock_defaults,
    check_emotions,
    fill_model,
    model_files,
    quiet,
    too_short,
    used_emotions,
)
from espnet_adaltm.training.task import require_labels
from espnet_adaltm.training.trainer import AdaltmTrainer

KIND = "espnet_asr"
DATA = "data"
UNITS = ("word", "piece")
# A transcript without a known emotion begins with this one.
NO_EMOTION = "<emo>"
# What the beam search is given; ESPnet's defaults but for the beam of its IEMOCAP recipe.
DECODING = {
    "beam_size": 10,
    "ctc_weight": 0.5,
    "penalty": 0.0,
    "maxlenratio": 0.0,
    "minlenratio": 0.0,
    "normalize_length": False,
}
ORIGIN = {
    "ESPnet's": "model, loss, optimiser, batches, choice of epochs, beam search; the emotion as "
    "the first token, words as tokens (IEMOCAP recipe)",
    "ours": f"{NO_EMOTION} for utterances without an emotion, pieces as tokens, probabilities "
    "from the decoder's first step, size of the model and length of the training",
}


def emotion_token(name: str) -> str:
    """The token of an emotion."""
    return f"<emo:{name}>"


class EspnetASRTask(ASRTask, StockTask):
    """Trains ESPnet's recogniser on the transcribed utterances."""

    kind = KIND
    trainer = AdaltmTrainer
    needs = DataNeeds("asr_shape", {})

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ESPnet's options and ours."""
        super().add_task_arguments(parser)
        parser.set_defaults(token_type="word")
        group = add_stock_defaults(parser)
        cls.add_own_arguments(group)
        group.add_argument("--tokens", type=str_or_none, default=None, help="Folder of the tokens")
        group.add_argument(
            "--units",
            default="word",
            choices=UNITS,
            help="word: those of the training transcripts, as in ESPnet's IEMOCAP recipe; "
            "piece: those of --tokens",
        )
        group.add_argument(
            "--train_on",
            default="transcribed",
            choices=("transcribed", "labelled"),
            help="transcribed: utterances without an emotion too; labelled: only those with one",
        )
        group.add_argument(
            "--emotion_shape",
            type=str_or_none,
            default=None,
            help="Shape file of the training utterances whose emotions may be used; all by default",
        )
        group.add_argument(
            "--decode_conf",
            action=NestedDictAction,
            default={},
            help=f"Beam search: {', '.join(DECODING)}",
        )

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> None:
        """Also check tokens and beam search."""
        check_keys(args.decode_conf, DECODING, "--decode_conf")
        if args.token_type != "word":
            raise UserError(
                f"--token_type {args.token_type}: the transcripts come as tokens with blanks "
                "between; choose them with --units"
            )
        _token_model(args)
        super().prepare(args)

    @classmethod
    def fill_targets(cls, args: argparse.Namespace) -> None:
        """Write the targets, set the list of tokens, and leave out what is not trained on."""
        labels = require_labels(args)
        tokenizer = Tokenizer(args.tokens)
        lines = {}
        for part in PARTS:
            shape = Path(getattr(args, f"{part}_shape_file")[0])
            texts = _units(args, part, shape, tokenizer)
            emotions = _emotions(args, part, shape)
            where = str(Path(getattr(args, f"{part}_dump")) / "utt2emo")
            check_emotions(emotions, labels, where, every=part == "train")
            if args.train_on == "labelled":
                texts = {utt: text for utt, text in texts.items() if utt in emotions}
                kept = {utt: size for utt, size in read_scp(shape).items() if utt in texts}
                if not kept:
                    raise UserError(f"{shape}: no utterance has both a transcript and an emotion")
                write_scp(_data(args) / f"{part}_shape", kept)
                setattr(args, f"{part}_shape_file", [str(_data(args) / f"{part}_shape")])
            lines[part] = {
                utt: [emotion_token(emotions[utt]) if utt in emotions else NO_EMOTION, *text]
                for utt, text in texts.items()
            }
            table = _data(args) / f"{part}_text"
            write_scp(table, {utt: " ".join(line) for utt, line in lines[part].items()})
            name = f"{part}_data_path_and_name_and_type"
            setattr(args, name, [*getattr(args, name), (str(table), "text", "text")])
        first = [emotion_token(name) for name in labels.labels]
        args.token_list = _token_list(args, first, lines["train"].values(), tokenizer)

    @classmethod
    def sources(cls, args: argparse.Namespace) -> dict[str, Path]:
        """What the targets are made from."""
        found = {
            f"{name} of the {part} set": Path(getattr(args, f"{part}_dump")) / name
            for part in PARTS
            for name in ("text", "utt2emo", "asr_shape")
        }
        if args.emotion_shape is not None:
            found["the utterances with a usable emotion"] = Path(args.emotion_shape)
        found["the token model"] = _token_model(args)
        return {role: path for role, path in found.items() if path.exists()}

    @classmethod
    def describe(cls, args: argparse.Namespace) -> dict[str, Any]:
        """How to decode, and what is whose."""
        chosen = {name: getattr(args, name) for name in ("units", "train_on")}
        return {"decode": {**DECODING, **args.decode_conf}, "options": chosen, "origin": ORIGIN}

    @classmethod
    def export(
        cls, args: argparse.Namespace, model: nn.Module, selected: dict[str, Any]
    ) -> list[Path]:
        """Also copy the token model, which says how transcripts are normalised."""
        copy = Path(args.output_dir) / MODEL_FILE
        with _token_model(args).open("rb") as source, atomic_open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        return [copy, *super().export(args, model, selected)]


def _token_model(args: argparse.Namespace) -> Path:
    if args.tokens is None:
        raise UserError("--tokens is missing: give the folder of the token model (stage `tokens`)")
    return require(Path(args.tokens) / MODEL_FILE, "stage `tokens`")


def _data(args: argparse.Namespace) -> Path:
    """Where targets are written."""
    return Path(args.output_dir) / DATA


def _units(
    args: argparse.Namespace, part: str, shape: Path, tokenizer: Tokenizer
) -> dict[str, list[str]]:
    """Utterance to its transcript as tokens."""
    path = require(Path(getattr(args, f"{part}_dump")) / "text", "stage `audio`")
    texts = read_scp(path, allow_empty_value=True)
    missing = [utt for utt in read_scp(shape) if utt not in texts]
    if missing:
        raise UserError(f"{path} has no utterance {missing[0]!r}: run stage `audio` again")
    chosen = {utt: texts[utt] for utt in read_scp(shape)}
    if args.units == "word":
        return {utt: tokenizer.normalize(text).split() for utt, text in chosen.items()}
    return {
        utt: [tokenizer.tokens[index] for index in tokenizer.encode(text)]
        for utt, text in chosen.items()
    }


def _emotions(args: argparse.Namespace, part: str, shape: Path) -> dict[str, str]:
    """Usable emotions of the transcribed utterances."""
    among = None
    if part == "train" and args.emotion_shape is not None:
        among = read_scp(args.emotion_shape).keys()
    return used_emotions(Path(getattr(args, f"{part}_dump")) / "utt2emo", shape, among)


def _token_list(
    args: argparse.Namespace,
    emotions: Sequence[str],
    lines: Any,
    tokenizer: Tokenizer,
) -> list[str]:
    """ESPnet's order: blank, unknown, the rest, end of sentence; emotions first of the rest.

    Raises:
        UserError: A transcript has a token that means something else here.
    """
    words = {word for line in lines for word in line[1:]}
    if args.units == "piece":
        words = set(tokenizer.tokens) - {BLANK, UNK, SOS_EOS}
    first = [BLANK, UNK, *emotions]
    if any(line[0] == NO_EMOTION for line in lines):
        first.append(NO_EMOTION)
    taken = sorted(words & {*first, NO_EMOTION, SOS_EOS} - {UNK})
    if taken:
        raise UserError(f"a transcript or --tokens has {taken[0]!r}, which is a token of ESPnet's")
    return [*first, *sorted(words - {UNK}), SOS_EOS]


@dataclass(frozen=True)
class Heard:
    """What the beam search made of an utterance.

    Attributes:
        tokens: Of the best hypothesis, without the ends; empty if there is none.
        first: What the attention decoder thinks of every token at the first position, [V],
            logarithms of probabilities.
    """

    tokens: list[str]
    first: Tensor


class Recogniser:
    """ESPnet's inference with the exported weights: one utterance at a time, as it does.

    Args:
        folder: Of a finished training.
        info: Its ``baseline.json``.

    Attributes:
        model: ESPnet's model.
        token_list: Every token; position = id.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        from espnet2.bin.asr_inference import Speech2Text

        config, weights = model_files(folder, info)
        with quiet():
            self._stock = Speech2Text(str(config), None, **info["decode"])
        self.model: nn.Module = self._stock.asr_model
        fill_model(self.model, weights)
        self.token_list: tuple[str, ...] = tuple(self.model.token_list)
        self._encoded: Tensor | None = None
        self._stock.beam_search.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep the encoder's output [T, D], which the beam search is called with."""
        self._encoded = kwargs["x"]

    def __call__(self, samples: Tensor) -> Heard:
        """Recognise one utterance [N] of samples.

        Raises:
            UserError: It is too short for the encoder.
        """
        from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError

        self._stock.device = str(samples.device)
        try:
            with quiet():
                hypotheses = self._stock(samples)
        except TooShortUttError as error:
            raise too_short(len(samples), error) from error
        tokens = hypotheses[0][1] if hypotheses else []
        return Heard(tokens, self._first_step())

    def _first_step(self) -> Tensor:
        decoder, encoded = self.model.decoder, self._encoded
        start = encoded.new_full((1,), self.model.sos, dtype=int)
        scores, _ = decoder.score(start, decoder.init_state(encoded), encoded)
        return scores
