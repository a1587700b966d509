#!/usr/bin/env bash
# OctoThinker-3B with Dr.GRPO, BF16 against FP16: bash scripts/experiments/figure1-octothinker.sh [options]
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for dtype in bf16 fp16; do
    bash "$here/launch.sh" --preset octothinker-3b --dtype "$dtype" --output-dir "runs/octothinker-3b-$dtype" "$@"
done
