#!/usr/bin/env bash
# Make a new recipe: egs/TEMPLATE/adaltm1/setup.sh egs/<corpus>/adaltm1
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "Usage: $0 <new folder, e.g. egs/my_corpus/adaltm1>" >&2
    exit 1
fi
template=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -e "$1" ]; then
    echo "error: $1 exists already" >&2
    exit 1
fi
mkdir -p "$1/conf" "$1/local"
target=$(cd "$1" && pwd)
corpus=$(basename "$(dirname "${target}")")
# A relative link survives when the repository moves; elsewhere only an absolute one works.
case "${target}" in
    "$(dirname "$(dirname "${template}")")"/*/*) link=../../TEMPLATE/adaltm1 ;;
    *) link=${template} ;;
esac
ln -s "${link}/adaltm.sh" "${link}/utils" "${target}"
cp "${template}/path.sh" "${template}/cmd.sh" "${target}"
if [ "${link}" = "${template}" ]; then
    root=$(dirname "$(dirname "$(dirname "${template}")")")
    # shellcheck disable=SC2016  # for path.sh to expand
    printf -v line 'export ADALTM_ROOT=${ADALTM_ROOT:-%q}' "${root}"
    sed -i "s|^export ADALTM_ROOT=.*|${line}|" "${target}/path.sh"
fi

cat >"${target}/local/data.sh" <<'EOF'
#!/usr/bin/env bash
# Turn the corpus into Kaldi data directories <out_data>/{train,dev,test} with the files
#   wav.scp [segments] text utt2spk utt2emo
# The options are what --local_data_opts of adaltm.sh holds, and --out_data.
set -euo pipefail

echo "error: write local/data.sh first" >&2
exit 1
EOF
cat >"${target}/run.sh" <<'EOF'
#!/usr/bin/env bash
# CORPUS. Every option of adaltm.sh is accepted: ./run.sh --help lists them.
#
#   ./run.sh                                                              # the tiny base
#   ./run.sh --base microsoft/wavlm-large --model wavlm_large --ngpu 1
set -euo pipefail

. utils/parse_options.sh
option model tiny "folder of ${ADALTM_ROOT:-../../..}/conf with the training configurations"

show_help() {
    echo "Usage: $0 [--name value]..."
    print_options
    exec ./adaltm.sh --help
}
take_options "$@"

ADALTM_RESUME=$(printf '%q ' ./run.sh "$@" | sed 's/ $//')
export ADALTM_RESUME
conf=${ADALTM_ROOT:-../../..}/conf
# shellcheck disable=SC2154  # `option` assigns
trainings=${conf}/${model}
exec ./adaltm.sh \
    --train_set train --valid_set dev --test_sets test \
    --base_config "${trainings}/train_base.yaml" --asr_config "${trainings}/train_asr.yaml" \
    --ser_config "${trainings}/train_ser.yaml" --merge_config "${trainings}/train_merge.yaml" \
    --merge_dir "${conf}/merge" --baseline_conf "${trainings}/baselines" \
    "${rest[@]}"
EOF
sed -i "s/^# CORPUS\./# ${corpus}./" "${target}/run.sh"
if [ "${link}" = "${template}" ]; then
    sed -i "s|ADALTM_ROOT:-../../..|ADALTM_ROOT:-${root}|" "${target}/run.sh"
fi
chmod +x "${target}/run.sh" "${target}/local/data.sh"
echo "Made ${target}. Next: write local/data.sh, adapt run.sh, then ./run.sh"
