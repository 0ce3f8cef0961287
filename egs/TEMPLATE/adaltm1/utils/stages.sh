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
# Of the run.
scratch=
run_file=
run_fd=
# A queue with a time limit warned with SIGUSR1: what runs saves, nothing new begins, and status 75
# says that the same command goes on (espnet_adaltm/stopping.py).
warned=false
trap 'warned=true' USR1

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

# run_stages FIRST LAST: the functions of these stages, and the items they declare. To tell what would
# be done, the items in the file ADALTM_PLAN, if set, come before (see parts.sh). With `run_dir`, a
# run enters there what it is going to make, and is refused if another one makes some of it; see
# espnet_adaltm/locks.py.
run_stages() {
    local number listed=() answer=0
    scratch=$(mktemp -d)
    trap 'rm -rf "${scratch}" ${run_file:+"${run_file}"}' EXIT
    # In a shell of its own: what stage functions remember must not last until they are called again.
    (
        item_queue=${scratch}/whole
        : >"${item_queue}"
        for ((number = $1; number <= $2; number++)); do _declare "${number}"; done >/dev/null
    )
    for ((number = $1; number <= $2; number++)); do
        listed+=("${number}/${#stages[@]} ${stages[number - 1]%%:*}")
    done
    if "${dry_run}" || "${status:-false}"; then
        python -m espnet_adaltm.bin.run_item --batch "${scratch}/whole" --list "${dry_run}" \
            --status "${status:-false}" --run_dir "${run_dir:-}" --before "${ADALTM_PLAN:-}" \
            --stages "$(printf '%s\n' "${listed[@]}")" || answer=$?
        if [ -n "${ADALTM_PLAN:-}" ]; then cat "${scratch}/whole" >>"${ADALTM_PLAN}"; fi
        return "${answer}"
    fi
    _open_run_file
    item_queue=${scratch}/stage
    for ((number = $1; number <= $2; number++)); do
        : >"${item_queue}"
        _declare "${number}"
        if [ -s "${item_queue}" ]; then
            _run_queue
        else
            echo "[${listed[number - $1]}] none asked for"
        fi
        if declare -F "after_${stage_name}" >/dev/null; then "after_${stage_name}"; fi
    done
}

# Sets run_file and run_fd: bash keeps the file open, and with it the lock that the first run_item takes
# on it. Where nothing can be written, the first item that has to run says so.
_open_run_file() {
    local file=${run_dir:-}/.runs/${HOSTNAME}-$$-${RANDOM}.json
    if [ -n "${run_dir:-}" ] && mkdir -p "${file%/*}" 2>/dev/null && [ -w "${file%/*}" ]; then
        run_file=${file}
        exec {run_fd}>"${run_file}"
    fi
}

# _declare NUMBER: the items of a stage go to the queue.
_declare() {
    stage_number=$1
    stage_name=${stages[$1 - 1]%%:*}
    stage_jobs=1
    item_cmd=${train_cmd}
    item_logs=
    "stage_${stage_name}"
}

_run_queue() {
    local code interrupted threads=${OMP_NUM_THREADS:-} entering=()
    if "${warned}"; then exit 75; fi
    if [ -n "${run_fd}" ]; then
        entering=(--whole "${scratch}/whole" --run_file "${run_file}" --run_fd "${run_fd}" --run_pid $$)
        run_fd=
    fi
    if [ -z "${threads}" ] && [ "${stage_jobs}" -gt 1 ]; then
        threads=$(($(nproc) / stage_jobs))
        if [ "${threads}" -lt 1 ]; then threads=1; fi
    fi
    # In the background, because bash handles signals only between commands or in `wait`.
    (
        trap '' USR1 # until it hears it
        exec env ${threads:+"OMP_NUM_THREADS=${threads}"} python -m espnet_adaltm.bin.run_item \
            --batch "${item_queue}" --jobs "${stage_jobs}" "${entering[@]}"
    ) &
    trap 'kill -TERM $! 2>/dev/null; wait $!; exit 143' INT TERM HUP
    trap 'warned=true interrupted=true; kill -USR1 $! 2>/dev/null' USR1
    interrupted=true
    while "${interrupted}"; do # the signal ends `wait`, not what it waits for
        interrupted=false
        code=0
        wait $! || code=$?
    done
    trap - INT TERM HUP
    trap 'warned=true' USR1
    if [ "${code}" -eq 0 ] && "${warned}"; then code=75; fi
    if [ "${code}" -ne 0 ]; then exit "${code}"; fi
}
