#!/bin/bash
# Converts an exported MINDIR to MindSpore Lite's format for Ascend with converter_lite, into the folder lite.
#
# usage: bash scripts/convert_lite.sh MANIFEST [BATCH ...] [option ...]
#   MANIFEST  deploy.yaml of an export with a MINDIR, or its folder
#   BATCH     batch size (default: the export's); several become gears and need a MINDIR with a dynamic batch
# options:
#   --dry_run           print the exact command and its configuration, run and write nothing
#   --optimize TARGET   ascend_oriented (default) or ascend_oriented:CHIP
#   --precision MODE    enforce_fp16 (default), preferred_fp32, enforce_origin, enforce_fp32, preferred_optimal
#   --aipp              the chip normalises uint8 pixels
# environment:
#   MS_LITE_HOME        unpacked MindSpore Lite package, unless converter_lite is on PATH
# example:
#   MS_LITE_HOME=/opt/mindspore-lite bash scripts/convert_lite.sh export/deploy.yaml 1
set -euo pipefail
unset CDPATH # cd would print its target, or go elsewhere

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# == 0)) || [[ $1 == --help || $1 == -h ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&"$((1 + ($# == 0)))"
  exit "$(($# == 0))"
fi

if ! command -v converter_lite >/dev/null && [[ -n ${MS_LITE_HOME:-} ]]; then
  converter=$MS_LITE_HOME/tools/converter
  export PATH=$converter/converter:$PATH
  export LD_LIBRARY_PATH=$converter/lib:$MS_LITE_HOME/runtime/lib:${LD_LIBRARY_PATH:-}
fi

python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m mindseg convert-ascend lite "$@"
