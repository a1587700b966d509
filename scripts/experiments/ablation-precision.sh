#!/usr/bin/env bash
# The sanity test with each side in a dtype of its own.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"

for pair in bf16/bf16 bf16/fp16 bf16/fp32 fp16/fp16; do
    bash "$here/launch.sh" --preset sanity-r1d-1.5b --train-dtype "${pair%/*}" --sample-dtype "${pair#*/}" \
        --output-dir "runs/sanity-${pair%/*}-train-${pair#*/}-sample" "$@"
done
