#!/usr/bin/env bash
# MSP-Podcast: natural emotional speech from podcasts, given under a licence. AdaLTM's experiment.
#
#   ./run.sh --msp_root /path/to/MSP-Podcast --msp_version 1.12 --ngpu 2         # as in the paper
#   ./run.sh --msp_root /path/to/MSP-Podcast --msp_version 2.0 --drop_empty_text false
#   ./run.sh --ood_asr_expert patrickvonplaten/wavlm-libri-clean-100h-large  # one row more
#   ./run.sh --help                          # every option of adaltm.sh is accepted as well
#
# Without the corpus: . ./path.sh; python -m espnet_adaltm.bin.make_miniature msp_podcast --out miniature
set -euo pipefail

. utils/parse_options.sh
option msp_root "" "folder of the unpacked release; stage 1 needs it"
option msp_version "" "1.11, 1.12 (the paper's) or 2.0; stage 1 needs it"
option classes 8 "4 (anger happiness neutral sadness), 8, 9 (with other) or 10 (with no agreement)"
option left_out drop "what becomes of turns of no class (O and X): drop, words (kept for their transcripts) or votes (kept in train with the annotators' votes)"
option targets consensus "what emotions are learned from: consensus, or votes (annotators' distributions)"
option drop_empty_text true "only turns with a transcript, as in the paper"
option shared_speakers keep "keep (official splits), or drop: from train the speakers of dev and tests"
option datadir data "folder of the data directories"
option test3 true "also recognise Test3, and write files to submit"
option ood_asr_expert "" "then also make the paper's row with an ASR expert of other speech: a CTC model (Hub id or folder) that was fine-tuned from the base; its report goes to ood/"
option expdir exp "folder of models and results"
option stop_stage export "last stage, number or name"
option dry_run false "only say what would be done, and why"
option status false "only say how far everything is; exit status 0 if all is done, else 3"
option python "" "Python interpreter or environment instead of that of tools/setup.sh"
option results_dir . "where RESULTS.md, results.json, COMPARISON.md, submissions/ and plots/ go"
option compare "adaltm:ser_only adaltm:static adaltm:global" "paired tests, first:second"
option model wavlm_large "folder of ../../../conf with the training configurations"
option base microsoft/wavlm-large "the base: a Hub id, a folder, a .pt file, tiny or random"

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
if [ -n "${msp_root}" ]; then
    [ -n "${msp_version}" ] || die "--msp_version is missing: 1.11, 1.12 or 2.0"
    data="--msp_root ${msp_root} --msp_version ${msp_version} --classes ${classes}"
    data+=" --left_out ${left_out} --targets ${targets} --drop_empty_text ${drop_empty_text}"
    data+=" --shared_speakers ${shared_speakers} --test3 ${test3}"
    preset=(--local_data_opts "${data}")
else
    [ -f "${datadir}/train/wav.scp" ] || die "--msp_root is missing: the folder of the unpacked release"
    preset=(--stage audio)
fi
# shellcheck disable=SC2154
if "${test3}"; then preset+=(--blind_sets test3); fi
# shellcheck disable=SC2154
if [ "${targets}" = votes ]; then
    preset+=(--ser_args "--soft_labels true" --merge_args "--soft_labels true")
fi
# The licence does not let recordings out: none in report.html.
# The official splits share a few speakers, which data/preparation.md and dump/audit.md name.
# shellcheck disable=SC2154
words=(
    --train_set train --valid_set dev --test_sets "test1 test2" --pools test1+test2
    --allow_speaker_overlap true --base "${base}" --feats_type extracted
    --nj "$(nproc)" --datadir "${datadir}" --label_args "--scheme ${datadir}/label_scheme.json"
    --base_config "${conf}/train_base.yaml" --asr_config "${conf}/train_asr.yaml"
    --ser_config "${conf}/train_ser.yaml" --merge_config "${conf}/train_merge.yaml"
    --merge_dir ../../../conf/merge --baseline_conf "${conf}/baselines" --baselines mtlser
    --token_type unigram --n_tokens 500 --report_args "--audio none"
    --expdir "${expdir}" --stop_stage "${stop_stage}" --compare "${compare}"
    "${preset[@]}" "${rest[@]}"
)
# shellcheck disable=SC2154
if [ -n "${python}" ]; then export ADALTM_PYTHON=${python}; fi
export -n python
# shellcheck disable=SC2154
if [ -z "${ood_asr_expert}" ]; then
    exec ./adaltm.sh "${words[@]}" --results_dir "${results_dir}" --status "${status}" \
        --dry_run "${dry_run}"
fi
. ./path.sh
. utils/parts.sh
# shellcheck disable=SC2154  # parts.sh sets it
part env ADALTM_ELSEWHERE=adaltm_ood \
    ./adaltm.sh "${words[@]}" --results_dir "${results_dir}" "${asked[@]}"
# shellcheck disable=SC2154  # parts.sh sets it
if "${asking}"; then echo "With the other ASR expert"; fi
part env ADALTM_ELSEWHERE="${compare//:/ }" \
    ./adaltm.sh "${words[@]}" --results_dir "${results_dir}/ood" --asr_expert "${ood_asr_expert}" \
    --merges adaltm_ood --export_merges adaltm_ood --baselines "" --recipe "msp_podcast, other ASR" \
    "${asked[@]}"
case "${stop_stage}" in
    score | 11 | export | 12)
        if "${asking}"; then echo "Both, beside published results"; fi
        part own_item "11/12 score" compare_ood "${expdir}/compare_ood" \
            --inputs "${results_dir}"/{,ood/}results.json"@stage 11 (score)" \
            "${datadir}/labels.json@stage 3 (tokens)" --outputs "${results_dir}/COMPARISON_ood.md" \
            -- python -m espnet_adaltm.bin.compare_published --results "${results_dir}/results.json" \
            --ood_results "${results_dir}/ood/results.json" --labels "${datadir}/labels.json" \
            --out "${results_dir}/COMPARISON_ood.md"
        ;;
esac
# shellcheck disable=SC2154  # parts.sh sets it
exit "${code}"
