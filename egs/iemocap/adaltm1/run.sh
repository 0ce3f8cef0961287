#!/usr/bin/env bash
# IEMOCAP: acted dialogues of ten speakers in five sessions, given under a licence. Cross-validation:
# every session (--folds 5) or every speaker (--folds 10) is tested once; the mean over folds.
#
#   ./run.sh --iemocap_root /path/to/IEMOCAP_full_release --ngpu 1
#   ./run.sh --iemocap_root /path/to/IEMOCAP_full_release --folds 10 --fold_jobs 2
#   ./run.sh --help                          # every option of adaltm.sh is accepted as well
#
# The audio is formatted once; then every fold is a run of adaltm.sh of its own, in data/fold1,
# dump/fold1 and exp/fold1. With cmd_backend=slurm the folds are one array job. Type the same again
# to go on. Without the corpus:
# . ./path.sh; python -m espnet_adaltm.bin.make_miniature iemocap --out miniature
set -euo pipefail

. utils/parse_options.sh
option iemocap_root "" "folder of the unpacked release; stage 1 needs it"
option folds 5 "5: a session is left out each time; 10: a speaker"
option fold_jobs 1 "folds that run at a time, each with the --ngpu of adaltm.sh"
option only_folds "" "these only, e.g. '1 2', and the report of these"
option left_out drop "what becomes of other emotions: drop, or words (kept for their transcripts)"
option expect_utts 5531 "utterances of the four classes, for parts of the corpus"
option stage data "first stage, number or name"
option stop_stage export "last stage, number or name"
option dry_run false "only say what would be done, and why"
option status false "only say how far everything is; exit status 0 if all is done, else 3"
option compare "adaltm:ser_only adaltm:static adaltm:global" "differences to show, first:second"
option python "" "Python interpreter or environment instead of that of tools/setup.sh"
option ngpu 0 "GPUs per training job; 0 is the CPU"
option model wavlm_large "folder of ../../../conf with the training configurations"
option base microsoft/wavlm-large "the base: a Hub id, a folder, a .pt file, tiny or random"

show_help() {
    echo "Usage: $0 [--name value]..."
    print_options
    exec ./adaltm.sh --help
}
take_options "$@"
# shellcheck disable=SC2154  # `option` assigns
case "${folds}" in
    5) leave_out=group ;;
    10) leave_out=speaker ;;
    *) die "--folds is 5 (sessions) or 10 (speakers), not '${folds}'" ;;
esac

ADALTM_RESUME=$(printf '%q ' ./run.sh "$@" | sed 's/ $//')
export ADALTM_RESUME
# shellcheck disable=SC2154
if [ -n "${python}" ]; then export ADALTM_PYTHON=${python}; fi
export -n python
. ./path.sh
. ./cmd.sh

. utils/parts.sh

# once OPTIONS...: adaltm.sh over the whole corpus.
once() {
    # shellcheck disable=SC2154  # parts.sh sets it
    part ./adaltm.sh --train_set all --valid_set all --test_sets all "$@" "${asked[@]}"
}

# Stages 1 and 2 are the corpus', the others every fold's.
# shellcheck disable=SC2154
fold_stage=${stage}
# shellcheck disable=SC2154
case "${stage}" in
    data | 1 | audio | 2)
        fold_stage=tokens
        if [ -n "${iemocap_root}" ]; then
            data="--iemocap_root ${iemocap_root} --left_out ${left_out} --expect_utts ${expect_utts}"
            preset=(--stage "${stage}" --local_data_opts "${data}")
        else
            [ -f data/all/wav.scp ] ||
                die "--iemocap_root is missing: the folder of the unpacked release"
            preset=(--stage audio)
        fi
        case "${stop_stage}" in
            data | 1 | audio | 2)
                once "${preset[@]}" --stop_stage "${stop_stage}"
                exit "${code}"
                ;;
        esac
        once "${preset[@]}" --stop_stage audio
        ;;
esac

# shellcheck disable=SC2154
if [ -z "${only_folds}" ]; then only_folds=$(seq -s ' ' 1 "${folds}"); fi
for fold in ${only_folds}; do
    [[ " $(seq -s ' ' 1 "${folds}") " == *" ${fold} "* ]] ||
        die "--only_folds are numbers up to ${folds}, not '${fold}'"
