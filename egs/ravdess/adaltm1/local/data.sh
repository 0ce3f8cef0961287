#!/usr/bin/env bash
# Make the data directories of RAVDESS; every option is passed on (see --help):
#   local/data.sh --ravdess_root /path/to/RAVDESS --out_data data
set -euo pipefail

"${python:-python3}" -m espnet_adaltm.bin.prepare_ravdess "$@"
