# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # of, and for, the script that sources
# For a run.sh that is several runs of adaltm.sh, with items of its own between them: what --status and
# --dry_run tell of a part then follows from the parts before it. Source this after the options and
# path.sh.
#
#   part ./adaltm.sh --test_sets one "${asked[@]}"
#   part own_item "11/12 score" both exp --inputs A@stage... --outputs B -- COMMAND
#   if "${asking}"; then exit "${code}"; fi

asking=false # nothing is to be done, only told
asked=()     # for adaltm.sh
code=0       # the last exit status but 0 of the parts that were asked
if "${status}" || "${dry_run}"; then
    asking=true
    asked=(--status "${status}" --dry_run "${dry_run}")
    # The items of the parts so far; run_stages reads them, and adds its own.
    ADALTM_PLAN=$(mktemp)
    export ADALTM_PLAN
    trap 'rm -f "${ADALTM_PLAN}"' EXIT
fi

part() { # part COMMAND...: with an exit status that ends the script only if something is to be done
    if "${asking}"; then "$@" || code=$?; else "$@"; fi
}

own_item() { # own_item STAGE NAME WORKDIR [run_item options] -- COMMAND...
    local words=(--stage "$1" --name "$2" --workdir "$3" --shared true "${@:4}") batch answer=0
    if ! "${asking}"; then
        python -m espnet_adaltm.bin.run_item "${words[@]}"
        return
    fi
    batch=$(mktemp)
    printf '%s\0' "${#words[@]}" "${words[@]}" >"${batch}"
    python -m espnet_adaltm.bin.run_item --batch "${batch}" --before "${ADALTM_PLAN}" \
        --list "${dry_run}" --status "${status}" --run_dir "" || answer=$?
    cat "${batch}" >>"${ADALTM_PLAN}"
    rm -f "${batch}"
    return "${answer}"
}
