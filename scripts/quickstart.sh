#!/usr/bin/env bash
# The main job from nothing, on two CPU cores: synthetic streets -> MindRecord -> train -> export -> C++ runner -> report.
#
# usage: bash scripts/quickstart.sh
# Installs what is missing (scripts/setup.sh), then writes outputs/quickstart/{summary.json,report.html,logs/}.
# It can be run again: data and earlier runs are kept, everything else is made anew. OUTPUT=DIR chooses another folder, which
# must be new, EPOCHS=N another training length.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/own_folder.sh
source scripts/own_folder.sh
if [ $# -gt 0 ]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/quickstart.sh
  [ "$1" = --help ] || [ "$1" = -h ] && exit 0
  exit 1
fi
out=${OUTPUT:-outputs/quickstart}
config=configs/fast_scnn/fast_scnn_synthetic.yaml
own_folder "$out"
mkdir -p "$out/logs"
python=.venv/bin/python
export DEVICE_TARGET=CPU BACKEND=openvino

# Runs one step with its log; a failure shows the last lines and says which log to read.
step() {
  local name=$1 log=$out/logs/$2.log status=0 started=$SECONDS
  shift 2
  printf '%-46s' "$name"
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" != 0 ]; then
    printf 'failed\n'
    tail -n 8 "$log" >&2
    printf 'error: %s failed with status %s; read %s\n' "$name" "$status" "$log" >&2
    exit 1
  fi
  printf '%4d s\n' $((SECONDS - started))
}

step "1 install what is missing" setup bash scripts/setup.sh run
step "2 make 160 + 40 synthetic streets" data "$python" tools/make_synthetic.py --output "$out/data" --num 160 --num_val 40 \
  --keep
for split in train val; do
  step "3 pack $split into MindRecord" "mindrecord_$split" "$python" -m mindseg pack --dataset cityscapes \
    --root "$out/data" --split "$split" --output "$out/$split.mindrecord" --overwrite
done
common=(--config "$config" --set "data.root=$out/data" --set "data.mindrecord=$out/train.mindrecord"
  --set "data.eval_mindrecord=$out/val.mindrecord")
started=$SECONDS
train=("$python" train.py "${common[@]}" --set "runtime.output_dir=$out/runs")
if [ -n "${EPOCHS:-}" ]; then train+=(--set "train.epochs=$EPOCHS"); fi
step "4 train Fast-SCNN" train "${train[@]}"
train_seconds=$((SECONDS - started))
runs=("$out"/runs/fast_scnn_synthetic/*/config.yaml)
run=$(dirname "${runs[-1]}")    # their names are times
step "5 export MINDIR and ONNX" export "$python" export.py "${common[@]}" --ckpt_path "$run/ckpt/best.ckpt" \
  --file_format MINDIR ONNX --output "$out/export" --set export.height=512 --set export.width=1024
step "6 build the runner, run it, score its masks" runner \
  bash scripts/run_infer_310.sh "$out/export" "$out/data" 0 --set "runtime.output_dir=$out/runner"
for format in ONNX MINDIR; do
  step "7 score the $format model" "eval_${format,,}" "$python" eval.py "${common[@]}" --manifest "$out/export/deploy.yaml" \
    --file_format "$format" --output "$out/eval_${format,,}"
done
step "8 score the checkpoint, write the report" eval "$python" eval.py "${common[@]}" --ckpt_path "$run/ckpt/best.ckpt" \
  --output "$out" --report --beside "ONNX, onnxruntime=$out/eval_onnx/eval.json" \
  --beside "MINDIR, MindSpore=$out/eval_mindir/eval.json" --beside "C++ runner, OpenVINO=$out/runner/eval.json"
"$python" tools/quickstart_summary.py --output "$out" --train_seconds "$train_seconds"
