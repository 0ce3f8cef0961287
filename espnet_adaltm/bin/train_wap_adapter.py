"""Train an adapter on stored hidden states of a frozen encoder, without labels.

    python -m espnet_adaltm.bin.train_wap_adapter --config conf/tiny/baselines/wap_adapter.yaml ...

Takes every option of ESPnet's trainer; `--help` lists them, `--print_config` prints them as YAML.
The same command again continues after an interruption and returns at once after the end.
"""

import argparse
from collections.abc import Sequence

from espnet_adaltm.training.launch import load_task
from espnet_adaltm.training.launch import main as launch

_TASK = "wap_adapter_task:WapAdapterTask"


def get_parser() -> argparse.ArgumentParser:
    """All options, ESPnet's and this package's (imports ESPnet: seconds)."""
    return load_task(_TASK).get_parser()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and write the results."""
    launch(_TASK, argv)


if __name__ == "__main__":
    main()
