#!/usr/bin/env bash
# Kaldi's job command for Slurm: [--config conf/slurm.conf] [--option value]... [JOB=1:N] LOG COMMAND...
# The name ends in .pl because espnet2.bin.launch recognises Slurm by it.
exec python -m espnet_adaltm.bin.run_job slurm "$@"
