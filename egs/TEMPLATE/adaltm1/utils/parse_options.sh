# shellcheck shell=bash
# Options of a script, declared in one list and never evaluated. Source this, then:
#
#   option nj 4 "number of parallel jobs"
#   option force false "redo what is done"      # a default of true or false makes it a boolean
#   parse_options "$@"                          # sets $nj, $force; --help prints the list
#
# Accepted: --nj 8, --nj=8, and - for _ in names. An option that does not exist is refused with the
# nearest that does; so is one without a value and a boolean that is neither true nor false. Only the
# `flags` may stand alone: --status is --status true.
# `take_options` is the same for a script that passes what it does not know on to another one: it
# collects that in the array `rest`, and the other one knows of its options when it refuses some.

declare -a option_names=() rest=()
flags=" status dry_run "
declare -A option_default=() option_help=()

option() { # option NAME DEFAULT HELP
    option_names+=("$1")
    option_default["$1"]=$2
    option_help["$1"]=$3
    printf -v "$1" '%s' "$2"
}

die() { # die MESSAGE...
    echo "error: $*" >&2
    exit 1
}

print_options() {
    local name
    for name in "${option_names[@]}"; do
        printf '  --%-22s %s (default: "%s")\n' "${name}" "${option_help[${name}]}" \
            "${option_default[${name}]}"
    done
}

# changed NAME...: "--name value" for those options that differ from their default.
changed() {
    local name
    for name in "$@"; do
        if [ "${!name}" != "${option_default[${name}]}" ]; then
            printf ' --%s %s' "${name}" "${!name}"
        fi
    done
}

_set_option() { # _set_option NAME VALUE
    case "${option_default[$1]}" in
        true | false)
            case "$2" in
                true | false) ;;
                *) die "--$1 is true or false, not '$2'" ;;
            esac
            ;;
    esac
    printf -v "$1" '%s' "$2"
}

_is_option() {
    [ -n "${1:-}" ] && [ -n "${option_help[$1]+set}" ]
}

_parse() { # _parse UNKNOWN ARGUMENT..., UNKNOWN is refuse or keep
    local unknown=$1 word name
    shift
    rest=()
    while [ $# -gt 0 ]; do
        word=$1
        shift
        case "${word}" in
            -h | --help)
                show_help
                exit 0
                ;;
            --*) ;;
            *)
                if [ "${unknown}" = keep ]; then
                    rest+=("${word}")
                    continue
                fi
                die "unexpected argument '${word}': options look like --name value"
                ;;
        esac
        name=${word#--}
        name=${name%%=*}
        name=${name//-/_}
        if [[ "${flags}" == *" ${name} "* && "${word}" != *=* ]] && [[ $# -eq 0 || "$1" == --* ]]; then
            set -- true "$@"
        fi
        if ! _is_option "${name}"; then
            [ "${unknown}" = keep ] || die "unknown option --${name}$(_suggestion "${name}")"
            rest+=("${word}")
            # Its value must not be taken for an option of ours, whatever it looks like.
            if [[ "${word}" != *=* ]] && [ $# -gt 0 ]; then
                rest+=("$1")
                shift
            fi
        elif [[ "${word}" == *=* ]]; then
            _set_option "${name}" "${word#*=}"
        elif [ $# -eq 0 ]; then
            die "--${name} needs a value: ${option_help[${name}]}"
        else
            if [[ "$1" =~ ^--([a-z_]+)(=.*)?$ ]] && _is_option "${BASH_REMATCH[1]}"; then
                die "--${name} needs a value, found the option $1"
            fi
            _set_option "${name}" "$1"
            shift
        fi
    done
}

parse_options() {
    _parse refuse "$@"
}

take_options() {
    export ADALTM_OPTIONS="${option_names[*]}" # for the other one, to suggest
    _parse keep "$@"
}

# Scripts that have more to say define their own.
show_help() {
    echo "Usage: $0 [--name value]..."
    print_options
}

# nearest WORD KNOWN...: the known word that is most like it; nothing if none is.
nearest() {
    local word=$1 best='' least=$((${#1} / 2 + 1)) other distance
    shift
    if [ "${least}" -gt 4 ]; then least=4; fi
    for other in "$@"; do
        distance=$(_distance "${word}" "${other}")
        if [ "${distance}" -lt "${least}" ]; then
            least=${distance}
            best=${other}
        fi
    done
    if [ -z "${best}" ]; then
        for other in "$@"; do
            if [[ "${other}" == *"${word}"* || "${word}" == *"${other}"* ]]; then best=${other}; fi
        done
    fi
    echo "${best}"
}

_suggestion() { # _suggestion NAME, which is no option
    local best
    # shellcheck disable=SC2086  # one option per word
    best=$(nearest "$1" "${option_names[@]}" ${ADALTM_OPTIONS:-})
    if [ -n "${best}" ]; then
        echo " (did you mean --${best}?)"
    else
        echo " (--help lists them)"
    fi
}

# Levenshtein distance of two words.
_distance() {
    local a=$1 b=$2 i j cost diagonal above
    local -a row=()
    for ((j = 0; j <= ${#b}; j++)); do row[j]=${j}; done
    for ((i = 1; i <= ${#a}; i++)); do
        diagonal=${row[0]}
        row[0]=${i}
        for ((j = 1; j <= ${#b}; j++)); do
            above=${row[j]}
            cost=1
            if [ "${a:i-1:1}" = "${b:j-1:1}" ]; then cost=0; fi
            ((diagonal += cost))
            if ((above + 1 < diagonal)); then diagonal=$((above + 1)); fi
            if ((row[j - 1] + 1 < diagonal)); then diagonal=$((row[j - 1] + 1)); fi
            row[j]=${diagonal}
            diagonal=${above}
        done
    done
    echo "${row[${#b}]}"
}
