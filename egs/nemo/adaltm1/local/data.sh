#!/usr/bin/env bash
# Make the data directories of nEMO; every option is passed on (see --help):
#   local/data.sh --nemo_root /path/to/nEMO --out_data data
set -euo pipefail

"${python:-python3}" -m espnet_adaltm.bin.prepare_nemo "$@"
