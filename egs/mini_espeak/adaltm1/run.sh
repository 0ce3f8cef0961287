#!/usr/bin/env bash
# The synthetic corpus, made on the spot: the demo, the tests, and an experiment with known answers.
#
#   ./run.sh                # quick: shows that everything works
#   ./run.sh --size full    # large enough, and three seeds, so that its differences mean something
#   ./run.sh --help         # every option of adaltm.sh is accepted as well
set -euo pipefail

. utils/parse_options.sh
option size quick "ci, quick or full: which corpus and which training"
option labelled_share "" "share of the training set with an emotion label (default: 0.5)"
option audio_dir "" "folder of the wav files (data/<size>/audio unless given)"
option stage data "first stage, number or name"
option stop_stage export "last stage, number or name"
option dry_run false "only say what would be done, and why"
option status false "only say how far everything is; exit status 0 if all is done, else 3"

show_help() {
    echo "Usage: $0 [--name value]..."
    print_options
    exec ./adaltm.sh --help
}
take_options "$@"
# shellcheck disable=SC2154  # `option` assigns
case "${size}" in
    ci) preset=(--seeds 1 --results_dir exp/ci --n_tokens 60) ;;
    quick) preset=(--seeds 1 --results_dir exp/quick --n_tokens 200) ;;
    full) preset=(--seeds "1 2 3" --results_dir . --n_tokens 200 --control_base random) ;;
    *) die "--size is ci, quick or full, not '${size}'" ;;
esac

share=${labelled_share:+--labelled_share ${labelled_share}}

ADALTM_RESUME=$(printf '%q ' ./run.sh "$@" | sed 's/ $//')
export ADALTM_RESUME
cores=$(env -u OMP_NUM_THREADS nproc)
# In braces, bash has read the file to its end: editing it does not disturb a run.
# shellcheck disable=SC2154
{
    ./adaltm.sh \
        --train_set train --valid_set dev --test_sets test \
        --local_data_opts "--size ${size} --audio_dir ${audio_dir:-data/${size}/audio} ${share}" \
        --datadir "data/${size}" --dumpdir "dump/${size}" --expdir "exp/${size}" \
        --feats_type extracted --base tiny --base_config "conf/${size}/train_base.yaml" \
        --asr_config "conf/${size}/train_asr.yaml" --ser_config "conf/${size}/train_ser.yaml" \
        --merge_config "conf/${size}/train_merge.yaml" --merge_dir ../../../conf/merge \
        --baseline_conf "conf/${size}/baselines" \
        --token_type unigram --n_tokens 100 --merge_jobs "${cores}" --nj "${cores}" \
        --stage "${stage}" --stop_stage "${stop_stage}" --dry_run "${dry_run}" --status "${status}" \
        "${preset[@]}" "${rest[@]}" &
    trap 'kill -TERM $! 2>/dev/null; wait $!; exit 143' INT TERM HUP
    trap 'again=true; kill -USR1 $! 2>/dev/null' USR1
    again=true
    while "${again}"; do # a signal ends `wait`, not what it waits for
        again=false
        code=0
        wait $! || code=$?
    done
    if [ "${code}" -ne 0 ]; then exit "${code}"; fi
    if [[ "${size}" != full && "${stage}" =~ ^(data|1)$ && "${stop_stage}" =~ ^(export|12)$ ]] &&
        ! "${dry_run}" && ! "${status}"; then
        echo "This run shows that everything works; ./run.sh --size full carries the evidence."
    fi
    exit
}
