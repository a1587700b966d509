#!/usr/bin/env bash
# Qwen3-30B-A3B, three objectives, BF16 against FP16; give --data: bash scripts/experiments/figure1-moe.sh --data D
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for objective in grpo-seq-mis grpo-token-tis pg-seq-tis; do
    for dtype in bf16 fp16; do
        bash "$here/launch.sh" --preset moe-qwen3-30b-a3b --objective "$objective" --dtype "$dtype" \
            --output-dir "runs/moe-$objective-$dtype" "$@"
    done
done
