#!/usr/bin/env bash
# Make the data directories of MSP-Podcast; every option is passed on (see --help):
#   local/data.sh --msp_root /path/to/MSP-Podcast --msp_version 1.12 --out_data data
set -euo pipefail

"${python:-python3}" -m espnet_adaltm.bin.prepare_msp_podcast "$@"