done
inputs=("dump/all/wav.scp@stage 2 (audio)") outputs=() exps=()
for file in utt2spk utt2emo text utt2dialog audio_stats.tsv; do
    if [ -f "dump/all/${file}" ]; then inputs+=("dump/all/${file}@stage 2 (audio)"); fi
done
# shellcheck disable=SC2154
for ((fold = 1; fold <= folds; fold++)); do
    outputs+=("dump/${folds}/fold${fold}"/{train,dev,test}/wav.scp)
done
for fold in ${only_folds}; do exps+=("exp/${folds}/fold${fold}"); done
# shellcheck disable=SC2154  # parts.sh sets it
if "${asking}"; then echo "Folds"; fi
part own_item "2/12 audio" "folds_${folds}" dump --inputs "${inputs[@]}" --outputs "${outputs[@]}" \
    -- python -m espnet_adaltm.bin.make_folds --dump dump/all --out "dump/${folds}" \
    --leave_out "${leave_out}" --group_length 5

# The folds: an array of jobs, within which everything runs where the job does.
# shellcheck disable=SC2154
conf=../../../conf/${model}
words=(
    --stage "${fold_stage}" --stop_stage "${stop_stage}" --ngpu "${ngpu}"
    --train_set train --valid_set dev --test_sets test
    --datadir "data/${folds}/foldJOB" --dumpdir "dump/${folds}/foldJOB"
    --expdir "exp/${folds}/foldJOB" --results_dir "exp/${folds}/foldJOB"
    --label_args "--scheme data/label_scheme.json" --compare "${compare}"
    --base "${base}" --feats_type extracted
    --base_config "${conf}/train_base.yaml" --asr_config "${conf}/train_asr.yaml"
    --ser_config "${conf}/train_ser.yaml" --merge_config "${conf}/train_merge.yaml"
    --merge_dir ../../../conf/merge --baseline_conf "${conf}/baselines"
    --token_type char --n_tokens 0 --report_args "--audio none" --recipe "iemocap, fold JOB of ${folds}"
    "${rest[@]}"
)
# shellcheck disable=SC2154  # cmd.sh assigns
if [ "${cmd_backend}" = slurm ]; then
    job="${cuda_cmd}"
    if [ "${ngpu}" -gt 0 ]; then job+=" --gpu ${ngpu}"; fi
else
    job=utils/run.pl
fi
here=(env cmd_backend=local train_cmd= cuda_cmd= decode_cmd=)
log=exp/${folds}/log/fold.JOB.log
if "${asking}"; then
    for fold in ${only_folds}; do
        echo "Fold ${fold} of ${folds}"
        part "${here[@]}" ./adaltm.sh "${words[@]//JOB/${fold}}" "${asked[@]}"
    done
elif [ "${#exps[@]}" -eq "${folds}" ]; then
    echo "folds: ${only_folds}; logs: ${log/JOB/N}"
    # shellcheck disable=SC2086,SC2154  # a job command is words
    ${job} --max_jobs_run "${fold_jobs}" "JOB=1:${folds}" "${log}" \
        "${here[@]}" ./adaltm.sh "${words[@]}"
else
    echo "folds: ${only_folds}; logs: ${log/JOB/N}"
    for fold in ${only_folds}; do
        # shellcheck disable=SC2086
        ${job} "JOB=${fold}" "${log}" "${here[@]}" ./adaltm.sh "${words[@]}"
    done
fi

case "${stop_stage}" in
    score | 11 | export | 12)
        if "${asking}"; then echo "Mean over folds"; fi
        part own_item "11/12 score" report_folds "exp/${folds}" --ignore_options command \
            --inputs "${exps[@]/%//results.json@stage 11 (score)}" \
            --outputs "exp/${folds}"/{RESULTS.md,results.json} \
            -- python -m espnet_adaltm.bin.report_folds --folds "${exps[@]}" --compare "${compare}" \
            --recipe "iemocap, folds ${only_folds} of ${folds}" --command "${ADALTM_RESUME}" \
            --out_dir "exp/${folds}"
        ;;
esac
exit "${code}"
