#!/usr/bin/env bash
# From a speech corpus to a comparison of merged emotion recognisers, in numbered stages.
#
#   ./adaltm.sh --train_set train --valid_set dev --test_sets test      # everything
#   ./adaltm.sh --stage asr_expert --stop_stage 8                       # from one to another
#   ./adaltm.sh --status                                                # how far everything is
#   ./adaltm.sh --dry_run                                               # what would be done, and why
#
# Run it from a recipe's folder, usually through its run.sh. What is done already is skipped, what
# was interrupted goes on, what changed is done again with everything that follows from it. Runs may go
# side by side as long as none makes what another one is at: the second is told who, and does nothing.
# shellcheck disable=SC2034,SC2154,SC2317  # used, assigned and called from utils/
set -euo pipefail
set -f # words in options are split, never expanded to file names

# The one place where stages get their numbers; stage_<name> below does the work.
stages=(
    "data: local/data.sh turns the corpus into Kaldi data directories"
    "audio: decodes, mixes down, resamples, cuts and audits the audio"
    "tokens: sentencepiece tokens and the list of emotions"
    "base: the base encoder, and its stored features"
    "asr_expert: fine-tunes the base to recognise speech (CTC)"
    "ser_expert: fine-tunes the base to recognise emotions"
    "task_vectors: subtracts the base from the experts"
    "merge: learns how much of each task vector to add back"
    "baselines: trains what the merges are compared with"
    "decode: lets every system recognise every test set"
    "score: metrics, intervals, tests, tables and pictures"
    "export: folders for from_pretrained and transformers"
)

. utils/parse_options.sh
. utils/stages.sh

