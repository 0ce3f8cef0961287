# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # options come from adaltm.sh, and the names go back to it
# What an experiment consists of and what it is called: folders of base, experts, vectors and
# merges, the files that one stage hands to the next, and the systems that are compared. Sourced by
# adaltm.sh once its options are known.

all_sets="${train_set} ${valid_set} ${test_sets}"
tokens=${datadir}/tokens/${token_type}${n_tokens#0}
labels=${datadir}/labels.json
label_names=${datadir}/labels.txt # what a training depends on; it reads labels.json

# tag WORDS: "_<hash>" of overrides that change the result; nothing if there are none.
tag() {
    local words ignored="max_epoch|num_workers|ngpu|log_interval|log_level|use_tensorboard|wandb_[a-z]+"
    words=$(echo "$*" | sed -E "s/--(${ignored}|use_wandb)[ =][^ ]+//g" | xargs)
    if [ -n "${words}" ]; then
        printf '_%s' "$(printf '%s' "${words}" | sha256sum | cut -c1-6)"
    fi
}
stem() {
    basename "$1" .yaml
}
feats_tag=
if [ "${feats_type}" = raw ]; then feats_tag=_raw; fi

# name_experts: sets the folders of base and experts, which carry the name of `base`.
name_experts() {
    local base_tag asr_tag ser_tag
    case "${base}" in
        tiny) base_tag=tiny$(tag "${base_args}" "$(changed num_units expert_seed)") ;;
        random) base_tag=random$(tag "$(changed expert_seed)") ;;
        *) base_tag=$(basename "${base}" .pt) ;;
    esac
    asr_tag=${base_tag}_$(stem "${asr_config}")_$(basename "${tokens}")$(tag "${asr_args}" \
        "$(changed expert_seed token_args)")
    ser_tag=${base_tag}_$(stem "${ser_config}")$(tag "${ser_args}" "$(changed expert_seed)")
    base_dir=${expdir}/base_${base_tag}
    asr_dir=${expdir}/asr_expert_${asr_tag}${feats_tag}
    ser_dir=${expdir}/ser_expert_${ser_tag}${feats_tag}
}
name_experts

# for_control FUNCTION ARGUMENT...: calls it as if --base were what --control_base is, if anything.
for_control() {
    local base=${control_base} base_dir asr_dir ser_dir
    if [ -n "${control_base}" ]; then
        name_experts
        "$@"
    fi
}
# Task vectors and merges stand on both experts: other experts, other folders.
experts=$(printf '%s' "${asr_dir##*/} ${ser_dir##*/}" | sha256sum | cut -c1-6)
vectors=${expdir}/task_vectors_${experts}
merge_tag=_$(stem "${merge_config}")_${experts}$(tag "${merge_args}")

# Lists of words, each split once.
read -ra local_data_words <<<"${local_data_opts}"
read -ra token_words <<<"${token_args}"
read -ra label_words <<<"${label_args}"
read -ra base_words <<<"${base_args}"
read -ra asr_words <<<"${asr_args}"
read -ra ser_words <<<"${ser_args}"
read -ra merge_words <<<"${merge_args}"
read -ra decode_words <<<"${decode_args}"
read -ra score_words <<<"${score_args}"

# present FOLDER@STAGE NAME...: those files of a data directory that there are.
present() {
    local folder=${1%@*} made=${1##*@} name
    shift
    for name in "$@"; do
        if [ -f "${folder}/${name}" ]; then echo "${folder}/${name}@${made}"; fi
    done
}

# training SEED: options shared by all trainings, in the array `training`, and their job command.
training() {
    training=(--seed "$1" --num_workers "${num_workers}" --feats_type "${feats_type}"
        --train_dump "${dumpdir}/${train_set}" --valid_dump "${dumpdir}/${valid_set}")
    if [ "${num_nodes}" -gt 1 ]; then
        item_cmd="python -m espnet2.bin.launch --cmd '${cuda_cmd}' --ngpu ${ngpu}"
        item_cmd+=" --num_nodes ${num_nodes} --init_file_prefix ${expdir}/.dist_init_ --log {log} --"
    elif [ "${ngpu}" -gt 0 ]; then
        item_cmd="${cuda_cmd} --gpu ${ngpu}"
        training+=(--ngpu "${ngpu}" --multiprocessing_distributed true)
    else
        training+=(--ngpu 0)
    fi
}

# fed_with FILE: the inputs that a training takes from base and dumps, in the array `fed`.
fed_with() {
    local set
    fed=("${base_dir}/model.safetensors@base")
    for set in "${train_set}" "${valid_set}"; do
        fed+=("${dumpdir}/${set}/wav.scp@audio" "${dumpdir}/${set}/$1@audio")
        if [ "${feats_type}" = extracted ]; then
            fed+=("${base_dir}/feats/${set}/feats.scp@base")
        fi
    done
}

# systems: "name[:seed]=folder" of everything that is decoded and scored, in the order of tables.
systems() {
    local name seed
    echo "asr_expert=${asr_dir}" "ser_expert=${ser_dir}"
    for_control control_systems
    for name in ${baselines}; do
        for seed in ${seeds}; do echo "${name}:${seed}=${expdir}/${name}_seed${seed}"; done
    done
    for name in ${merges}; do
        for seed in ${seeds}; do echo "${name}:${seed}=${expdir}/merge_${name}${merge_tag}_seed${seed}"; done
    done
}

control_systems() {
    local name
    name=$(basename "${control_base}" .pt)
    echo "asr_${name}=${asr_dir}" "ser_${name}=${ser_dir}"
}

# base_of SYSTEM: the folder of the base that it stands on.
base_of() {
    case " $(for_control control_systems | xargs) " in
        *" $1 "*) for_control echo_base ;;
        *) echo "${base_dir}" ;;
    esac
}
echo_base() {
    echo "${base_dir}"
}

# weights_of FOLDER: the files that a system's answers depend on, with their stages.
weights_of() {
    case "$1" in
        "${expdir}"/asr_expert_*) echo "$1/expert.safetensors@asr_expert $1/head.safetensors@asr_expert" ;;
        "${expdir}"/ser_expert_*) echo "$1/expert.safetensors@ser_expert $1/head.safetensors@ser_expert" ;;
        "${expdir}"/merge_*) echo "$1/coefficients.json@merge $1/head.safetensors@merge" \
            "${vectors}/asr.safetensors@task_vectors ${vectors}/ser.safetensors@task_vectors" ;;
        *) echo "$1/head.safetensors@baselines" ;;
    esac
}

# answers_of SYSTEM FOLDER SUFFIX: what decoding writes there; the ASR expert knows no emotions.
answers_of() {
    case "$1" in
        *=*/asr_expert_*) echo "$2/text$3" ;;
        *=*/merge_*) echo "$2/utt2prob$3 $2/utt2emo$3 $2/text$3" ;;
        *) echo "$2/utt2prob$3 $2/utt2emo$3" ;;
    esac
}
