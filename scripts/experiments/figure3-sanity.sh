#!/usr/bin/env bash
# The sanity test: the corrections in BF16, and in FP16 the plain importance-weighted policy gradient.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for objective in grpo grpo-token-tis grpo-seq-mis gspo; do
    bash "$here/launch.sh" --preset sanity-r1d-1.5b --objective "$objective" --dtype bf16 \
        --output-dir "runs/sanity-$objective-bf16" "$@"
done
bash "$here/launch.sh" --preset sanity-r1d-1.5b --objective pg-seq-is --dtype fp16 \
    --output-dir runs/sanity-pg-seq-is-fp16 "$@"
