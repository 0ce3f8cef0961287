# shellcheck shell=bash
# shellcheck disable=SC2154  # set by utils/baselines.sh, or elsewhere in adaltm.sh
# MTLSER (Chen et al. 2025): emotion, words and speaker learned together, see models/mtlser.py.
fed_with all_shape
training "${baseline_seed}"
# shellcheck disable=SC2207  # one input per word
mtlser_inputs=("${baseline_config}" "${fed[@]}" "${label_names}@tokens" "${tokens}/tokens.model@tokens"
    $(emotions) "${share_inputs[@]}")
for set in "${train_set}" "${valid_set}"; do
    # shellcheck disable=SC2207  # one input per word
    mtlser_inputs+=("${dumpdir}/${set}/utt2spk@audio" $(present "${dumpdir}/${set}@audio" text))
done
mtlser_words=(--config "${baseline_config}" --base "${base_dir}" --labels "${labels}"
    --tokens "${tokens}" "${training[@]}")
if [ "${label_share}" != 1 ]; then mtlser_words+=(--emotion_shape "${share_shape}"); fi
mtlser_words+=("${baseline_words[@]}")
item train "${baseline_dir}" --inputs "${mtlser_inputs[@]}" \
    --outputs "${baseline_dir}"/{encoder.safetensors,head.safetensors,baseline.json} \
    -- python -m espnet_adaltm.bin.train_mtlser --output_dir "${baseline_dir}" "${mtlser_words[@]}"

# One command, all pairs of weights: for the first seed.
if [ -n "${mtlser_sweep}" ] && [ "${baseline}" = mtlser ] &&
    [ "${baseline_dir}" = "$(baseline_folder mtlser "${first_seed}")" ]; then
    [[ "${mtlser_sweep}" == */* ]] || die "--mtlser_sweep is 'ALPHA... / BETA...', not '${mtlser_sweep}'"
    read -ra mtlser_alphas <<<"${mtlser_sweep%%/*}"
    read -ra mtlser_betas <<<"${mtlser_sweep#*/}"
    item sweep "${baseline_dir}_sweep" --shared true --ignore_options jobs \
        --inputs "${mtlser_inputs[@]}" \
        --outputs "${baseline_dir}_sweep"/{sweep.json,sweep.png} \
        -- python -m espnet_adaltm.bin.mtlser_sweep --alphas "${mtlser_alphas[@]}" \
        --betas "${mtlser_betas[@]}" --jobs "${merge_jobs}" --out "${baseline_dir}_sweep" \
        -- "${mtlser_words[@]}"
fi