# Which stages
option stage data "first stage, number or name"
option stop_stage export "last stage, number or name"
option force false "do these stages again, whatever was done"
option dry_run false "only say what would be done, and why"
option status false "only say how far everything is; exit status 0 if all is done, else 3"
# How to compute: none of these changes a result beyond rounding
option ngpu 0 "GPUs per training job and node; 0 is the CPU"
option num_nodes 1 "nodes per training job"
option nj 1 "decoding jobs at a time"
option merge_jobs 1 "merges (and experts, with a control) trained at a time"
option num_workers 0 "processes that read data, per training job"
option python "" "Python interpreter or environment instead of that of tools/setup.sh"
option use_tensorboard true "curves of every training go to its folder, tensorboard/"
option use_wandb false "they also go to Weights & Biases, after pip install wandb and wandb login"
option wandb_project "" "project there; empty: that of ESPnet's task"
option wandb_entity "" "user or team there; empty: your own"
# Data
option train_set train "set to train on"
option valid_set dev "set to choose epochs on"
option test_sets test "sets to compare on"
option pools "" "test sets that are also scored as one, e.g. test1+test2"
option blind_sets "" "sets whose labels nobody here has: decoded, not scored"
option datadir data "folder of the data directories"
option dumpdir dump "folder of the formatted sets"
option expdir exp "folder of the experiments"
option results_dir . "where RESULTS.md, results.json and plots/ go"
option local_data_opts "" "options for local/data.sh"
option min_seconds 0.1 "shorter utterances are dropped"
option max_seconds 30 "longer utterances are dropped"
option max_broken 0 "utterances with broken audio that are left out instead of stopping: a number, or a share such as 1%"
option allow_pipes false "run entries of wav.scp that are commands; only for lists that you trust"
option allow_speaker_overlap false "only warn when sets share speakers"
option split "" "published_leaky: instead of the corpus' sets, a random tenth of every speaker's utterances, chosen on and reported on, as MTLSER was published; speaker-dependent"
option token_type unigram "char, unigram or bpe"
option n_tokens 500 "size of the vocabulary; 0 for char: as many as there are"
option token_args "" "more options for bin/prepare_tokens.py"
option label_args "" "more options for bin/prepare_labels.py"
option label_share 1 "share of the training set's emotion labels that SER expert, merges and baselines get"
# Models
option base tiny "tiny (pre-trained here), random, a Hub id, a folder or a .pt file"
option control_base "" "a second base, e.g. random: its experts join the tables, for comparison"
option asr_expert "" "a ready ASR expert instead of training one: Hub id or folder of a CTC model of transformers that was fine-tuned from the base"
option ser_expert "" "a ready SER expert: Hub id or folder, of Vox-Profile's WavLM emotion models or the MSP-Podcast challenges' baselines"
option feats_type raw "raw, or extracted: the frozen CNN's output is computed once"
option num_units 100 "for base tiny: units that masked prediction predicts"
option base_config conf/train_base.yaml "training, and shape (encoder_conf), of a tiny or random base"
option asr_config conf/train_asr.yaml "training of the ASR expert"
option ser_config conf/train_ser.yaml "training of the SER expert"
option merge_config conf/train_merge.yaml "training of the merges"
option merge_dir conf/merge "folder with a <name>.yaml for every merge"
option base_args "" "overrides of base_config, e.g. '--max_epoch 20'"
option asr_args "" "overrides of asr_config"
option ser_args "" "overrides of ser_config"
option merge_args "" "overrides of merge_config"
option expert_seed 1 "seed of base and experts; each: one pair of experts per seed of --seeds, the merges of a seed stand on its own, base and control base stay at seed 1"
option merges "base asr_only ser_only static global adaltm" "merges to train: names in merge_dir, or paths of .yaml files"
option seeds "1 2 3" "every merge is trained once per seed"
option baselines "" "what to compare with, once per seed: names of utils/baselines/<name>.sh"
option baseline_conf conf/baselines "folder with a <name>.yaml for every baseline"
option baseline_args "" "overrides of those, e.g. 'mtlser: --alpha 0.2; wap_adapter: --max_epoch 5'"
option mtlser_sweep "" "also train mtlser with every one of 'ALPHA... / BETA...', for its picture"
option import_espnet "" "results of ESPnet recipes to compare with as well, '[name[:seed]=]FOLDER ...': folders of experiments or decodings with text (and score) of every test set"
option import_args "" "more options for bin/import_espnet.py, e.g. '--codes hap=happy --missing_emotion neutral'"
# Results
option decode_args "" "more options for bin/decode.py, e.g. '--batch_seconds 120'"
option compare "adaltm:ser_only adaltm:static adaltm:global" "paired tests, first:second"
option score_args "" "more options for bin/score.py and bin/report.py"
option report_args "" "more options for bin/report.py alone, e.g. '--audio none'"
option connectivity false "also measure loss and scores on the lines between base, experts and exported merges, on the validation set: about 40 times decoding --max_utts of it"
option connectivity_args "" "more options for bin/connectivity.py, e.g. '--points 21 --max_utts 500'"
option recipe "$(basename "$(dirname "${PWD}")")" "heading of RESULTS.md"
option note "" "text under the heading of RESULTS.md"
option export_merges "adaltm" "merges whose first seed is exported"
option export_args "" "more options for bin/export.py, e.g. '--onnx --license cc-by-4.0 --language en'; '--push_to_hub USER/MODEL' uploads"

show_help() {
    echo "Usage: ./adaltm.sh [--name value]..., from a recipe's folder"
    echo "Stages:"
    print_stages
    echo "Options:"
    print_options
}

parse_options "$@"
stage_index --stage "${stage}"
first=${stage_found}
stage_index --stop_stage "${stop_stage}"
last=${stage_found}
if [ "${first}" -gt "${last}" ]; then
    die "--stage ${stage} comes after --stop_stage ${stop_stage}"
fi
for name in ngpu num_nodes nj merge_jobs num_workers n_tokens num_units; do
    [[ "${!name}" =~ ^[0-9]+$ ]] || die "--${name} is a whole number, not '${!name}'"
done
[[ "${expert_seed}" =~ ^([0-9]+|each)$ ]] ||
    die "--expert_seed is a whole number or each, not '${expert_seed}'"
for name in ${seeds}; do
    [[ "${name}" =~ ^(0|[1-9][0-9]*)$ ]] || die "--seeds are whole numbers, not '${seeds}'"
done
case "${feats_type}" in
    raw | extracted) ;;
    *) die "--feats_type is raw or extracted, not '${feats_type}'" ;;
esac

if [ -n "${python}" ]; then export ADALTM_PYTHON=${python}; fi
export -n python
. ./path.sh
. ./cmd.sh
logging=(--use_tensorboard "${use_tensorboard}")
if "${use_wandb}"; then
    python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("wandb") is None)' ||
        die "--use_wandb: there is no wandb in this Python environment; pip install wandb"
    logging+=(--use_wandb true)
    if [ -n "${wandb_project}" ]; then logging+=(--wandb_project "${wandb_project}"); fi
    if [ -n "${wandb_entity}" ]; then logging+=(--wandb_entity "${wandb_entity}"); fi
