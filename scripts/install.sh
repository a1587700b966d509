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
command -v c++ > /dev/null || command -v g++ > /dev/null || command -v clang++ > /dev/null ||
    fail "a C++ compiler is needed and was not found; install one (Debian and Ubuntu: apt-get install g++)."

if [ -x .venv/bin/python ] && ! .venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'; then
    fail ".venv holds another Python; remove the folder .venv and run this again."
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet "uv>=0.9,<1"

# uv does not read pip's folder of wheels; a CPU build of torch may lie there.
if [ -z "${UV_FIND_LINKS:-}" ] && [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="$PIP_FIND_LINKS"; fi

arguments=(--extra "$device")
for extra in ${extras[@]+"${extras[@]}"}; do arguments+=(--extra "$extra"); done
echo "install.sh: installing for $device into .venv (the first time: 1 to 5 minutes, 4 to 8 GB)"
# Compiled now, the many modules of vLLM and DeepSpeed start fast the first time too.
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -r pyproject.toml "${arguments[@]}"
cksum < pyproject.toml > "$stamp"
