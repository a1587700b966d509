#!/usr/bin/env bash
# LoRA on Qwen2.5-Math-1.5B, two objectives, BF16 against FP16: bash scripts/experiments/figure1-lora.sh [options]
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for objective in grpo-token-tis pg-seq-is; do
    for dtype in bf16 fp16; do
        bash "$here/launch.sh" --preset lora-qwen2.5-math-1.5b --objective "$objective" --dtype "$dtype" \
            --output-dir "runs/lora-$objective-$dtype" "$@"
    done
done
