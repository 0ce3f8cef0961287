#!/usr/bin/env bash
# Make the synthetic corpus and its data directories; every option is passed on (see --help):
#   local/data.sh --size full --out_data data/full --audio_dir data/full/audio
set -euo pipefail

"${python:-python3}" -m espnet_adaltm.bin.prepare_mini_espeak "$@"
