# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # names come from adaltm.sh and utils/names.sh, and go back
# One more item of stage `score`, with --connectivity true: loss and scores on the lines between the
# base, the experts of the first seed and the exported merges. Leaves its file in `lines`.
with_seed "${first_seed}"
folder=${vectors/task_vectors/connectivity}
lines=${folder}/connectivity.json
inputs=("${base_dir}/model.safetensors@base" "${dumpdir}/${valid_set}/wav.scp@audio"
    "${label_names}@tokens")
for system in "asr=${asr_dir}" "ser=${ser_dir}" ${exported}; do
    # shellcheck disable=SC2207  # one input per word
    inputs+=($(weights_of "${system#*=}"))
done
on_device "${decode_cmd}"
# shellcheck disable=SC2086,SC2046  # one word each
item connectivity "${folder}" --ignore_options device \
    --inputs "${inputs[@]}" $(present "${dumpdir}/${valid_set}@audio" text utt2emo) \
    --outputs "${lines}" "${folder}/connectivity.png" \
    -- python -m espnet_adaltm.bin.connectivity --base "${base_dir}" --asr "${asr_dir}" \
    --ser "${ser_dir}" --merges ${exported} --dump "${dumpdir}/${valid_set}" \
    --labels "${labels}" --out "${folder}" --feats_type "${feats_type}" \
    --device "${device}" "${connectivity_words[@]}"
item_cmd=${train_cmd}
