# shellcheck shell=bash
# shellcheck disable=SC2154  # set by utils/baselines.sh, or elsewhere in adaltm.sh
# ESPnet's own recogniser, taught to say the emotion before the words, as in its IEMOCAP recipe, see
# espnet_adaltm/training/espnet_stock_asr.py. It needs no base, and reads waveforms.
training "${baseline_seed}"
espnet_inputs=("${baseline_config}" "${label_names}@tokens" "${tokens}/tokens.model@tokens"
    "${share_inputs[@]}")
for set in "${train_set}" "${valid_set}"; do
    espnet_inputs+=("${dumpdir}/${set}"/{wav.scp,asr_shape,text,utt2emo}@audio)
done
espnet_words=()
if [ "${label_share}" != 1 ]; then espnet_words=(--emotion_shape "${share_shape}"); fi
item train "${baseline_dir}" --inputs "${espnet_inputs[@]}" \
    --outputs "${baseline_dir}"/{model.safetensors,model.yaml,baseline.json} \
    -- python -m espnet_adaltm.bin.train_espnet_asr --config "${baseline_config}" \
    --labels "${labels}" --tokens "${tokens}" --output_dir "${baseline_dir}" "${training[@]}" \
    --feats_type raw "${espnet_words[@]}" "${baseline_words[@]}"
