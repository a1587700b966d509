#!/usr/bin/env bash
# Installs what is missing and runs every test: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh test
exec .venv/bin/python -m pytest "$@"
