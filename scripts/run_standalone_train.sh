#!/usr/bin/env bash
# Usage: bash scripts/run_standalone_train.sh CONFIG [DATASET] [DEVICE_ID] [--set section.key=value …]
#
# Trains on one device. DATASET is the root folder of the data set (data.root); further options go to train.py.
# Environment: DEVICE_TARGET (auto, CPU, Ascend, GPU).
#
# Example: bash scripts/run_standalone_train.sh configs/enet/enet_cityscapes.yaml /data/cityscapes 0 --run_eval
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

split_arguments "$@"
((${#POSITIONAL[@]} >= 1 && ${#POSITIONAL[@]} <= 3)) || usage
require_file "${POSITIONAL[0]}"
remember_command "$@"

words=(--config "${POSITIONAL[0]}")
if ((${#POSITIONAL[@]} >= 2)); then
  words+=(--set "data.root=${POSITIONAL[1]}")
fi
if ((${#POSITIONAL[@]} == 3)); then
  require_number DEVICE_ID "${POSITIONAL[2]}"
  export DEVICE_ID="${POSITIONAL[2]}"
fi
exec python "$ROOT/train.py" "${words[@]}" "${OPTIONS[@]}"
