#!/usr/bin/env bash
# Make the Python environment of this repository. Run it as often as you like: what is there already
# is kept, an interrupted run continues, and a finished one is recognised in a fraction of a second.
#
#   tools/setup.sh                       # tools/venv; CPU or CUDA build of torch, as the machine has
#   tools/setup.sh --dev                 # with what the tests need
#   tools/setup.sh --python ~/conda/envs/speech   # use (and complete) an environment you have
# Later runs (make's as well) keep to the environment of the last one, until --venv or --python names
# another.
set -euo pipefail
# Without bytecode every start of Python is two to three times slower.
unset PYTHONDONTWRITEBYTECODE

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "${tools}")

venv=
python=
base_python=
device=auto
dev=false
force=false

usage() {
    cat <<EOF
Usage: tools/setup.sh [options]
  --venv DIR          where to make the environment (default: that of the last run, or tools/venv)
  --python PATH       complete this environment (its folder or its python) instead of making one;
                      a torch that it has already is kept; later runs use it again
  --base_python PATH  the Python, 3.11 or newer, that a new environment is made with
  --device D          auto, cpu or cuda: which build of torch (default: auto, asks nvidia-smi)
  --dev               also install what the tests need
  --force             do not believe the stamp of an earlier run: go through all steps again
Package indexes, find-links and certificates are those that pip is configured with.
EOF
}

die() {
    echo "error: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case "$1" in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
        --venv | --python | --base_python | --device)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        --dev | --force)
            printf -v "${1#--}" true
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            die "unknown option $1"
            ;;
    esac
done
case "${device}" in
    auto | cpu | cuda) ;;
    *) die "--device is auto, cpu or cuda, not '${device}'" ;;
esac

# ---------------------------------------------------------------- which environment
given=false
# What an earlier run was told is not forgotten. A .stamp marks environments made by this script.
remembered=${tools}/.setup/python
if [ -z "${python}${venv}" ] && [ -f "${remembered}" ]; then
    python=$(cat "${remembered}")
    if [ ! -x "${python}" ]; then
        die "${python}, which an earlier run used, is gone: name another one with --python, or" \
            "make one with --venv ${tools}/venv"
    fi
    if [ -f "$(dirname "$(dirname "${python}")")/.stamp" ]; then
        venv=$(dirname "$(dirname "${python}")")
        python=
    fi
fi
if [ -n "${python}" ]; then
    given=true
    if [ -d "${python}" ]; then
        python=${python%/}/bin/python
    fi
    [ -x "${python}" ] || die "--python: ${python} is not a Python"
    python=$(cd "$(dirname "${python}")" && pwd)/$(basename "${python}")
    mkdir -p "${tools}/.setup"
    stamp=${tools}/.setup/$(echo "${python}" | cksum | cut -d' ' -f1).stamp
else
    venv=${venv:-${tools}/venv}
    mkdir -p "${venv}"
    venv=$(cd "${venv}" && pwd)
    python=${venv}/bin/python
    stamp=${venv}/.stamp
fi

# Sourcing activate_python.sh finds the environment through this file; the default needs none.
remember() {
    mkdir -p "${tools}/.setup"
    if [ "${python}" = "${tools}/venv/bin/python" ]; then
        rm -f "${remembered}"
    else
        echo "${python}" >"${remembered}"
    fi
    # The Makefile compares the age of this file with that of the requirements. Without it, make runs
    # this script with --dev, which adds what the tests need to this same environment.
    if "${dev}" || "${python}" "${check[@]}" --dev --quick 2>/dev/null; then
        touch "${tools}/.setup/done"
    else
        rm -f "${tools}/.setup/done"
    fi
}

if [ "${device}" = auto ]; then
    device=cpu
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        device=cuda
    fi
fi

fingerprint="${device} $(cat "${tools}"/requirements*.txt "${tools}/overrides.txt" \
    "${tools}/setup.sh" "${tools}/check_install.py" "${root}/setup.py" | cksum)"
check=("${tools}/check_install.py")
if "${given}"; then
    check+=(--any-version)
fi
if ! "${force}" && [ -f "${stamp}" ] && [ -x "${python}" ]; then
    # An environment with the tests' packages serves without --dev as well.
    if [ "$(cat "${stamp}")" = "${fingerprint} true" ]; then dev=true; fi
    if "${dev}"; then check+=(--dev); fi
    if [ "$(cat "${stamp}")" = "${fingerprint} ${dev}" ] && "${python}" "${check[@]}" --quick; then
        remember
        echo "The environment is ready: ${python}"
        exit 0
    fi
elif "${dev}"; then
    check+=(--dev)
fi

# ---------------------------------------------------------------- an empty environment
new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
if [ ! -x "${python}" ]; then
    for candidate in ${base_python:-python3 python3.13 python3.12 python3.11}; do
        if new_enough "${candidate}"; then
            base_python=$(command -v "${candidate}")
            break
        fi
    done
    if [ -z "${base_python}" ] || ! new_enough "${base_python}"; then
        die "Python 3.11 or newer is needed: install one, or name it with --base_python"
    fi
    echo "Making ${venv} with ${base_python}"
    "${base_python}" -m venv "${venv}" ||
        die "${base_python} cannot make environments: install its venv module" \
            "(Debian: apt-get install python3-venv)"
