# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # names come from adaltm.sh and utils/
# Adapter with local attributes (WAP-Transformer): hidden states of the frozen encoder are stored, the
# adapter is trained on them without labels, then adapter, pooling and classifier are fine-tuned.
#
#   wap_adapter                  all of it
#   wap_adapter_scratch          no adapter training
#   wap_adapter_no_attributes    adapter training by self-distillation alone
#   wap_adapter_no_distill       adapter training by local attributes alone
#   wap_adapter_clusters32       with 32 (or any other number of) local attributes
#   wap_adapter_transfer         adapter training on the speech of another recipe, given by --from
#
# A variant <name> is trained with <name>.yaml if there is one, else with wap_adapter.yaml, and
# fine-tuned with wap_head.yaml. --baseline_args takes, for each of them,
#
#   [--layer last|mean|NUMBER] [--from DUMPDIR] [overrides of wap_adapter.yaml] [then overrides of wap_head.yaml]
#
#   --baselines "wap_adapter wap_adapter_transfer" \
#       --baseline_args "wap_adapter_transfer: --from ../../ravdess/adaltm1/dump then --max_epoch 30"

declare_wap() {
    local layer=last from=${dumpdir} config=${baseline_config} head_config=${baseline_conf}/wap_head.yaml
    local adapter=${baseline_dir}_adapter states pretrained part=adapter variant=${baseline#wap_adapter}
    local set file device speech
    local -a adapter_words=() head_words=() inputs=() labelled=() started=()
    case "${variant}" in
        "" | _transfer) ;;
        _scratch) adapter= ;;
        _no_attributes) adapter_words=(--attribute_weight 0) ;;
        _no_distill) adapter_words=(--distill_weight 0) ;;
        _clusters[1-9]*) adapter_words=(--num_attributes "${variant#_clusters}") ;;
        *) [ -f "${config}" ] ||
            die "--baselines: ${baseline} is no variant of wap_adapter, and there is no ${config}" ;;
    esac
    if [ ! -f "${config}" ]; then config=${baseline_conf}/wap_adapter.yaml; fi
    set -- "${baseline_words[@]}"
    while [ $# -gt 0 ]; do
        case "${part} $1" in
            "adapter --layer" | "adapter --from")
                [ $# -gt 1 ] || die "--baseline_args: $1 of ${baseline} needs a value"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            "adapter then") part="head" ;;
            adapter*) adapter_words+=("$1") ;;
            head*) head_words+=("$1") ;;
        esac
        shift
    done
    if [ "${variant}" = _transfer ] && [ "${from}" = "${dumpdir}" ]; then
        die "${baseline} needs --baseline_args '${baseline}: --from DUMPDIR', another recipe's dump"
    fi

    states=${base_dir}/hidden_${layer}${feats_tag}
    wap_states "${states}" "${dumpdir}" "${feats_type}"
    pretrained=${states}
    if [ "${from}" != "${dumpdir}" ]; then
        pretrained=${states}_$(printf '%s' "${from}" | sha256sum | cut -c1-6)
        wap_states "${pretrained}" "${from}" raw
        # The recipe's name, or else the folder's.
        speech=${from%/}
        if [[ "${speech}" =~ ([^/]+)/adaltm[^/]*(/|$) ]]; then speech=${BASH_REMATCH[1]}; fi
        adapter_words=(--speech_name "${speech##*/}" "${adapter_words[@]}")
    fi

    item_cmd=${train_cmd}
    training "${baseline_seed}"
    if [ -n "${adapter}" ]; then
        for set in "${train_set}" "${valid_set}"; do
            inputs+=("${pretrained}/${set}"/{feats.scp,hidden.json}@baselines)
            file=${from}/${set}/all_shape
            if [ "${from}" = "${dumpdir}" ]; then file+=@audio; fi
            inputs+=("${file}")
        done
        # The dumps come last: they take the place of those in `training`.
        item adapter "${adapter}" --inputs "${config}" "${inputs[@]}" \
            --outputs "${adapter}"/{adapter.safetensors,adapter.json} \
            -- python -m espnet_adaltm.bin.train_wap_adapter --config "${config}" \
            --base "${base_dir}" --feats_dir "${pretrained}" --output_dir "${adapter}" \
            "${training[@]}" --train_dump "${from}/${train_set}" \
            --valid_dump "${from}/${valid_set}" "${adapter_words[@]}"
        started=(--wap_adapter "${adapter}")
        labelled=("${adapter}/adapter.json@baselines")
    fi
    for set in "${train_set}" "${valid_set}"; do
        labelled+=("${states}/${set}"/{feats.scp,hidden.json}@baselines
            "${dumpdir}/${set}/ser_shape@audio")
    done
    # shellcheck disable=SC2046  # one input per word
    item train "${baseline_dir}" --inputs "${head_config}" "${labelled[@]}" \
        "${label_names}@tokens" $(emotions) "${share_inputs[@]}" \
        --outputs "${baseline_dir}"/{adapter.safetensors,head.safetensors,baseline.json} \
        -- python -m espnet_adaltm.bin.train_wap_head --config "${head_config}" \
        --base "${base_dir}" --feats_dir "${states}" --labels "${labels}" "${started[@]}" \
        --output_dir "${baseline_dir}" "${training[@]}" "${share_words[@]}" "${head_words[@]}"
}

# wap_states FOLDER DUMPDIR FEATS_TYPE: items that store the hidden states of both sets there; seeds and
# variants share them. `layer` and `device` are those of declare_wap.
wap_states() {
    local set mark="${stage_number} $1;"
    local -a inputs
    if [[ "${wap_declared:-}" == *"${mark}"* ]]; then return; fi
    wap_declared="${wap_declared:-}${mark}"
    on_device "${train_cmd}"
    for set in "${train_set}" "${valid_set}"; do
        inputs=("${base_dir}/model.safetensors@base" "$2/${set}/wav.scp")
        if [ "$2" = "${dumpdir}" ]; then inputs[1]+=@audio; fi
        if [ "$3" = extracted ]; then inputs+=("${base_dir}/feats/${set}/feats.scp@base"); fi
        item "hidden_${set}" "$1" --shared true --ignore_options device --inputs "${inputs[@]}" \
            --outputs "$1/${set}"/{feats.scp,feats.ark,feats_shape,hidden.json} \
            -- python -m espnet_adaltm.bin.extract_hidden --base "${base_dir}" \
            --dump "$2/${set}" --out "$1/${set}" --layer "${layer}" --feats_type "$3" \
            --device "${device}"
    done
}

declare_wap
