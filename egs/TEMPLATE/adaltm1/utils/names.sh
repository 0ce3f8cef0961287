# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # options come from adaltm.sh, and the names go back to it
# What an experiment consists of and what it is called: folders of base, experts, vectors and
# merges, the files that one stage hands to the next, and the systems that are compared. Sourced by
# adaltm.sh once its options are known.

# unique WORD...: each once, in order.
unique() {
    printf '%s\n' "$@" | awk '!seen[$0]++' | xargs
}

# With --split, sets and folders of their own, made from those of the corpus by `split_item`.
corpus_dir=${datadir}
# shellcheck disable=SC2086  # one set per word
corpus_sets=$(unique ${train_set} ${valid_set} ${test_sets} ${blind_sets})
case "${split}" in
    "") ;;
    published_leaky)
        train_set=train
        valid_set=${split}
        test_sets=${split}
        pools=
        blind_sets=
        allow_speaker_overlap=true
        for name in datadir dumpdir expdir results_dir; do
            printf -v "${name}" '%s' "${!name}/${split}"
        done
        unset name
        ;;
    *) die "--split is published_leaky or empty, not '${split}'" ;;
esac
split_item() {
    local set sources=() inputs=()
    for set in ${corpus_sets}; do
        sources+=("${corpus_dir}/${set}")
        inputs+=("${corpus_dir}/${set}"/{wav.scp,utt2spk}@data)
    done
    item split "${datadir}" --shared true --inputs "${inputs[@]}" \
        --outputs "${datadir}"/{"${train_set}","${valid_set}"}/wav.scp \
        -- python -m espnet_adaltm.bin.leaky_split --sets "${sources[@]}" --out "${datadir}"
}

# shellcheck disable=SC2086  # one set per word
all_sets=$(unique ${train_set} ${valid_set} ${test_sets})
heard_sets=${all_sets}${blind_sets:+ ${blind_sets}}
for set in ${blind_sets}; do
    [[ " ${all_sets} " != *" ${set} "* ]] || die "--blind_sets: ${set} is trained on or scored"
