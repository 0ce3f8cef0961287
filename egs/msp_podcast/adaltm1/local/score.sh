#!/usr/bin/env bash
# Beside the report: our results and the published ones, and files to submit for Test3.
# Called by adaltm.sh.
set -euo pipefail

# shellcheck source=egs/TEMPLATE/adaltm1/utils/parse_options.sh
. utils/parse_options.sh
option results_dir . "folder of results.json; gets COMPARISON.md and submissions/"
option labels data/labels.json "the list of emotions"
option dumpdir dump "folder of the formatted sets"
option blind_sets "" "sets to submit predictions of"
option systems "" "name=folder or name:seed=folder of every system"
parse_options "$@"

# shellcheck disable=SC2154  # `option` assigns
classes=$(wc -l <"${labels%.json}.txt")
# shellcheck disable=SC2154
if [ "${classes}" -eq 8 ]; then
    "${python:-python3}" -m espnet_adaltm.bin.compare_published \
        --results "${results_dir}/results.json" --labels "${labels}" \
        --out "${results_dir}/COMPARISON.md"
else
    printf '# Ours and published results\n\nPublished results have 8 classes, these have %s.\n' \
        "${classes}" >"${results_dir}/COMPARISON.md"
fi
# shellcheck disable=SC2154
if [ "${classes}" -ge 8 ]; then
    for set in ${blind_sets}; do
        "${python:-python3}" -m espnet_adaltm.bin.msp_submission --systems "${systems}" \
            --dump "${dumpdir}/${set}" --labels "${labels}" --out "${results_dir}/submissions/${set}"
    done
fi
