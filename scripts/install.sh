#!/usr/bin/env bash
# Builds .venv from pyproject.toml with uv: bash scripts/install.sh [cpu|cuda] [test] [trl] [reasoning-gym]
#
# Without cpu or cuda it takes cuda where an NVIDIA GPU answers. Further words name optional extras of pyproject.toml.
# Quick and silent when nothing is to do. PYTHON names the interpreter to use (default: python3.11, 3.12 or python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "install.sh: $*" >&2; exit 2; }

device=""
extras=()
for word in "$@"; do
    case "$word" in
        cpu | cuda) device="$word" ;;
        test | trl | reasoning-gym) extras+=("$word") ;;
        *) fail "'$word' is not cpu, cuda, test, trl or reasoning-gym." ;;
    esac
done
if [ -z "$device" ]; then
    if command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep -q GPU; then device=cuda; else device=cpu; fi
fi

stamp=".venv/installed-$device-$(IFS=-; echo "${extras[*]:-}")"
if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cksum < pyproject.toml)" ]; then exit 0; fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
            > /dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}
python=$(find_python)
[ -n "$python" ] || fail "Python 3.11 or 3.12 with venv is needed and was not found; install it, or set PYTHON to its path."
if [ "$device" = cuda ]; then  # Triton compiles C against Python's headers when a kernel first runs
    [ -n "${CC:-}" ] || command -v gcc > /dev/null || command -v clang > /dev/null ||
        fail "a C compiler is needed for cuda and was not found; install gcc (Debian and Ubuntu: apt-get install gcc)."
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [ -f "$headers/Python.h" ] ||
        fail "Python.h is needed for cuda and is not in $headers; install it (Debian and Ubuntu: apt-get install" \
            "${headers##*/}-dev)."
fi

if [ -x .venv/bin/python ] && ! .venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'; then
    fail ".venv holds another Python; remove the folder .venv and run this again."
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet "uv>=0.9,<1"

if [ "$device" = cpu ]; then
    size="4 to 6 GB unpacked"
    # uv does not read pip's folder of wheels; a CPU build of torch may lie there, which saves 2.5 GB of fetching.
    if [ -z "${UV_FIND_LINKS:-}" ] && [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="$PIP_FIND_LINKS"; fi
else
    size="4 GB to fetch, 9 GB unpacked"
fi

arguments=(--extra "$device")
for extra in ${extras[@]+"${extras[@]}"}; do arguments+=(--extra "$extra"); done
echo "install.sh: installing for $device into .venv (the first time: 1 to 5 minutes, $size)"
# Compiled now, the many modules of vLLM and DeepSpeed start fast the first time too.
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -r pyproject.toml "${arguments[@]}"
if [ "$device" = cuda ] && ! .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    fail "the torch in .venv is a build for CPUs; remove the folder .venv, unset UV_FIND_LINKS and run this again."
fi
cksum < pyproject.toml > "$stamp"
