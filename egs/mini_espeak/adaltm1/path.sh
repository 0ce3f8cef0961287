# shellcheck shell=bash
# Paths and environment of a recipe; sourced by adaltm.sh and local/*.sh.

# A recipe lies in egs/<corpus>/adaltm1; ADALTM_ROOT is needed only where it lies elsewhere.
export ADALTM_ROOT=${ADALTM_ROOT:-$(cd ../../.. && pwd)}
# shellcheck source=tools/activate_python.sh
. "${ADALTM_ROOT}/tools/activate_python.sh" || exit 1
export PYTHONPATH=${ADALTM_ROOT}${PYTHONPATH:+:${PYTHONPATH}}
export PATH=${PWD}/utils:${PATH}
export LC_ALL=C.UTF-8
export PYTHONUNBUFFERED=1
