#!/usr/bin/env bash
# Make the data directory data/all of IEMOCAP; every option is passed on (see --help):
#   local/data.sh --iemocap_root /path/to/IEMOCAP_full_release --out_data data
set -euo pipefail

"${python:-python3}" -m espnet_adaltm.bin.prepare_iemocap "$@"
