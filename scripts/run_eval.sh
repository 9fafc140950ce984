#!/usr/bin/env bash
# Usage: bash scripts/run_eval.sh CONFIG CHECKPOINT [DATASET] [DEVICE_ID] [--set section.key=value …]
#
# Scores a checkpoint, or every checkpoint of a folder. DATASET is the root folder of the data set (data.root); further
# options go to eval.py. Environment: DEVICE_TARGET (auto, CPU, Ascend, GPU).
#
# Example: bash scripts/run_eval.sh configs/enet/enet_cityscapes.yaml best.ckpt /data/cityscapes 0 --report
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

split_arguments "$@"
((${#POSITIONAL[@]} >= 2 && ${#POSITIONAL[@]} <= 4)) || usage
require_file "${POSITIONAL[0]}"
[[ -e "${POSITIONAL[1]}" ]] || fail "${POSITIONAL[1]}: no such checkpoint"

words=(--config "${POSITIONAL[0]}" --ckpt_path "${POSITIONAL[1]}")
if ((${#POSITIONAL[@]} >= 3)); then
  words+=(--set "data.root=${POSITIONAL[2]}")
fi
if ((${#POSITIONAL[@]} == 4)); then
  require_number DEVICE_ID "${POSITIONAL[3]}"
  export DEVICE_ID="${POSITIONAL[3]}"
fi
exec python "$ROOT/eval.py" "${words[@]}" "${OPTIONS[@]}"