fi
new_enough "${python}" || die "${python} is older than 3.11"
echo unfinished >"${stamp}"
rm -f "${tools}/.setup/done"

# ---------------------------------------------------------------- uv, set up like pip
if ! "${python}" -m uv --version >/dev/null 2>&1; then
    "${python}" -m pip --version >/dev/null 2>&1 || "${python}" -m ensurepip >/dev/null
    "${python}" -m pip install --quiet uv==0.13.8
fi

# pip_setting NAME: what pip would use, from its environment variable or its files.
pip_setting() {
    local variable
    variable=PIP_$(echo "$1" | tr 'a-z-' 'A-Z_')
    if [ -n "${!variable:-}" ]; then
        echo "${!variable}"
    else
        "${python}" -m pip config get "global.$1" 2>/dev/null ||
            "${python}" -m pip config get "install.$1" 2>/dev/null || true
    fi
}

# Unlike pip, uv trusts the first index that knows a name; unsafe-best-match is what pip does. Of one
# version it still takes the wheel of the first index that has it, so the main index comes first: an
# extra one may hold a wheel for every platform, without the libraries inside.
main_index=$(pip_setting index-url)
main_index=${main_index:-https://pypi.org/simple}
sources=(--index-strategy unsafe-best-match --default-index "${main_index}" --index "${main_index}")
for value in $(pip_setting extra-index-url); do
    sources+=(--index "${value}")
done
for value in $(pip_setting find-links); do
    sources+=(--find-links "${value}")
done
certificate=$(pip_setting cert)
if [ -n "${certificate}" ]; then
    export SSL_CERT_FILE=${SSL_CERT_FILE:-${certificate}}
fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-$(pip_setting timeout)}
[ -n "${UV_HTTP_TIMEOUT}" ] || unset UV_HTTP_TIMEOUT

install() {
    "${python}" -m uv pip install --quiet --compile-bytecode --python "${python}" \
        "${sources[@]}" "$@"
}
version_of() {
    "${python}" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" \
        2>/dev/null || true
}

# ---------------------------------------------------------------- torch, in the right build
torch=$(grep '^torch==' "${tools}/requirements-torch.txt")
torch_index=https://download.pytorch.org/whl/cpu
have=$(version_of torch)
install_torch() {
    if [ "${device}" = cuda ]; then
        # A folder of wheels may hold the CPU build as well, which sorts above the plain one.
        install "${torch},!=${torch#*==}+cpu"
    elif [ "$(uname)" = Darwin ]; then
        install "${torch}"
    else
        # "+cpu" can only be met by a CPU build, so no CUDA wheel is ever downloaded.
        install "${torch}+cpu" 2>/dev/null ||
            install --index "${torch_index}" "${torch}+cpu" ||
            die "${torch}+cpu is neither in pip's sources nor to be had from ${torch_index}:" \
                "put its wheel into a folder and run again with PIP_FIND_LINKS=<folder>"
    fi
}
keep=false
if [ -n "${have}" ]; then
    if "${given}"; then keep=true; fi
    if [ "${have%+*}" = "${torch#*==}" ]; then
        case "${device},${have}" in
            cuda,*+cpu) ;;
            cpu,*+cpu | cuda,*) keep=true ;;
            *) if [ "$(uname)" = Darwin ]; then keep=true; fi ;;
        esac
    fi
fi
if "${keep}"; then
    echo "torch ${have} is there"
else
    echo "Installing ${torch} for ${device}"
    install_torch
    have=$(version_of torch)
fi

# ---------------------------------------------------------------- everything else
echo "Installing the other packages"
overrides=$(mktemp)
trap 'rm -f "${overrides}"' EXIT
{
    cat "${tools}/overrides.txt"
    echo "torch==${have}"
} >"${overrides}"
packages=(-r "${tools}/requirements.txt" -r "${tools}/requirements-train.txt")
if "${dev}"; then
    packages+=(-r "${tools}/requirements-dev.txt")
fi
install --overrides "${overrides}" "${packages[@]}"
if "${dev}"; then
    install --no-deps -r "${tools}/requirements-reference.txt"
fi

# torchaudio's wheel is linked to CUDA. ESPnet needs only its Python part, which loads once the
# compiled files are out of the way; with a matching CUDA torch they load and stay.
imports_torchaudio() {
    "${python}" -c 'import torchaudio' >/dev/null 2>&1
}
if ! imports_torchaudio; then
    install --no-deps -r "${tools}/requirements-torchaudio.txt"
fi
if ! imports_torchaudio; then
    compiled=$("${python}" -c 'import importlib.util as u; from pathlib import Path
print(Path(u.find_spec("torchaudio").origin).parent / "lib")')
    mkdir -p "${compiled}.disabled"
    find "${compiled}" -maxdepth 1 -name '*.so' -exec mv {} "${compiled}.disabled/" \;
fi

# ---------------------------------------------------------------- this package, bytecode, check
# editable_mode=compat writes a plain path instead of an import hook, which costs every start 20 ms.
install --no-deps --no-build-isolation --config-setting editable_mode=compat --editable "${root}"
echo "Checking"
"${python}" "${check[@]}"
echo "${fingerprint} ${dev}" >"${stamp}"
remember
echo "The environment is ready: ${python}"