done
for set in ${pools//+/ }; do
    [[ " ${test_sets} " == *" ${set} "* ]] || die "--pools: ${set} is none of --test_sets"
done
unset set
tokens=${datadir}/tokens/${token_type}${n_tokens#0}
labels=${datadir}/labels.json
label_names=${datadir}/labels.txt # what a training depends on; it reads labels.json

# With --expert_seed each, what is not trained once per seed has seed 1.
experts_each=false
read -r first_seed _ <<<"${seeds}"
if [ "${expert_seed}" = each ]; then
    [[ "${first_seed}" && " ${seeds} " != *" 0 "* ]] ||
        die "--expert_seed each takes --seeds from 1 on, not '${seeds}'"
    experts_each=true
    expert_seed=1
fi
base_seed=${expert_seed}

# tag WORDS: "_<hash>" of overrides that change the result; nothing if there are none.
tag() {
    local words ignored="max_epoch|num_workers|ngpu|log_interval|log_level|use_tensorboard|wandb_[a-z_]+"
    words=$(echo "$*" | sed -E "s/--(${ignored}|use_wandb)[ =][^ ]+//g" | xargs)
    if [ -n "${words}" ]; then
        printf '_%s' "$(printf '%s' "${words}" | sha256sum | cut -c1-6)"
    fi
}
stem() {
    basename "$1" .yaml
}
# One folder for each results_dir: reports that differ don't take each other's stamp.
report_dir=${expdir}/report$(tag "$(changed results_dir)")
feats_tag=
if [ "${feats_type}" = raw ]; then feats_tag=_raw; fi

# refuse_twice OPTION WORD...: of one system twice, only scoring would tell.
refuse_twice() {
    local twice
    twice=$(printf '%s\n' "${@:2}" | awk 'seen[$0]++ && !told++')
    [ -z "${twice}" ] || die "--$1: '${twice}' is given twice"
}

# Merges by name: where the YAML of each lies.
declare -A merge_yaml=()
merge_paths=${merges}
merges=
for name in ${merge_paths}; do
    path=${merge_dir}/${name}.yaml
    if [[ "${name}" == *.yaml ]]; then path=${name}; fi
    name=$(stem "${path}")
    [ "${merge_yaml[${name}]:-${path}}" = "${path}" ] ||
        die "--merges: ${merge_yaml[${name}]} and ${path} have one name"
    merge_yaml[${name}]=${path}
    merges+="${merges:+ }${name}"
done
unset merge_paths path
# shellcheck disable=SC2086  # one name per word
{
    refuse_twice merges ${merges}
    refuse_twice seeds ${seeds}
    refuse_twice baselines ${baselines}
}

# With --label_share, SER expert and merges take these utterances of the training set.
share_words=()
share_inputs=()
share_shape=${datadir}/label_share/ser_shape_${label_share}
[[ "${label_share}" =~ ^(1|0?\.[0-9]*[1-9])$ ]] ||
    die "--label_share is a number above 0 and up to 1, such as 0.05, not '${label_share}'"
if [ "${label_share}" != 1 ]; then
    share_words=(--train_shape_file "${share_shape}")
    share_inputs=("${share_shape}@tokens")
fi

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
    ser_tag=${base_tag}_$(stem "${ser_config}")$(tag "${ser_args}" "$(changed expert_seed label_share)")
    base_dir=${expdir}/base_${base_tag}
    asr_dir=${expdir}/asr_expert_${asr_tag}${feats_tag}
    ser_dir=${expdir}/ser_expert_${ser_tag}${feats_tag}
    if [ -n "${asr_expert}" ]; then
        asr_dir=${expdir}/asr_expert_${base_tag}_from_$(basename "${asr_expert}")
    fi
    if [ -n "${ser_expert}" ]; then
        ser_dir=${expdir}/ser_expert_${base_tag}_from_$(basename "${ser_expert}")
    fi
}
name_experts

# for_control FUNCTION ARGUMENT...: calls it as if --base were what --control_base is, if anything.
for_control() {
    local base=${control_base} expert_seed=${base_seed} asr_expert='' ser_expert=''
    local base_dir asr_dir ser_dir
    if [ -n "${control_base}" ]; then
        name_experts
        "$@"
    fi
}

# with_seed SEED: names experts, task vectors and merges of a seed, and the seed that its experts are
# trained with. They are the same for every seed unless --expert_seed is each. Experts of seed 1 are
# those of a run without it; the others are far from each other and from those of the merges, because
# ESPnet seeds an epoch with seed + epoch: neighbours would share their noise.
asr_once=${asr_dir}
ser_once=${ser_dir}
merge_stem=_$(stem "${merge_config}")
merge_hash=$(tag "${merge_args}")
declare -A hash_of=()
with_seed() {
    local seed=1 suffix=
    if "${experts_each}"; then
        seed=$1
        expert_seed=1
        if [ "${seed}" -gt 1 ]; then
            expert_seed=$((1000 * seed + 500))
            suffix=_seed${seed}
        fi
    fi
    asr_dir=${asr_once}${suffix}
    ser_dir=${ser_once}${suffix}
    # Task vectors and merges stand on both experts: other experts, other folders.
    if [ -z "${hash_of[${seed}]:-}" ]; then
        hash_of[${seed}]=$(printf '%s' "${asr_dir##*/} ${ser_dir##*/}" | sha256sum | cut -c1-6)
    fi
    vectors=${expdir}/task_vectors_${hash_of[${seed}]}
    merge_tag=${merge_stem}_${hash_of[${seed}]}${merge_hash}
}
for seed in ${seeds}; do with_seed "${seed}"; done # what it calls is slow: once per seed
unset seed
with_seed "${first_seed}"

# Merges of the first seed that leave the pipeline, name=folder.
exported=
for name in ${export_merges}; do
    if [[ " ${merges} " == *" ${name} "* ]]; then
        exported+=" ${name}=${expdir}/merge_${name}${merge_tag}_seed${first_seed}"
    fi
done

# with_system SYSTEM: with_seed of a "name:seed=folder"; the first seed for those without one.
with_system() {
    local name=${1%%=*}
    case "${name}" in
        *:*) with_seed "${name#*:}" ;;
        *) with_seed "${first_seed}" ;;
    esac
}

# for_experts FUNCTION: calls it once, or for the experts of every seed.
for_experts() {
    local seed
    if ! "${experts_each}"; then
        "$1"
        return
    fi
    for seed in ${seeds}; do
        with_seed "${seed}"
        "$1"
    done
}
several_experts() {
    "${experts_each}" || [ -n "${control_base}" ]
}
echo_vectors() {
    echo "${vectors}"
}

# Lists of words, each split once.
read -ra local_data_words <<<"${local_data_opts}"
read -ra token_words <<<"${token_args}"
read -ra label_words <<<"${label_args}"
read -ra base_words <<<"${base_args}"
read -ra asr_words <<<"${asr_args}"
read -ra ser_words <<<"${ser_args}"
read -ra merge_words <<<"${merge_args}"
read -ra decode_words <<<"${decode_args}"
read -ra connectivity_words <<<"${connectivity_args}"
read -ra score_words <<<"${score_args}"
read -ra export_words <<<"${export_args}"
read -ra report_words <<<"${report_args}"

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
    training=(--seed "$1" --num_workers "${num_workers}" "${logging[@]}" --feats_type "${feats_type}"
        --train_dump "${dumpdir}/${train_set}" --valid_dump "${dumpdir}/${valid_set}")
    if [ "${num_nodes}" -gt 1 ]; then
        item_cmd="python -m espnet_adaltm.training.nodes --cmd '${cuda_cmd}' --ngpu ${ngpu}"
        item_cmd+=" --num_nodes ${num_nodes} --log {log} --"
    elif [ "${ngpu}" -gt 0 ]; then
        item_cmd="${cuda_cmd} --gpu ${ngpu}"
        training+=(--ngpu "${ngpu}" --multiprocessing_distributed true)
    else
        training+=(--ngpu 0)
    fi
}

