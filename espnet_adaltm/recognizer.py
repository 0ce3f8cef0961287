"""Emotions (and words) of recordings, from an exported folder.

    recognizer = EmotionRecognizer.from_pretrained("exp/merge_adaltm_seed1/export")
    recognizer.predict("speech.wav")
    # Prediction(emotion='happy', probabilities={'angry': 0.1, 'happy': 0.9}, text='hello there')

The folder is a Hugging Face encoder (``config.json``, ``model.safetensors``) that ``transformers``
loads as it is, with ``recognizer.json``, ``emotion_head.safetensors`` and, for words,
``ctc_head.safetensors`` and ``tokens.model`` beside it. It holds no pickles.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import save as to_bytes
from torch import nn

from espnet_adaltm.backbone.arks import SAMPLE_RATE
from espnet_adaltm.backbone.features import make_batches
from espnet_adaltm.backbone.loading import load_encoder, save_encoder
from espnet_adaltm.data.audio import load_audio, resample
from espnet_adaltm.data.labels import check_names
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.decoding.batch import Array, pad
from espnet_adaltm.decoding.systems import SpeechSystem, load_module
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, atomic_open, read_json, require, write_json
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import EmotionHead

DESCRIPTION = "recognizer.json"
EMOTION_HEAD, CTC_HEAD, TOKENS = "emotion_head.safetensors", "ctc_head.safetensors", "tokens.model"


@dataclass(frozen=True)
class Prediction:
    """What is said of one recording.

    Attributes:
        emotion: The most likely one.
        probabilities: Of every emotion, by name, summing to 1.
        text: What was said, None without a CTC head.
    """

    emotion: str
    probabilities: dict[str, float]
    text: str | None


class EmotionRecognizer:
    """Recognises recordings with a loaded system, kept in memory between calls.

    Args:
        system: With an emotion head.
        device: Where to compute.
        batch_seconds: Largest padded duration of a batch.
    """

    def __init__(
        self, system: SpeechSystem, device: torch.device | str = "cpu", batch_seconds: float = 40.0
    ) -> None:
        if system.emotion_head is None:
            raise UserError("this system has no emotion head: export a SER expert or a merge")
        self.device = torch.device(device)
        self.system = system.to(self.device)
        self.batch_seconds = batch_seconds

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions, in the order of `Prediction.probabilities`."""
        return self.system.labels

    @classmethod
    def from_pretrained(cls, source: Pathlike, **options: Any) -> "EmotionRecognizer":
        """Load an exported folder, or a model of the Hugging Face Hub by its id.

        Args:
            source: Folder that `save_pretrained` wrote, or ``user/model``.
            options: ``device`` and ``batch_seconds``.

        Raises:
            UserError: Something is missing or damaged.
        """
        folder = Path(source) if Path(source).is_dir() else _download(str(source))
        info = read_json(require(folder / DESCRIPTION, "stage `export`"))
        lacking = [key for key in ("labels", "head") if key not in info]
        if lacking:
            raise UserError(f"{folder / DESCRIPTION} lacks {', '.join(lacking)}: export it again")
        encoder = load_encoder(folder)
        labels = check_names(info["labels"], str(folder / DESCRIPTION))
        head = EmotionHead(encoder.num_layers, encoder.hidden_size, len(labels), **info["head"])
        load_module(head, folder / EMOTION_HEAD)
        words: dict[str, Any] = {}
        if (folder / CTC_HEAD).exists():
            tokenizer = Tokenizer(folder / TOKENS)
            ctc = CTCHead(encoder.hidden_size, tokenizer.vocab_size)
            load_module(ctc, folder / CTC_HEAD)
            words = {"ctc_head": ctc, "tokenizer": tokenizer}
        system = SpeechSystem(
            encoder, emotion_head=head, labels=labels, head_options=info["head"], **words
        )
        return cls(system, **options)

    def save_pretrained(self, folder: Pathlike, tokens_model: Pathlike | None = None) -> None:
        """Write a folder for `from_pretrained`, replaced as a whole.

        Args:
            folder: Where to.
            tokens_model: The ``tokens.model`` of the CTC head; needed if there is one.
        """
        system = self.system
        if system.ctc_head is not None and tokens_model is None:
            raise UserError("tokens_model is missing: the CTC head is of no use without its tokens")
        with atomic_dir(folder) as temporary:
            save_encoder(system.encoder, temporary)
            _save_head(temporary / EMOTION_HEAD, system.emotion_head)
            if system.ctc_head is not None:
                _save_head(temporary / CTC_HEAD, system.ctc_head)
                shutil.copyfile(tokens_model, temporary / TOKENS)
            description = {"labels": list(system.labels), "head": system.head_options}
            write_json(temporary / DESCRIPTION, description)

    @overload
    def predict(self, source: Pathlike) -> Prediction: ...
    @overload
    def predict(self, source: Sequence[Pathlike]) -> list[Prediction]: ...
    def predict(self, source: Pathlike | Sequence[Pathlike]) -> Prediction | list[Prediction]:
        """Recognise one recording, or several in batches; a list gives a list in its order.

        Args:
            source: Anything that libsndfile reads, at any rate; channels are averaged.

        Raises:
            UserError: Missing, damaged or empty audio, by name.
        """
        if isinstance(source, (list, tuple)):
            return self._predict([_read(path) for path in source])
        return self._predict([_read(source)])[0]

    def _predict(self, clips: Sequence[Array]) -> list[Prediction]:
        lengths = {f"{index:09d}": len(clip) for index, clip in enumerate(clips)}
        found: dict[str, Prediction] = {}
        for batch in make_batches(lengths, int(self.batch_seconds * SAMPLE_RATE)):
            output = self.system(*pad([clips[int(name)] for name in batch], self.device))
            for row, name in enumerate(batch):
                values = output.probabilities[row].tolist()
                best = self.labels[max(range(len(values)), key=values.__getitem__)]
                text = None if output.texts is None else output.texts[row]
                found[name] = Prediction(best, dict(zip(self.labels, values)), text)
        return [found[name] for name in lengths]


def _read(path: Pathlike) -> Array:
    samples, rate = load_audio(str(path))
    if len(samples) == 0:
        raise UserError(f"{path} has no samples")
    return resample(samples, rate, SAMPLE_RATE)


def _save_head(path: Path, head: nn.Module) -> None:
    state = {name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()}
    with atomic_open(path, "wb") as handle:
        handle.write(to_bytes(state, metadata={"format": "pt"}))


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"{name} is neither a folder nor a model of the Hugging Face Hub (user/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot get {name!r} from the Hugging Face Hub ({reason}): check the id "
            "and the network"
        ) from error
