"""Kaldi's job command: ``run_job local|slurm [--option value]... [JOB=1:N] LOG COMMAND...``.

Recipes call it as ``utils/run.pl`` and ``utils/slurm.pl``; see `espnet_adaltm.jobs`.
"""

import sys
from collections.abc import Sequence

from espnet_adaltm.errors import UserError
from espnet_adaltm.jobs import parse, run_local


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs and return the exit status."""
    backend, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    try:
        if backend == "local":
            failed = run_local(parse(words))
        elif backend == "slurm":
            from espnet_adaltm.slurm import run_slurm

            failed = run_slurm(parse(words))
        else:
            raise UserError(f"expected local or slurm, got {backend!r}")
    except UserError as error:
        failed = f"error: {error}"
    if failed:
        print(failed, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