# on_device COMMAND: sets `device` for what needs one GPU at most, and the job command it runs with.
on_device() {
    device=cpu
    item_cmd=$1
    if [ "${ngpu}" -gt 0 ]; then
        device=cuda
        item_cmd="${cuda_cmd} --gpu 1"
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

# emotions: the files that hold the targets of emotion training.
emotions() {
    local set
    for set in "${train_set}" "${valid_set}"; do
        echo "${dumpdir}/${set}/utt2emo@audio"
        present "${dumpdir}/${set}@audio" utt2soft
    done
}

# merge_needs YAML: what this merge takes beyond the others, as options in `needed_words` and as inputs
# in `needed`: the ASR expert where words are an objective, speech to adapt to (of the first test set).
# Python would take seconds to read it; bin/check_merges.py refuses what is not seen here.
merge_needs() {
    local text set=${test_sets%% *}
    needed_words=("${share_words[@]}")
    needed=("${share_inputs[@]}")
    if [ ! -f "$1" ]; then return; fi
    text=$'\n'$(<"$1")
    # Not the training set's labels are learned from.
    if [[ "${text}" == *$'\nlearn_on: '[ha]* || "${text}" == *$'\nobjective: entropy'* ]]; then
        needed_words=()
        needed=()
    fi
    if [[ "${text}" == *$'\nobjective: supervised_'[cd]* ]]; then
        needed_words+=(--asr_expert "${asr_dir}")
        # shellcheck disable=SC2207  # one input per word
        needed+=("${asr_dir}/head.safetensors@asr_expert"
            $(present "${dumpdir}/${train_set}@audio" text)
            $(present "${dumpdir}/${valid_set}@audio" text))
    fi
    if [[ "${text}" == *$'\nobjective: entropy'* ]]; then
        needed+=("${dumpdir}/${train_set}/all_shape@audio" "${dumpdir}/${valid_set}/all_shape@audio")
    fi
    if [[ "${text}" == *$'\nlearn_on: held_out'* ]]; then
        needed+=("${dumpdir}/${valid_set}/utt2spk@audio")
    fi
    if [[ "${text}" == *$'\nlearn_on: adapt'* ]]; then
        needed_words+=(--adapt_dump "${dumpdir}/${set}")
        needed+=("${dumpdir}/${set}/wav.scp@audio" "${dumpdir}/${set}/all_shape@audio")
        if [ "${feats_type}" = extracted ]; then needed+=("${base_dir}/feats/${set}/feats.scp@base"); fi
    fi
}

# systems: "name[:seed]=folder" of everything that is decoded and scored, in the order of tables.
systems() {
    local name seed
    for_experts asr_system
    for_experts ser_system
    for_control control_systems
    for name in ${baselines}; do
        for seed in ${seeds}; do
            echo "${name}:${seed}=$(baseline_folder "${name}" "${seed}")"
        done
    done
    imported_systems
    for name in ${merges}; do
        for seed in ${seeds}; do
            with_seed "${seed}"
            echo "${name}:${seed}=${expdir}/merge_${name}${merge_tag}_seed${seed}"
        done
    done
}

# system_names: their names, without seeds, in one line.
system_names() {
    systems | xargs -n1 | sed 's/[:=].*//' | uniq | xargs
}

# In for_experts, `seed` is set where every seed has its own.
asr_system() {
    echo "asr_expert${seed:+:${seed}}=${asr_dir}"
}
ser_system() {
    echo "ser_expert${seed:+:${seed}}=${ser_dir}"
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
        *) baseline_weights "$1" ;;
    esac
}

# answers_of SYSTEM FOLDER SUFFIX: what decoding writes there; the ASR expert knows no emotions. What is
# imported may have either, and is there already.
answers_of() {
    case "$1" in
        *=*/import_*) present "$2$3" utt2prob utt2emo text ;;
        *=*/asr_expert_*) echo "$2/text$3" ;;
        *=*/merge_*) echo "$2/utt2prob$3 $2/utt2emo$3 $2/text$3" ;;
        *) echo "$2/utt2prob$3 $2/utt2emo$3" ;;
    esac
}
