#!/usr/bin/env bash
# nEMO: acted emotional speech, Polish, 9 speakers, 6 emotions, with transcripts.
#
#   ./run.sh --nemo_root /path/to/nEMO                            # the tiny base
#   ./run.sh --nemo_root /path/to/nEMO --base microsoft/wavlm-large --model wavlm_large --ngpu 1
#   ./run.sh --help                          # every option of adaltm.sh is accepted as well
set -euo pipefail

. utils/parse_options.sh
option nemo_root "" "folder of the corpus as released; stage 1 needs it (nEMO: github.com/amu-cai/nEMO, huggingface.co/datasets/amu-cai/nEMO; CC BY-NC-SA 4.0)"
option model tiny "folder of ../../../conf with the training configurations"

show_help() {
    echo "Usage: $0 [--name value]..."
    print_options
    exec ./adaltm.sh --help
}
take_options "$@"

ADALTM_RESUME=$(printf '%q ' ./run.sh "$@" | sed 's/ $//')
export ADALTM_RESUME
# shellcheck disable=SC2154  # `option` assigns
conf=../../../conf/${model}
# shellcheck disable=SC2154
if [ -n "${nemo_root}" ]; then
    preset=(--local_data_opts "--nemo_root ${nemo_root}")
else
    [ -f data/train/wav.scp ] || die "--nemo_root is missing: the folder of the corpus as released"
    preset=(--stage audio)
fi
exec ./adaltm.sh \
    --train_set train --valid_set dev --test_sets test \
    --feats_type extracted --merge_jobs "$(nproc)" --nj "$(nproc)" \
    --base_config "${conf}/train_base.yaml" --asr_config "${conf}/train_asr.yaml" \
    --ser_config "${conf}/train_ser.yaml" --merge_config "${conf}/train_merge.yaml" \
    --merge_dir ../../../conf/merge --baseline_conf "${conf}/baselines" --token_type char --n_tokens 0 \
    "${preset[@]}" "${rest[@]}"