fi
run_dir=${expdir}
# run.sh sets it to what was typed; items write it beside their outputs with their stage.
export ADALTM_RESUME=${ADALTM_RESUME:-$(printf '%q ' "$0" "$@" | sed 's/ $//')}

. utils/names.sh
. utils/experts.sh
. utils/baselines.sh
. utils/imports.sh
. utils/typed.sh

# ------------------------------------------------------------------------ stages
stage_data() {
    local set outputs=()
    for set in ${corpus_sets}; do outputs+=("${corpus_dir}/${set}/wav.scp"); done
    item_logs=${corpus_dir}/logs
    item data "${corpus_dir}" --shared true --inputs local/data.sh --outputs "${outputs[@]}" \
        -- local/data.sh --out_data "${corpus_dir}" "${local_data_words[@]}"
    if [ -n "${split}" ]; then split_item; fi
}

stage_audio() {
    local set file files overlap=() inputs=() dumps=() words=()
    # Only where they differ: earlier sets keep their stamps.
    if [ "${max_broken}" != 0 ]; then words+=(--max_broken "${max_broken}"); fi
    if "${allow_pipes}"; then words+=(--allow_pipes); fi
    item_logs=${dumpdir}/logs
    for set in ${heard_sets}; do
        files=$(present "${datadir}/${set}@data" segments text utt2emo utt2soft utt2dialog \
            utt2channel utt2gender)
        # shellcheck disable=SC2086  # one input per word
        item "audio_${set}" "${dumpdir}" --shared true \
            --inputs "${datadir}/${set}/wav.scp@data" "${datadir}/${set}/utt2spk@data" ${files} \
            --outputs "${dumpdir}/${set}"/{wav.scp,utt2spk,utt2num_samples,audit.md,audio/data.1.ark} \
            -- python -m espnet_adaltm.bin.format_audio --data "${datadir}/${set}" \
            --out "${dumpdir}/${set}" --min_seconds "${min_seconds}" \
            --max_seconds "${max_seconds}" "${words[@]}"
        inputs+=("${dumpdir}/${set}"/{wav.scp,utt2spk,audio_stats.tsv}@audio)
        # The items above have not run yet: what they will leave is known from what they read.
        for file in text utt2emo; do
            if [ -f "${datadir}/${set}/${file}" ]; then
                inputs+=("${dumpdir}/${set}/${file}@audio")
            fi
        done
        dumps+=("${dumpdir}/${set}")
    done
    if "${allow_speaker_overlap}"; then overlap=(--allow_speaker_overlap); fi
    item audit "${dumpdir}" --shared true --inputs "${inputs[@]}" --outputs "${dumpdir}/audit.md" \
        -- python -m espnet_adaltm.bin.audit --dumps "${dumps[@]}" --train "${dumpdir}/${train_set}" \
        --valid "${dumpdir}/${valid_set}" --out "${dumpdir}/audit.md" "${overlap[@]}"
}

stage_tokens() {
    local set sets=() inputs=() size=()
    item_logs=${datadir}/logs
    if [ "${n_tokens}" -gt 0 ]; then size=(--vocab_size "${n_tokens}"); fi
    item "tokens_$(basename "${tokens}")" "${datadir}/tokens" --shared true \
        --inputs "${dumpdir}/${train_set}/text@audio" \
        --outputs "${tokens}/tokens.model" "${tokens}/tokens.txt" \
        -- python -m espnet_adaltm.bin.prepare_tokens --text "${dumpdir}/${train_set}/text" \
        --type "${token_type}" "${size[@]}" --out "${tokens}" "${token_words[@]}"
    for set in ${all_sets}; do
        sets+=("${set}=${dumpdir}/${set}")
        inputs+=("${dumpdir}/${set}/utt2emo@audio")
    done
    item labels "${datadir}" --shared true --inputs "${dumpdir}/audit.md@audio" "${inputs[@]}" \
        --outputs "${labels}" "${label_names}" \
        -- python -m espnet_adaltm.bin.prepare_labels --sets "${sets[@]}" --out "${labels}" \
        "${label_words[@]}"
    if [ "${label_share}" != 1 ]; then
        item "label_share_${label_share}" "${datadir}" --shared true \
            --inputs "${dumpdir}/${train_set}"/{ser_shape,utt2emo,utt2spk}@audio \
            --outputs "${share_shape}" \
            -- python -m espnet_adaltm.bin.label_share --dump "${dumpdir}/${train_set}" \
            --share "${label_share}" --out "${share_shape}"
    fi
}

