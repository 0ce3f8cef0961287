# shellcheck shell=bash
# shellcheck disable=SC2154  # options and names come from adaltm.sh and utils/
# Names that the user typed in --compare and --export_merges and that this run does not have are
# refused before anything runs. The lists of adaltm.sh and of a recipe's run.sh may name more than a
# run has, as merges and baselines are chosen by other options: of them, what there is counts.
# ADALTM_ELSEWHERE: systems that the other runs of a run.sh have, which are left to those.

# typed OPTION: whether it is in the command that was typed.
typed() {
    [[ " ${ADALTM_RESUME//-/_} " == *" __$1"[\ =]* ]]
}

# refuse_unknown OPTION KNOWN NAME...: KNOWN is a list in one word.
refuse_unknown() {
    local option=$1 known=$2 name near
    for name in "${@:3}"; do
        [[ " ${known} ${ADALTM_ELSEWHERE:-} " == *" ${name} "* ]] && continue
        # shellcheck disable=SC2086  # one name per word
        near=$(nearest "${name}" ${known})
        die "--${option}: this run has no '${name}'${near:+ (did you mean ${near}?)};" \
            "it has ${known:-none}"
    done
}

# shellcheck disable=SC2086  # one name per word
if typed export_merges; then refuse_unknown export_merges "${merges}" ${export_merges}; fi
if typed compare; then
    for name in ${compare}; do
        [[ "${name}" =~ ^[^:]+:[^:]+$ ]] || die "--compare: '${name}' is not first:second"
    done
    # shellcheck disable=SC2086
    refuse_unknown compare "$(system_names)" ${compare//:/ }
fi
unset name
