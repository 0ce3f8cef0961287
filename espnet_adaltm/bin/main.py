"""The program ``espnet-adaltm``: one name for what a user types most.

Every command is a module of this package, imported only when it is asked for: help is there in a
fraction of a second.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from espnet_adaltm import __version__
from espnet_adaltm.config import nearest

PROGRAM = "espnet-adaltm"
COMMANDS: Mapping[str, str] = {
    "predict": "emotions, words and speakers of recordings",
    "info": "what a model is: labels, size, coefficients, scores",
    "merge": "merge fine-tuned encoders, file to file, without training",
    "export": "make a folder for from_pretrained, transformers and ONNX",
    "score": "metrics with intervals of a decoded system",
    "compare": "two experiments side by side",
}
_INTERRUPTED = 130


def usage() -> str:
    """Help of the program itself."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {told}" for name, told in COMMANDS.items())
    return f"""usage: {PROGRAM} COMMAND [options]

Speech emotion recognition by layer-wise merging of an ASR and an emotion expert.

commands:
{listed}

options:
  -h, --help     this text; `{PROGRAM} COMMAND --help` tells all of a command
  --version      version of the package

examples:
  {PROGRAM} predict -m exp/merge_adaltm_seed1/export speech.wav
  {PROGRAM} predict -m user/model recordings/*.flac --format csv > emotions.csv
  {PROGRAM} info user/model

exit status: 0 all went well, 1 an error (it is on standard error), 2 wrong options
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="", file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(
            f"error: unknown command {command!r}{nearest(command, COMMANDS)}; known: {known}",
            file=sys.stderr,
        )
        sys.exit(2)
    _run(command, rest)


def _run(command: str, words: Sequence[str]) -> None:
    typed, sys.argv[0] = sys.argv[0], f"{PROGRAM} {command}"  # what argparse calls the program
    try:
        importlib.import_module(f"espnet_adaltm.bin.{command}").main(words)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        sys.argv[0] = typed


if __name__ == "__main__":
    main()