stage_base() {
    make_base
    for_control make_base
}

stage_asr_expert() {
    if several_experts; then stage_jobs=${merge_jobs}; fi
    for_experts train_asr_expert
    for_control train_asr_expert
}

stage_ser_expert() {
    if several_experts; then stage_jobs=${merge_jobs}; fi
    for_experts train_ser_expert
    for_control train_ser_expert
}

stage_task_vectors() {
    for_experts make_task_vectors
}

stage_merge() {
    local name seed dir rows=() check
    stage_jobs=${merge_jobs}
    fed_with ser_shape
    for name in ${merges}; do rows+=("${merge_yaml[${name}]}"); done
    check=$(printf '%q ' python -m espnet_adaltm.bin.check_merges "${rows[@]}")
    for name in ${merges}; do
        for seed in ${seeds}; do
            with_seed "${seed}"
            merge_needs "${merge_yaml[${name}]}"
            dir=${expdir}/merge_${name}${merge_tag}_seed${seed}
            # ESPnet seeds an epoch with seed + epoch: neighbours would share their noise.
            training "$((1000 * seed))"
            # shellcheck disable=SC2046  # one input per word
            item train "${dir}" --check "${check}" \
                --inputs "${merge_config}" "${merge_yaml[${name}]}" \
                $(emotions) "${fed[@]}" "${label_names}@tokens" \
                "${vectors}/asr.safetensors@task_vectors" \
                "${vectors}/ser.safetensors@task_vectors" \
                "${ser_dir}/head.safetensors@ser_expert" "${needed[@]}" \
                --outputs "${dir}"/{coefficients.json,head.safetensors,merge.json} \
                -- python -m espnet_adaltm.bin.train_merge --config "${merge_config}" \
                --merge_config "${merge_yaml[${name}]}" --base "${base_dir}" \
                --task_vectors "${vectors}" --ser_expert "${ser_dir}" --labels "${labels}" \
                "${needed_words[@]}" --output_dir "${dir}" "${training[@]}" "${merge_words[@]}"
        done
    done
}

stage_baselines() {
    local name seed
    stage_jobs=${merge_jobs}
    for name in ${baselines}; do
        for seed in ${seeds}; do declare_baseline "${name}" "${seed}"; done
    done
}

