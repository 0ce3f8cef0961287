# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # names come from adaltm.sh and utils/names.sh, and go on to scripts
# What the merges are compared with. A baseline is a script, utils/baselines/<name>.sh, sourced once
# for every seed; it declares items, as the stages do, that leave ${baseline_dir}/baseline.json and
# weights. It finds
#
#   baseline, baseline_dir   its name and the folder of this seed
#   baseline_seed            for `training`: far from those of other seeds
#   baseline_config          ${baseline_conf}/<name>.yaml
#   baseline_words           (array) what --baseline_args has for it
#
# and what utils/names.sh offers (training, fed_with, emotions, tokens, labels, base_dir ...). With
# --label_share it takes only the emotion labels that the merges get: "${share_words[@]}" or
# share_shape, and "${share_inputs[@]}". An item that reads what another one makes waits for it.
# Variants share a script: wap_adapter_small runs wap_adapter.sh with wap_adapter_small.yaml.
# Decoding is by the kind in baseline.json, see espnet_adaltm/decoding/baselines.

# baseline_script NAME: its script, that of the longest beginning of its name.
baseline_script() {
    local script=$1
    while [ ! -f "utils/baselines/${script}.sh" ]; do
        [[ "${script}" == *_* ]] || die "--baselines: '$1' is none of" \
            "$(find -L utils/baselines -name '*.sh' -exec basename {} .sh \; | sort | xargs)," \
            "nor one of them, _ and the name of a variant"
        script=${script%_*}
    done
    echo "utils/baselines/${script}.sh"
}

# baseline_words_of NAME: its part of --baseline_args. Parts are separated by ";"; "NAME: WORDS" is
# for one baseline, WORDS alone for all of them.
baseline_words_of() {
    local part name='^[[:space:]]*([a-z][a-z0-9_]*):[[:space:]](.*)$'
    local -a parts words=()
    IFS=';' read -ra parts <<<"${baseline_args}"
    for part in "${parts[@]}"; do
        if [[ ! "${part}" =~ ${name} ]]; then
            words+=("${part}")
        elif [ "${BASH_REMATCH[1]}" = "$1" ]; then
            words+=("${BASH_REMATCH[2]}")
        fi
    done
    echo "${words[*]}"
}

# in_ser_expert NAME: whether it is put into the SER expert of its seed.
in_ser_expert() {
    [[ "${baseline_script_of[$1]}" == */memory.sh ]] && ! in_qwen2_audio "${baseline_conf}/$1.yaml"
}
in_qwen2_audio() { # in_qwen2_audio YAML
    grep -qs '^host: qwen2_audio' "$1"
}

# What the folder of a baseline begins with; as those of the merges, it carries what differs from
# the configuration files, and a hash of the expert that it is put into: another one, another folder.
declare -A baseline_script_of=() baseline_stem=() ser_hash_of=()
for name in ${baselines}; do
    baseline_script_of[${name}]=$(baseline_script "${name}")
    baseline_stem[${name}]=${name}_${base_dir##*/base_}$(tag "$(baseline_words_of "${name}")" \
        "$(changed token_type n_tokens token_args label_share)")${feats_tag}
    if [ "${#ser_hash_of[@]}" -gt 0 ] || ! in_ser_expert "${name}"; then continue; fi
    for seed in ${seeds}; do
        with_seed "${seed}"
        ser_hash_of[${seed}]=_$(printf '%s' "${ser_dir##*/}" | sha256sum | cut -c1-6)
    done
    with_seed "${first_seed}"
done
if [[ "${baseline_args}" =~ (^|\;)[[:space:]]*([a-z][a-z0-9_]*):[[:space:]] ]]; then
    while IFS= read -r name; do
        [[ " ${baselines} " == *" ${name} "* ]] ||
            die "--baseline_args has '${name}:', which --baselines '${baselines}' lacks"
    done < <(tr ';' '\n' <<<"${baseline_args}" | sed -nE 's/^\s*([a-z][a-z0-9_]*):\s.*/\1/p')
fi
unset name seed

# baseline_folder NAME SEED
baseline_folder() {
    local hash=
    if in_ser_expert "$1"; then hash=${ser_hash_of[$2]}; fi
    echo "${expdir}/${baseline_stem[$1]}${hash}_seed$2"
}

# is_baseline FOLDER: whether it belongs to none of our own systems.
is_baseline() {
    case "$1" in
        "${expdir}"/asr_expert_* | "${expdir}"/ser_expert_* | "${expdir}"/merge_*) return 1 ;;
    esac
}

# declare_baseline NAME SEED: the items of one training.
declare_baseline() {
    local baseline=$1 baseline_seed=$((1000 * $2)) baseline_dir
    local baseline_config=${baseline_conf}/$1.yaml
    local -a baseline_words
    baseline_dir=$(baseline_folder "$1" "$2")
    read -ra baseline_words <<<"$(baseline_words_of "$1")"
    with_seed "$2"
    item_cmd=${train_cmd}
    # shellcheck source=/dev/null
    . "${baseline_script_of[$1]}"
}

# baseline_weights FOLDER: what its answers depend on.
baseline_weights() {
    echo "$1/baseline.json@baselines"
    if [ -d "$1" ]; then find "$1" -maxdepth 1 -name '*.safetensors' -printf '%p@baselines\n' | sort; fi
}

# baseline_sweeps: what else the report has a picture of.
baseline_sweeps() {
    local name sweep
    for name in ${baselines}; do
        sweep=$(baseline_folder "${name}" "${first_seed}")_sweep/sweep.json
        if [ -f "${sweep}" ]; then echo "${sweep}@baselines"; fi
    done
}

# baseline_pairs: paired tests of every baseline, beside those of --compare.
baseline_pairs() {
    local name other
    for name in ${baselines}; do
        for other in adaltm ser_only; do
            if [[ " ${compare} " != *" ${other}:${name} "* ]]; then echo "${other}:${name}"; fi
        done
    done
}
