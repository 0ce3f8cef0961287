# shellcheck shell=bash
# shellcheck disable=SC2154  # stages, force, dry_run and train_cmd belong to the script that sources
# Stages by number or name, and the items they are made of. Source this after parse_options.sh.
#
# The script that sources this has an array `stages` of "name: what it does" and a function
# stage_<name> for each. A stage function declares its items in order:
#
#   item asr_expert "${dir}" --inputs data/labels.json@tokens --outputs "${dir}/expert.json" \
#       -- python -m espnet_adaltm.bin.train_asr --output_dir "${dir}"
#
# They run when the function returns; those that are done are skipped, see espnet_adaltm/stamps.py.
# Inputs are written file@stage, outputs file. With a job command in `item_cmd`, an item runs
# through it and logs to `<workdir>/<name>.log` (in `item_logs`, if set); `stage_jobs` items run at a
# time, each after those declared before it that make its inputs. What is to be shown when they have
# run goes into a function after_<name>.

# Globals of the stage under way.
stage_number=0
stage_name=
stage_jobs=1
item_cmd=
item_logs=
item_queue=

print_stages() {
    local i
    for ((i = 0; i < ${#stages[@]}; i++)); do
        printf '  %2d  %-13s %s\n' $((i + 1)) "${stages[i]%%:*}" "${stages[i]#*: }"
    done
}

# stage_index OPTION VALUE: sets $stage_found to the number of a stage given by number or name.
stage_index() {
    local i
    for ((i = 0; i < ${#stages[@]}; i++)); do
        if [ "$2" = "${stages[i]%%:*}" ] || [ "$2" = $((i + 1)) ]; then
            stage_found=$((i + 1))
            return
        fi
    done
    echo "error: $1 '$2' is not a stage; there are" >&2
    print_stages >&2
    exit 1
}

item() { # item NAME WORKDIR [run_item options] -- COMMAND...
    local name=$1 workdir=$2 word
    local -a words=(--name "${name}" --workdir "${workdir}" --force "${force}"
        --stage "${stage_number}/${#stages[@]} ${stage_name}")
    shift 2
    if [ -n "${item_cmd}" ]; then
        words+=(--job "${item_cmd}" --log "${item_logs:-${workdir}}/${name}.log")
    fi
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        word=$1
        # file@stage: the name of a stage becomes "stage 3 (tokens)".
        if [[ "${word}" == *@* ]] && [[ " ${stages[*]}" == *" ${word##*@}: "* ]]; then
            stage_index "" "${word##*@}"
            word="${word%@*}@stage ${stage_found} (${word##*@})"
        fi
        words+=("${word}")
        shift
    done
    words+=("$@")
    printf '%s\0' "${#words[@]}" "${words[@]}" >>"${item_queue}"
}

# run_stages FIRST LAST: the functions of these stages, and the items they declare.
run_stages() {
    local number
    item_queue=$(mktemp)
    trap 'rm -f "${item_queue}"' EXIT
    for ((number = $1; number <= $2; number++)); do
        stage_number=${number}
        stage_name=${stages[number - 1]%%:*}
        stage_jobs=1
        item_cmd=${train_cmd}
        item_logs=
        : >"${item_queue}"
        "stage_${stage_name}"
        if [ -s "${item_queue}" ]; then _run_queue; fi
        if ! "${dry_run}" && declare -F "after_${stage_name}" >/dev/null; then
            "after_${stage_name}"
        fi
    done
}

_run_queue() {
    local code=0 threads=${OMP_NUM_THREADS:-}
    if [ -z "${threads}" ] && [ "${stage_jobs}" -gt 1 ]; then
        threads=$(($(nproc) / stage_jobs))
        if [ "${threads}" -lt 1 ]; then threads=1; fi
    fi
    # In the background, because bash handles signals only between commands or in `wait`.
    env ${threads:+"OMP_NUM_THREADS=${threads}"} python -m espnet_adaltm.bin.run_item \
        --batch "${item_queue}" --jobs "${stage_jobs}" --list "${dry_run}" &
    trap 'kill -TERM $! 2>/dev/null; wait $!; exit 143' INT TERM HUP
    wait $! || code=$?
    trap - INT TERM HUP
    if [ "${code}" -ne 0 ]; then exit "${code}"; fi
}