stage_decode() {
    local system folder set device lent lender
    on_device "${decode_cmd}"
    stage_jobs=${nj}
    for system in $(systems); do
        folder=${system#*=}
        if is_import "${folder}"; then continue; fi
        with_system "${system}"
        lent=("${asr_dir}/head.safetensors@asr_expert")
        lender=(--asr_expert "${asr_dir}")
        if is_baseline "${folder}"; then lent=() lender=(); fi
        for set in ${test_sets} ${blind_sets}; do
            # shellcheck disable=SC2046  # one input per word
            item "decode_${set}" "${folder}" --shared true --ignore_options device \
                --inputs "${dumpdir}/${set}/wav.scp@audio" "${label_names}@tokens" \
                "${lent[@]}" $(weights_of "${folder}") \
                --outputs $(answers_of "${system}" "${folder}/decode/${set}" "") \
                -- python -m espnet_adaltm.bin.decode --system "${folder}" \
                --dump "${dumpdir}/${set}" --labels "${labels}" "${lender[@]}" \
                --base "$(base_of "${system}")" --feats_type "${feats_type}" --device "${device}" \
                "${decode_words[@]}"
        done
    done
    import_items
}

stage_score() {
    local system name folder seed set known lines=
    local dumps=() inputs=() all=() compared=() references=() folders=()
    known=" $(system_names) "
    for set in ${test_sets}; do
        dumps+=("${dumpdir}/${set}")
        # shellcheck disable=SC2207  # one input per word
        references+=("${dumpdir}/${set}/wav.scp@audio"
            $(present "${dumpdir}/${set}@audio" utt2spk text utt2emo utt2soft utt2channel))
    done
    for set in ${pools}; do dumps+=("${dumpdir}/${set}"); done
    for system in $(systems); do
        name=${system%%=*}
        folder=${system#*=}
        inputs=()
        for set in ${test_sets}; do
            # shellcheck disable=SC2207  # one input per word
            inputs+=($(answers_of "${system}" "${folder}/decode/${set}" @decode))
        done
        seed=()
        if [[ "${name}" == *:* ]]; then seed=(--seed "${name#*:}"); fi
        item score "${folder}" --shared true \
            --inputs "${label_names}@tokens" "${references[@]}" "${inputs[@]}" \
            --outputs "${folder}/results.json" \
            -- python -m espnet_adaltm.bin.score --system "${folder}" --name "${name%:*}" \
            "${seed[@]}" --dumps "${dumps[@]}" --labels "${labels}" \
            --out "${folder}/results.json" "${score_words[@]}"
        all+=("${inputs[@]}")
    done
    for name in ${compare} $(baseline_pairs) $(import_pairs); do
        if [[ "${known}" == *" ${name%:*} "* && "${known}" == *" ${name#*:} "* ]]; then
            compared+=("${name}")
        fi
    done
    read -ra folders <<<"$(for_experts echo_vectors | xargs)"
    # shellcheck disable=SC2207  # one input per word
    all+=($(baseline_sweeps))
    if "${connectivity}"; then . utils/connectivity.sh; fi
    item report "${report_dir}" --shared true --ignore_options command \
        --inputs "${label_names}@tokens" "${folders[@]/%//similarity.json@task_vectors}" \
        "${references[@]}" "${all[@]}" ${lines:+"${lines}@score"} \
        --outputs "${results_dir}"/{RESULTS.md,results.json,results.csv,results.tex} \
        -- python -m espnet_adaltm.bin.report --systems "$(systems | xargs)" \
        --dumps "${dumps[@]}" --labels "${labels}" --compare "${compared[@]}" \
        --recipe "${recipe}" --note "${note}" --command "${ADALTM_RESUME}" --base "${base_dir}" \
        --task_vectors "${folders[@]}" ${lines:+--connectivity "${lines}"} \
        --out_dir "${results_dir}" "${score_words[@]}" "${report_words[@]}"
    if [ -f local/score.sh ]; then score_locally; fi
}

# What a recipe adds to the report: local/score.sh writes COMPARISON.md into the results' folder.
score_locally() {
    local system set inputs=()
    for system in $(systems); do
        for set in ${blind_sets}; do
            # shellcheck disable=SC2207  # one input per word
            inputs+=($(answers_of "${system}" "${system#*=}/decode/${set}" @decode))
        done
    done
    item local_score "${report_dir}" --shared true \
        --inputs local/score.sh "${labels}@tokens" "${results_dir}/results.json@score" "${inputs[@]}" \
        --outputs "${results_dir}/COMPARISON.md" \
        -- local/score.sh --results_dir "${results_dir}" --labels "${labels}" \
        --dumpdir "${dumpdir}" --blind_sets "${blind_sets}" --systems "$(systems | xargs)"
}

after_score() {
    grep -v '^#' "${report_dir}/report.log" || true
    echo "Tables: ${results_dir}/RESULTS.md; numbers: ${results_dir}/results.json;" \
        "pictures: ${results_dir}/plots/; all on a page: ${results_dir}/report.html"
}

stage_export() {
    local system dir
    with_seed "${first_seed}"
    for system in ${exported}; do
        dir=${system#*=}
        # shellcheck disable=SC2046  # one input per word
        item export "${dir}" --shared true --ignore_options command \
            --inputs "${base_dir}/model.safetensors@base" "${label_names}@tokens" \
            $(weights_of "${dir}") "${asr_dir}/head.safetensors@asr_expert" \
            $(present "${dir}@score" results.json) \
            --outputs "${dir}/export"/{config.json,model.safetensors,recognizer.json,README.md} \
            -- python -m espnet_adaltm.bin.export --system "${dir}" --base "${base_dir}" \
            --asr_expert "${asr_dir}" --out "${dir}/export" --labels "${labels}" \
            --recipe "${recipe}" --note "${note}" --command "${ADALTM_RESUME}" "${export_words[@]}"
    done
}

# In braces, bash has read the file to its end: editing it does not disturb a run.
{
    run_stages "${first}" "${last}"
    exit
}
