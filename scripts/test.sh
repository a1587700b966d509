#!/usr/bin/env bash
# Installs what is missing and runs every test: bash scripts/test.sh [pytest arguments]
# Two at a time on one thread each, which on small machines is faster than one on two; TEST_JOBS sets another number.
# xdist gives out files with many tests first, so that unit tests with stand-ins run before an engine is loaded for good.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest --numprocesses="${TEST_JOBS:-2}" --dist=loadfile "$@"
