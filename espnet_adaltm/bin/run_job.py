"""Kaldi's job command: ``run_job local|slurm [--option value]... [JOB=1:N] LOG COMMAND...``.

Recipes call it as ``utils/run.pl`` and ``utils/slurm.pl``; see `espnet_adaltm.jobs`. Exit status:
0 if all jobs ended well; 75 if some saved where they are, to be started again, and none failed; 1
otherwise.
"""

import sys
from collections.abc import Sequence
from functools import partial

from espnet_adaltm.errors import UserError
from espnet_adaltm.jobs import failure, outcome, parse, run_local


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs and return the exit status."""
    backend, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    try:
        if backend == "local":
            run = run_local
        elif backend == "slurm":
            from espnet_adaltm.slurm import run_slurm

            run = partial(run_slurm, tell=partial(print, file=sys.stderr, flush=True))
        else:
            raise UserError(f"expected local or slurm, got {backend!r}")
        job = parse(words)
        codes = run(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = failure(job, codes)
    if failed:
        print(failed, file=sys.stderr)
    return outcome({index: codes.get(index, 1) for index in job.indices()})


if __name__ == "__main__":
    sys.exit(main())
