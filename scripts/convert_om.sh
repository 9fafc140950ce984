#!/bin/bash
# Converts an exported ONNX model to .om files for Ascend 310, 310P and 310B with ATC, and lists them in the manifest.
#
# usage: bash scripts/convert_om.sh MANIFEST [SOC_VERSION] [BATCH ...] [option ...] [-- ATC_OPTION ...]
#   MANIFEST     deploy.yaml of an export with an ONNX model, or its folder
#   SOC_VERSION  such as Ascend310, Ascend310P3 or 310P3 (default: asks npu-smi)
#   BATCH        one .om for each (default: the export's batch)
# options:
#   --dry_run        print the exact commands, run and write nothing
#   --dynamic_batch  one .om with all batch sizes as gears
#   --aipp           the chip normalises uint8 pixels; the result goes to the folder aipp with its own manifest
#   --log LEVEL      ATC's log level (default debug)
#   --fusion_switch FILE   switches fusion passes off, one a line: ConvBatchnormFusionPass:off
#   --precision MODE  value of ATC's --precision_mode_v2: fp16 (ATC's default), mixed_float16, cube_fp16in_fp32out;
#                     where the chip has float32 also origin, mixed_bfloat16
#   -- --NAME=VALUE ...    further options of ATC, such as --precision_mode=allow_mix_precision of CANN 6 and older;
#                          the manifest notes them
# example:
#   bash scripts/convert_om.sh export/deploy.yaml Ascend310P3 1 4 8
set -euo pipefail
unset CDPATH # cd would print its target, or go elsewhere

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# == 0)) || [[ $1 == --help || $1 == -h ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&"$((1 + ($# == 0)))"
  exit "$(($# == 0))"
fi

# CANN's programs are on no PATH until its environment is set; its script knows nothing of set -u.
toolkit=${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit}
if ! command -v atc >/dev/null && [[ -f $toolkit/set_env.sh ]]; then
  set +u
  # shellcheck disable=SC1091
  source "$toolkit/set_env.sh"
  set -u
fi

python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m mindseg convert-ascend om "$@"
