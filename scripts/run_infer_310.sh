#!/bin/bash
# Offline inference from an exported model to its mIoU: build the runner, preprocess, run, postprocess.
#
# usage: bash scripts/run_infer_310.sh MODEL DATASET [DEVICE_ID] [option ...]
#   MODEL      folder of an export, its deploy.yaml, or the model file beside that which is to run
#   DATASET    folder of the data set that the manifest names
#   DEVICE_ID  Ascend device (default 0)
# options:
#   --set runtime.output_dir=DIR   work folder (also OUTPUT=DIR; default outputs/infer_310)
#   --split NAME, --list FILE      which images (default: split val)
#   --save_masks color|labelIds    also write masks
# environment:
#   BACKEND=auto|acl|mslite|openvino   where to run (default auto)
#   INPUT=bins|images                  what the runner reads (default bins)
#   RUNNER=FILE                        a runner built before (default: build it)
#   PRECISION=f32|bf16  BATCH=N  STREAMS=N   handed to the runner
#   PYTHON=FILE                        Python to use (default .venv/bin/python, then python3)
# example:
#   BACKEND=openvino bash scripts/run_infer_310.sh export data/cityscapes
# The work folder gets build.log preprocess.log infer.log acc.log, preprocess_Result/ result_Files/ and eval.json.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

fail() {
  echo "error: $*" >&2
  exit 1
}
# shellcheck source=scripts/own_folder.sh
source "$root/scripts/own_folder.sh"

# Runs one step with its log; a failure shows the log's last lines and says which log it is.
step() {
  local name=$1 log=$work/$2.log status=0
  shift 2
  echo "== $name (log: $log)"
  printf '%q ' "$@" >"$log"
  echo >>"$log"
  "$@" >>"$log" 2>&1 || status=$?
  if ((status == 3)); then
    echo "warning: some images failed, see $log and result_Files/summary.json" >&2
  elif ((status)); then
    tail -n 5 "$log" >&2
    fail "$name failed with status $status; read $log"
  fi
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  usage
  exit 0
fi
positional=()
which=()
masks=()
work=${OUTPUT:-$root/outputs/infer_310}
while (($#)); do
  case $1 in
    --set)
      [[ ${2:-} == runtime.output_dir=?* ]] || fail "--set ${2:-}: this script takes only runtime.output_dir=DIR"
      work=${2#*=}
      shift
      ;;
    --split | --list)
      [[ -n ${2:-} ]] || fail "$1 needs a value"
      which+=("$1" "$2")
      shift
      ;;
    --save_masks)
      [[ -n ${2:-} ]] || fail "$1 needs a value: color or labelIds"
      masks=("$1" "$2")
      shift
      ;;
    -*) fail "unknown option $1; see --help" ;;
    *) positional+=("$1") ;;
  esac
  shift
done
if ((${#positional[@]} < 2 || ${#positional[@]} > 3)); then
  usage >&2
  exit 1
fi

model=${positional[0]}
dataset=${positional[1]}
device=${positional[2]:-0}
backend=${BACKEND:-auto}
input=${INPUT:-bins}
manifest=$model/deploy.yaml
chosen=()
if [[ -f $model ]]; then
  manifest=$(dirname "$model")/deploy.yaml
  if [[ $model == *.yaml ]]; then
    manifest=$model
  else
    chosen=(--model "$model")
  fi
  if [[ $backend == auto ]]; then
    case $model in
      *.om) backend=acl ;;
      *.mindir) backend=mslite ;;
      *.onnx) backend=openvino ;;
    esac
  fi
fi
[[ -f $manifest ]] || fail "$model: no deploy.yaml found ($manifest); give the folder that export.py wrote"
# The runner checks this exactly, but only after all the images have been preprocessed.
((${#chosen[@]} == 0)) || grep -qF -- "$(basename "$model")" "$manifest" ||
  fail "$model: not listed in $manifest; convert it with scripts/convert_om.sh, or name a model file that is"
[[ -d $dataset ]] || fail "$dataset: no such folder; DATASET is the root of the data set"
[[ $device =~ ^[0-9]+$ ]] || fail "DEVICE_ID $device: must be a whole number"
case $backend in auto | acl | mslite | openvino) ;; *) fail "BACKEND=$backend: must be auto, acl, mslite or openvino" ;; esac
case $input in bins | images) ;; *) fail "INPUT=$input: must be bins or images" ;; esac

python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3) || fail "no python found; run scripts/setup.sh or set PYTHON"
own_folder "$work"
work=$(CDPATH='' cd -- "$work" && pwd)
bins=$work/preprocess_Result
results=$work/result_Files

segment=${RUNNER:-$root/ascend310_infer/out/segment}
if [[ -n ${RUNNER:-} ]]; then
  step "check the runner" build "$segment" --version
else
  step "build the runner" build bash "$root/ascend310_infer/build.sh"
fi
links=()
[[ $input == images ]] && links=(--link_images)
step preprocess preprocess "$python" "$root/preprocess.py" --manifest "$manifest" --dataset "$dataset" \
  --output "$bins" "${which[@]}" "${links[@]}"
runner=("$segment" run --manifest "$manifest" --input "$bins" --output "$results"
  --backend "$backend" --device_id "$device" "${chosen[@]}")
[[ -n ${PRECISION:-} ]] && runner+=(--precision "$PRECISION")
[[ -n ${BATCH:-} ]] && runner+=(--batch "$BATCH")
[[ -n ${STREAMS:-} ]] && runner+=(--streams "$STREAMS")
step inference infer "${runner[@]}"
step postprocess acc "$python" "$root/postprocess.py" --manifest "$manifest" --result "$results" \
  --dataset "$dataset" --output "$work" "${which[@]}" "${masks[@]}"
grep '^mIoU .* %,' "$work/acc.log"
