# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # names come from adaltm.sh and utils/
# Memory-as-a-Layer: a test-time memory of the dialogue in the frozen SER expert of the same seed.
#
#   memory                    trained and used on dialogues
#   memory_constant           trained and used without ever being written: as many weights, no memory
#   memory_none               ablations of memory, which share its weights: the host alone,
#   memory_frozen             never written,
#   memory_reset_each_turn    emptied before every turn,
#   memory_shuffled           after other turns of the same dialogue, in a random order,
#   memory_other_dialog       after the turns of another dialogue
#
# Any other memory_<name> is trained with its own memory_<name>.yaml. Where the dialogues come from is
# `dialogs` in the configuration: given (utt2dialog), show, or speaker (pseudo-dialogues).

declare_memory() {
    local variant=${baseline#memory} config=${baseline_config} history='' source set
    local -a inputs own=() host=()
    case "${variant}" in
        "") ;;
        _none | _frozen | _reset_each_turn | _shuffled | _other_dialog) history=${variant#_} ;;
        *)
            if [ "${variant}" = _constant ]; then own=(--learn false); fi
            if [ ! -f "${config}" ] && [ "${variant}" != _constant ]; then
                die "--baselines: ${baseline} is no variant of memory, and there is no ${config}"
            fi
            ;;
    esac
    if [ -n "${history}" ]; then
        [[ " ${baselines%%"${baseline}"*}" == *" memory "* ]] ||
            die "--baselines: ${baseline} uses the weights of memory: put memory before it"
        source=$(baseline_folder memory "$((baseline_seed / 1000))")
        item history "${baseline_dir}" --inputs "${source}/baseline.json@baselines" \
            --outputs "${baseline_dir}/baseline.json" \
            -- python -m espnet_adaltm.bin.memory_history --system "${source}" \
            --history "${history}" --out "${baseline_dir}"
        return
    fi
    if [ ! -f "${config}" ]; then config=${baseline_conf}/memory.yaml; fi
    training "${baseline_seed}"
    fed_with all_shape
    inputs=("${config}" "${fed[@]}" "${label_names}@tokens" "${share_inputs[@]}")
    for set in "${train_set}" "${valid_set}"; do
        # shellcheck disable=SC2207  # one input per word
        inputs+=("${dumpdir}/${set}/utt2spk@audio" $(present "${dumpdir}/${set}@audio" utt2dialog))
    done
    if in_qwen2_audio "${config}"; then
        own+=(--feats_type raw)
    else
        host=(--ser_expert "${ser_dir}")
        inputs+=("${ser_dir}"/{expert.json,expert.safetensors,head.safetensors}@ser_expert)
    fi
    # Dialogues keep their turns: those without a label are heard.
    if [ "${label_share}" != 1 ]; then own+=(--emotion_shape "${share_shape}"); fi
    # shellcheck disable=SC2046  # one input per word
    item train "${baseline_dir}" --inputs "${inputs[@]}" $(emotions) \
        --outputs "${baseline_dir}"/{memory.safetensors,baseline.json} \
        -- python -m espnet_adaltm.bin.train_memory --config "${config}" --base "${base_dir}" \
        "${host[@]}" --labels "${labels}" --output_dir "${baseline_dir}" "${training[@]}" \
        "${own[@]}" "${baseline_words[@]}"
}

declare_memory
