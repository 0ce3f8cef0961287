# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # options and names come from adaltm.sh and utils/names.sh
# What the stages base, asr_expert, ser_expert and task_vectors do for one base, and for one pair of
# experts: adaltm.sh asks for them once, once per seed (--expert_seed each), and for --control_base.

make_base() {
    local set device
    case "${base}" in
        tiny) train_tiny_base ;;
        random) base_item --config "${base_config}" --seed "${base_seed}" ;;
        *) base_item ;;
    esac
    if [ "${feats_type}" = raw ]; then return; fi
    on_device "${item_cmd}"
    for set in ${heard_sets}; do
        item "${set}" "${base_dir}/feats" --shared true --ignore_options device \
            --inputs "${base_dir}/model.safetensors@base" "${dumpdir}/${set}/wav.scp@audio" \
            --outputs "${base_dir}/feats/${set}"/{feats.scp,feats.ark,feats_shape} \
            -- python -m espnet_adaltm.bin.extract_features --base "${base_dir}" \
            --dump "${dumpdir}/${set}" --out "${base_dir}/feats/${set}" --device "${device}"
    done
}

base_item() { # base_item OPTIONS...: a base that is not trained here
    local files=()
    if [ -f "${base}" ]; then files=("${base}"); fi
    if [ -d "${base}" ]; then
        # shellcheck disable=SC2207  # one input per word
        files=($(present "${base}@data" config.json model.safetensors pytorch_model.bin))
        files=("${files[@]%@data}")
    fi
    if [ "${base}" = random ]; then files=("${base_config}"); fi
    item base "${base_dir}" --inputs "${files[@]}" \
        --outputs "${base_dir}"/{config.json,model.safetensors,base.json} \
        -- python -m espnet_adaltm.bin.build_base --base "${base}" --out "${base_dir}" "$@"
}

train_tiny_base() {
    local set units=${base_dir}/units pretrain=${base_dir}/pretrain outputs=() dumps=() inputs=()
    for set in "${train_set}" "${valid_set}"; do
        dumps+=("${dumpdir}/${set}")
        inputs+=("${dumpdir}/${set}/wav.scp@audio")
        outputs+=("${units}/${set}"/units.{scp,ark})
    done
    outputs+=("${units}/units.safetensors")
    item units "${units}" --inputs "${base_config}" "${inputs[@]}" --outputs "${outputs[@]}" \
        -- python -m espnet_adaltm.bin.fit_units --train_dump "${dumps[0]}" --dumps "${dumps[@]}" \
        --out "${units}" --config "${base_config}" --num_units "${num_units}" \
        --seed "${base_seed}"
    training "${base_seed}"
    item pretrain "${pretrain}" \
        --inputs "${base_config}" "${outputs[@]/%/@base}" "${inputs[@]}" \
        "${dumpdir}/${train_set}/all_shape@audio" "${dumpdir}/${valid_set}/all_shape@audio" \
        --outputs "${base_dir}"/{config.json,model.safetensors,base.json} \
        -- python -m espnet_adaltm.bin.train_base --config "${base_config}" \
        --units_dir "${units}" --num_units "${num_units}" --output_dir "${pretrain}" \
        --save_base "${base_dir}" "${training[@]}" --feats_type raw "${base_words[@]}"
    item_cmd=${train_cmd}
}

# import_expert KIND SOURCE FOLDER: an expert that others trained.
import_expert() {
    local files=() words=()
    if [ -d "$2" ]; then
        # shellcheck disable=SC2207  # one input per word
        files=($(present "$2@data" config.json vocab.json model.safetensors pytorch_model.bin \
            final_ssl.pt final_pool.pt final_ser.pt))
        files=("${files[@]%@data}")
    fi
    if [ "$1" = ser ]; then
        words=(--labels "${labels}")
        files+=("${label_names}@tokens")
    fi
    item import "$3" --inputs "${base_dir}/model.safetensors@base" "${files[@]}" \
        --outputs "$3"/{expert.safetensors,head.safetensors,expert.json} \
        -- python -m espnet_adaltm.bin.import_expert --kind "$1" --source "$2" \
        --base "${base_dir}" --out "$3" "${words[@]}"
}

train_asr_expert() {
    if [ -n "${asr_expert}" ]; then
        import_expert asr "${asr_expert}" "${asr_dir}"
        return
    fi
    training "${expert_seed}"
    fed_with asr_shape
    item train "${asr_dir}" --inputs "${asr_config}" "${fed[@]}" "${tokens}/tokens.model@tokens" \
        "${dumpdir}/${train_set}/text@audio" "${dumpdir}/${valid_set}/text@audio" \
        --outputs "${asr_dir}"/{expert.safetensors,head.safetensors,expert.json} \
        -- python -m espnet_adaltm.bin.train_asr --config "${asr_config}" --base "${base_dir}" \
        --tokens "${tokens}" --output_dir "${asr_dir}" "${training[@]}" "${asr_words[@]}"
}

train_ser_expert() {
    if [ -n "${ser_expert}" ]; then
        import_expert ser "${ser_expert}" "${ser_dir}"
        return
    fi
    training "${expert_seed}"
    fed_with ser_shape
    # shellcheck disable=SC2046  # one input per word
    item train "${ser_dir}" --inputs "${ser_config}" "${fed[@]}" "${label_names}@tokens" \
        $(emotions) "${share_inputs[@]}" \
        --outputs "${ser_dir}"/{expert.safetensors,head.safetensors,expert.json} \
        -- python -m espnet_adaltm.bin.train_ser --config "${ser_config}" --base "${base_dir}" \
        --labels "${labels}" --output_dir "${ser_dir}" "${training[@]}" "${share_words[@]}" \
        "${ser_words[@]}"
}

make_task_vectors() {
    item task_vectors "${vectors}" --inputs "${base_dir}/model.safetensors@base" \
        "${asr_dir}/expert.safetensors@asr_expert" "${ser_dir}/expert.safetensors@ser_expert" \
        --outputs "${vectors}"/{asr.safetensors,ser.safetensors,similarity.json} \
        -- python -m espnet_adaltm.bin.task_vectors --base "${base_dir}" --asr "${asr_dir}" \
        --ser "${ser_dir}" --out "${vectors}"
}
