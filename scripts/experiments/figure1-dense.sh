#!/usr/bin/env bash
# Qwen3-14B with DAPO, BF16 against FP16; give --data: bash scripts/experiments/figure1-dense.sh --data D [options]
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for dtype in bf16 fp16; do
    bash "$here/launch.sh" --preset dense-qwen3-14b --dtype "$dtype" --output-dir "runs/dense-qwen3-14b-$dtype" "$@"
done
