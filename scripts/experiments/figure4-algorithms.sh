#!/usr/bin/env bash
# The sanity test in FP16 with every algorithm of the paper: they nearly coincide there.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for objective in pg-seq-is pg-seq-tis pg-seq-mis pg-token-tis grpo grpo-token-tis grpo-seq-mis gspo; do
    bash "$here/launch.sh" --preset sanity-r1d-1.5b --objective "$objective" --dtype fp16 \
        --output-dir "runs/sanity-$objective-fp16" "$@"
done
