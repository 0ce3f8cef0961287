# shellcheck shell=bash
# Source this: puts the Python that tools/setup.sh made (or was given) first in PATH; another one,
# for once, with ADALTM_PYTHON=<python or environment>.

_tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
_bin=${_tools}/venv/bin
if [ -n "${ADALTM_PYTHON:-}" ]; then
    _bin=$(dirname "${ADALTM_PYTHON}")
    if [ -d "${ADALTM_PYTHON}" ]; then _bin=${ADALTM_PYTHON}/bin; fi
elif [ -f "${_tools}/.setup/python" ]; then
    _bin=$(dirname "$(cat "${_tools}/.setup/python")")
fi
if [ ! -x "${_bin}/python" ]; then
    echo "error: there is no Python environment yet: run ${_tools}/setup.sh (or make env) once" >&2
    # shellcheck disable=SC2317  # reached when the file is run instead of sourced
    return 1 2>/dev/null || exit 1
fi
case ":${PATH}:" in
    "${_bin}:"* | ":${_bin}:"*) ;;
    *) export PATH="${_bin}:${PATH}" ;;
esac
unset _tools _bin
