# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # names come from adaltm.sh and utils/, and go back
# Results of ESPnet recipes beside ours: --import_espnet "[NAME[:SEED]=]FOLDER ...", see
# espnet_adaltm/bin/import_espnet.py. A row is called espnet unless it has a NAME; several seeds of
# one system have one name. They are brought in by stage decode, as there is nothing to train.

# imported_systems: "name[:seed]=folder" of each, the folder being ours.
imported_systems() {
    local entry name
    for entry in ${import_espnet}; do
        name=espnet
        if [[ "${entry}" == *=* ]]; then name=${entry%%=*}; fi
        echo "${name}=${expdir}/import_${name/:/_seed}"
    done
}

# What is wrong with --import_espnet is told before anything runs.
for name in ${import_espnet}; do
    [ -d "${name#*=}" ] || die "--import_espnet: ${name#*=} is no folder; give [name[:seed]=]FOLDER"
    if [[ "${name}" == *=* ]]; then
        [[ "${name%%=*}" =~ ^[A-Za-z0-9][A-Za-z0-9_.+-]*(:[0-9]+)?$ ]] ||
            die "--import_espnet: '${name%%=*}' is neither a name nor name:seed"
    fi
done
for name in $(imported_systems | sed 's/=.*//' | sort | uniq -d); do
    die "--import_espnet has ${name} twice: give each folder a name of its own, name=FOLDER"
done
for name in $(imported_systems | sed 's/[:=].*//' | sort -u); do
    if [[ " asr_expert ser_expert ${baselines} ${merges} " == *" ${name} "* ]]; then
        die "--import_espnet: ${name} is a system of ours: give another name"
    fi
done
unset name

# is_import FOLDER: whether its answers were brought in.
is_import() {
    [[ "$1" == "${expdir}"/import_* ]]
}

# import_items: an item for each.
import_items() {
    local entry system set source
    local -a dumps inputs ours=() files
    item_cmd=${decode_cmd}
    # shellcheck disable=SC2207  # one system per word
    ours=($(imported_systems))
    for entry in ${import_espnet}; do
        system=${ours[0]}
        ours=("${ours[@]:1}")
        source=${entry#*=}
        dumps=()
        inputs=("${label_names}@tokens" "${tokens}/tokens.model@tokens")
        for set in ${test_sets}; do
            dumps+=("${dumpdir}/${set}")
            inputs+=("${dumpdir}/${set}/wav.scp@audio")
        done
        # Whatever of these is read, a change of it is seen.
        mapfile -t files < <(find -L "${source}" -maxdepth 4 -type f \
            \( -name text -o -name score -o -name config.yaml \) -not -path '*/logdir/*' | sort)
        item import "${system#*=}" --inputs "${inputs[@]}" "${files[@]}" \
            --outputs "${system#*=}/import.json" \
            -- python -m espnet_adaltm.bin.import_espnet --dir "${source}" \
            --dumps "${dumps[@]}" --labels "${labels}" --tokens "${tokens}" \
            --out "${system#*=}" "${import_words[@]}"
    done
}

# import_pairs: paired tests of each, as of the baselines.
import_pairs() {
    local name
    for name in $(imported_systems | sed 's/[:=].*//' | sort -u); do
        echo "adaltm:${name}" "ser_only:${name}"
    done
}
read -ra import_words <<<"${import_args}"
