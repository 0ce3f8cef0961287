"""Make an expert of a model that others fine-tuned from the base, for task vectors and decoding.

    python -m espnet_adaltm.bin.import_expert --source tiantiaf/wavlm-large-categorical-emotion \\
        --base exp/base_wavlm-large --labels data/labels.json --out exp/ser_expert_vox
    python -m espnet_adaltm.bin.import_expert --base exp/base_wavlm-large \\
        --source patrickvonplaten/wavlm-libri-clean-100h-large --out exp/asr_expert_libri

Known are Vox-Profile's WavLM emotion models, the baselines of the MSP-Podcast challenges, and CTC
models of transformers with a vocabulary of characters.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from espnet_adaltm.backbone.foreign import Foreign


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--source", required=True, help="Hub id or folder")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the expert")
    parser.add_argument("--kind", choices=("asr", "ser"), help="what it must be")
    parser.add_argument("--labels", type=Path, help="labels.json, for emotions")
    return parser


def work(args: argparse.Namespace) -> None:
    """Translate and write; expert.json comes last."""
    # Importing torch takes seconds: mistakes in the options are told before.
    from espnet_adaltm.backbone.foreign import complete_encoder, read_foreign
    from espnet_adaltm.backbone.loading import load_encoder, read_base_info
    from espnet_adaltm.decoding.systems import EXPERT, HEAD, WEIGHTS
    from espnet_adaltm.files import atomic_open, write_json

    base = read_base_info(args.base)["sha256"]
    foreign = read_foreign(args.source)
    if args.kind not in (None, foreign.kind):
        raise UserError(f"{args.source} is an expert of kind {foreign.kind}, not {args.kind}")
    encoder = load_encoder(args.base)
    state, taken = complete_encoder(foreign.encoder, encoder.encoder_state())
    try:
        encoder.load_encoder_state(state)
    except UserError as error:
        raise UserError(
            f"{args.source} was not fine-tuned from the base {args.base}: {error}"
        ) from error
    described = _ser(args, foreign) if foreign.kind == "ser" else _asr(foreign)
    head, files = described.pop("tensors"), described.pop("files", {})
    for name, content in files.items():
        with atomic_open(args.out / name, "wb") as handle:
            handle.write(content)
    _write_tensors(args.out / WEIGHTS, state)
    _write_tensors(args.out / HEAD, head)
    imported = {"source": str(args.source), "layout": foreign.layout, "from_base": taken}
    write_json(
        args.out / EXPERT,
        {"kind": foreign.kind, "base_sha256": base, **described, "imported": imported},
    )
    print(f"{args.out}: {foreign.kind} expert from {args.source} ({foreign.layout})")


def _write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    from safetensors.torch import save

    from espnet_adaltm.files import atomic_open

    with atomic_open(path, "wb") as handle:
        handle.write(save({name: t.contiguous() for name, t in tensors.items()}))


def _ser(args: argparse.Namespace, foreign: "Foreign") -> dict[str, Any]:
    from espnet_adaltm.backbone.foreign import choose_outputs, keep_outputs
    from espnet_adaltm.data.labels import load_labels

    if args.labels is None:
        raise UserError("--labels is missing: the emotions and their order")
    labels = load_labels(args.labels).labels
    chosen = choose_outputs(foreign.labels, labels, str(args.source))
    head = keep_outputs(foreign, chosen)
    return {"labels": list(labels), "head": foreign.head_options, "tensors": head}


def _asr(foreign: "Foreign") -> dict[str, Any]:
    from espnet_adaltm.backbone.foreign import characters, ctc_head
    from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer, train_tokens

    known = characters(foreign.vocabulary)
    written = " ".join(sorted(known.keys() - {" "}))
    model = train_tokens([written], "char", lowercase=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(model)
        tokens = Tokenizer(path).tokens
    files = {MODEL_FILE: model}
    return {"tokens": list(tokens), "tensors": ctc_head(foreign, tokens), "files": files}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
