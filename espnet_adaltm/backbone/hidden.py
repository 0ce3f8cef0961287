"""Hidden states of a frozen encoder, computed once and stored.

What is trained on top of an encoder that never changes reads these instead of running it in every
epoch. Run it with ``python -m espnet_adaltm.bin.extract_hidden``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet_adaltm.backbone.arks import ArkWriter
from espnet_adaltm.backbone.encoder import EncoderOutput, SpeechEncoder
from espnet_adaltm.backbone.features import make_batches, pad_batch
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir, read_json, require, write_json
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.progress import progress

INFO = "hidden.json"
LAST, MEAN = "last", "mean"
_LARGEST_HALF = 65504.0


def check_layer(layer: str, num_layers: int) -> None:
    """Refuse what `choose` cannot choose.

    Raises:
        UserError: Neither ``last``, ``mean`` nor a number from 0 to ``num_layers``.
    """
    if layer in (LAST, MEAN) or (layer.isdecimal() and int(layer) <= num_layers):
        return
    raise UserError(
        f"--layer {layer!r} is neither {LAST}, {MEAN} nor a number from 0 (the input of the first "
        f"layer) to {num_layers}"
    )


def choose(output: EncoderOutput, layer: str) -> Tensor:
    """Hidden states [B, T, D]: of the ``last`` layer, a numbered one, or the layers' ``mean``."""
    if layer == MEAN:
        return sum(output.hidden[1:]) / (len(output.hidden) - 1)
    return output.hidden[-1 if layer == LAST else int(layer)]


def extract_hidden(
    encoder: SpeechEncoder,
    lengths: Mapping[str, int],
    load: Callable[[str], np.ndarray],
    out_dir: Pathlike,
    *,
    layer: str,
    max_length: int,
    **described: Any,
) -> int:
    """Write one hidden state per frame of every utterance.

    Args:
        encoder: Run where it lies (CPU or GPU), in evaluation mode.
        lengths: Utterance to samples, or to frames of the CNN.
        load: Utterance to samples [N] or CNN features [T, C], float32.
        out_dir: Folder to replace: ``feats.ark`` (float16 ``[T, D]``), ``feats.scp``,
            ``feats_shape`` (``utt T,D``) and ``hidden.json``. The paths in ``feats.scp`` begin with
            it, as given.
        layer: See `choose`.
        max_length: Samples or frames in one batch, padding included: speed and memory only.
        described: Further entries of ``hidden.json``.

    Returns:
        Number of utterances.

    Raises:
        UserError: An unknown layer, or states that half precision cannot hold.
    """
    check_layer(layer, encoder.num_layers)
    encoder.eval()
    out_dir = Path(out_dir)
    shapes: dict[str, str] = {}
    batches = make_batches(lengths, max_length)
    with atomic_dir(out_dir) as temporary:
        with ArkWriter(temporary, out_dir, "feats") as writer:
            for batch in progress(batches, f"hidden states for {out_dir}", unit="batch"):
                for utt, states in _run(encoder, batch, [load(utt) for utt in batch], layer):
                    if not np.abs(states).max() <= _LARGEST_HALF:
                        raise UserError(
                            f"utterance {utt!r}: a hidden state of layer {layer} is not finite in "
                            "half precision: choose another --layer"
                        )
                    writer.write(utt, states.astype(np.float16))
                    shapes[utt] = f"{states.shape[0]},{states.shape[1]}"
        write_scp(temporary / "feats_shape", shapes)
        info = {"layer": layer, "dim": encoder.hidden_size, **described}
        write_json(temporary / INFO, info)
    return len(shapes)


@torch.no_grad()
def _run(
    encoder: SpeechEncoder, batch: Sequence[str], arrays: Sequence[np.ndarray], layer: str
) -> list[tuple[str, np.ndarray]]:
    if arrays[0].ndim == 1:
        speech, lengths = pad_batch(list(arrays))
    else:
        lengths = torch.tensor([len(array) for array in arrays])
        speech = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(array) for array in arrays], batch_first=True
        )
    device = next(encoder.parameters()).device
    output = encoder(speech.to(device), lengths.to(device))
    states, frames = choose(output, layer).float().cpu(), output.lengths.tolist()
    return [(utt, row[:n].numpy()) for utt, row, n in zip(batch, states, frames, strict=True)]


def read_hidden_info(folder: Pathlike) -> dict[str, Any]:
    """Read ``hidden.json`` of a set.

    Raises:
        UserError: It is missing or lacks an entry: the folder holds something else.
    """
    path = require(Path(folder) / INFO, "bin/extract_hidden.py")
    info = read_json(path)
    lacking = [name for name in ("layer", "dim", "base_sha256") if name not in info]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}: run bin/extract_hidden.py again")
    return info
