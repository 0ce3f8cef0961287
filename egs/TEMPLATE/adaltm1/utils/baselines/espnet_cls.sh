# shellcheck shell=bash
# shellcheck disable=SC2154  # set by utils/baselines.sh, or elsewhere in adaltm.sh
# ESPnet's own classifier on filter banks, see espnet_adaltm/training/espnet_stock_cls.py. It needs
# neither base nor tokens, and reads waveforms.
training "${baseline_seed}"
espnet_inputs=("${baseline_config}" "${label_names}@tokens" "${share_inputs[@]}")
for set in "${train_set}" "${valid_set}"; do
    espnet_inputs+=("${dumpdir}/${set}"/{wav.scp,ser_shape,utt2emo}@audio)
done
item train "${baseline_dir}" --inputs "${espnet_inputs[@]}" \
    --outputs "${baseline_dir}"/{model.safetensors,model.yaml,baseline.json} \
    -- python -m espnet_adaltm.bin.train_espnet_cls --config "${baseline_config}" \
    --labels "${labels}" --output_dir "${baseline_dir}" "${training[@]}" --feats_type raw \
    "${share_words[@]}" "${baseline_words[@]}"
