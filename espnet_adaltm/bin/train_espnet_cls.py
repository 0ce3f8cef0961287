"""Train ESPnet's own classifier (espnet2's CLSTask) on our labelled utterances, for comparison.

    python -m espnet_adaltm.bin.train_espnet_cls --config conf/tiny/baselines/espnet_cls.yaml \\
        --train_dump dump/train --valid_dump dump/dev --labels data/labels.json --output_dir DIR

Takes every option of `espnet2.bin.cls_train`; `--help` lists them, `--print_config` prints them as
YAML. The same command again continues after an interruption and returns at once after the end.
"""

import argparse
from collections.abc import Sequence

from espnet_adaltm.training.launch import load_task
from espnet_adaltm.training.launch import main as launch

_TASK = "espnet_stock_cls:EspnetCLSTask"


def get_parser() -> argparse.ArgumentParser:
    """All options, ESPnet's and this package's (imports ESPnet: seconds)."""
    return load_task(_TASK).get_parser()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and write the results."""
    launch(_TASK, argv)


if __name__ == "__main__":
    main()
