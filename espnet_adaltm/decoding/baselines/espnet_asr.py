"""ESPnet's own recogniser with emotion tokens, decoded by ESPnet's beam search.

The best hypothesis gives emotion and transcript: the first emotion token in it is the emotion, what
is left without emotion tokens is the transcript. Without an emotion token (or with ``<emo>``, which
stands for an unknown emotion) the emotion is the one that the attention decoder finds likeliest at
the first position. The probabilities are those of the attention decoder's first step, shared out
among the emotion tokens; where the beam search said another emotion than the likeliest, these two
exchange their probabilities. Training: `training.espnet_stock_asr`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer
from espnet_adaltm.decoding import batch, systems

if TYPE_CHECKING:
    from espnet_adaltm.training.espnet_stock_asr import Heard

_SPACE = "\u2581"


def split_emotion(
    tokens: Sequence[str], emotions: Sequence[str], silent: str
) -> tuple[int | None, list[str]]:
    """Take the emotion out of a hypothesis.

    Args:
        tokens: Of the hypothesis.
        emotions: The emotion tokens, in the order of the labels.
        silent: Token of an unknown emotion.

    Returns:
        Index of the first emotion token among ``emotions``, or None; the tokens without any.
    """
    said = [emotions.index(token) for token in tokens if token in emotions]
    rest = [token for token in tokens if token not in emotions and token != silent]
    return (said[0] if said else None), rest


def probabilities(scores: Tensor, said: int | None) -> Tensor:
    """Probabilities of the emotions, the one that was said being the largest.

    Args:
        scores: Logarithms of the probabilities of the emotion tokens, [C].
        said: Index of what was said, or None.
    """
    shares = scores.double().softmax(-1)
    if said is not None:
        best = int(shares.argmax())
        shares[[said, best]] = shares[[best, said]]
    return shares


def spell(tokens: Sequence[str], units: str) -> str:
    """The text of tokens that are words or pieces of words."""
    if units == "word":
        return " ".join(tokens)
    return " ".join("".join(tokens).replace(_SPACE, " ").split())


class EspnetRecogniser(nn.Module):
    """Speech to emotion and transcript; utterances of a batch are heard one by one.

    Args:
        recognise: Samples [N] to what ESPnet's inference makes of them.
        model: What ``recognise`` computes with, to be moved to a device.
        emotions: Ids of the emotion tokens, in the order of the labels.
        token_list: Every token; position = id.
        silent: Token of an unknown emotion.
        units: ``word`` or ``piece``.
        tokenizer: What normalised the transcripts.
    """

    def __init__(
        self,
        recognise: Callable[[Tensor], "Heard"],
        model: nn.Module,
        emotions: Sequence[int],
        token_list: Sequence[str],
        *,
        silent: str,
        units: str,
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__()
        self.recognise = recognise
        self.model = model
        self.emotions = list(emotions)
        self.names = [token_list[index] for index in emotions]
        self.silent, self.units, self.tokenizer = silent, units, tokenizer
        self.unsaid = 0

    @torch.inference_mode()
    def forward(self, speech: Tensor, lengths: Tensor) -> systems.Output:
        """Recognise a padded batch of waveforms [B, N], lengths [B]."""
        rows, texts = [], []
        for row, samples in zip(speech, lengths.tolist(), strict=True):
            heard = self.recognise(row[:samples])
            said, rest = split_emotion(heard.tokens, self.names, self.silent)
            self.unsaid += said is None
            rows.append(probabilities(heard.first[self.emotions], said))
            texts.append(spell(rest, self.units))
        return systems.Output(torch.stack(rows).cpu(), texts)


def decode(
    system: EspnetRecogniser,
    inputs: batch.Inputs,
    *,
    dump: Path,
    batch_seconds: float,
    device: torch.device | str,
) -> batch.Decoded:
    """Decode a set, and tell how often no emotion was said."""
    system.unsaid = 0
    decoded = batch.decode(system, inputs, batch_seconds=batch_seconds, device=device)
    logging.info(
        "%d of %d utterances without an emotion token: theirs is the decoder's likeliest",
        system.unsaid,
        len(inputs.lengths),
    )
    return decoded


def load(folder: Path, info: Mapping[str, Any], *, base: Path | None = None) -> EspnetRecogniser:
    """Load what `train_espnet_asr` left; ``base`` does not matter, there is none.

    Raises:
        UserError: Something is missing or damaged.
    """
    # Importing ESPnet takes seconds, and only `training` may do it.
    from espnet_adaltm.training.espnet_stock_asr import NO_EMOTION, Recogniser, emotion_token

    folder = Path(folder)
    stock = Recogniser(folder, info)
    return EspnetRecogniser(
        stock,
        stock.model,
        [stock.token_list.index(emotion_token(name)) for name in info["labels"]],
        stock.token_list,
        silent=NO_EMOTION,
        units=info["options"]["units"],
        tokenizer=Tokenizer(folder / MODEL_FILE),
    )
