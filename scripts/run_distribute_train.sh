#!/usr/bin/env bash
# Usage: bash scripts/run_distribute_train.sh CONFIG DEVICE_NUM [DATASET] [--set section.key=value …]
#
# Trains on DEVICE_NUM devices with msrun, one process each. DATASET is the root folder of the data set (data.root);
# further options go to train.py. The console shows rank 0; every process has its own log in LOG_DIR.
# Environment:
#   DEVICE_TARGET   auto, CPU, Ascend or GPU; on the CPU the processes share the cores
#   DEVICE_IDS      which devices of this host, as 0,1,4,5 (default: the first ones)
#   NODE_NUM        hosts of the job (1); DEVICE_NUM counts the devices of all of them
#   NODE_RANK       this host, 0 to NODE_NUM - 1 (0)
#   MASTER_ADDR     address of host 0 (127.0.0.1)
#   MASTER_PORT     a free port on host 0 (8118)
#   BIND_CORE       True: bind each process to cores of its own (msrun --bind_core); or a dictionary of msrun's
#   LOG_DIR         folder of the processes' logs (outputs/msrun/<date and time>)
#   SIM_LEVEL       0 or 1: compile only, without cards, on a host with CANN (msrun --sim_level)
#   DRY_RUN         1: print msrun's line instead of running it
# SIGTERM and Ctrl-C let every process finish its step and save; the command that continues is printed.
#
# Example: DEVICE_IDS=0,1,2,3 bash scripts/run_distribute_train.sh configs/enet/enet_cityscapes.yaml 4 /data/cityscapes
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

split_arguments "$@"
((${#POSITIONAL[@]} >= 2 && ${#POSITIONAL[@]} <= 3)) || usage
require_file "${POSITIONAL[0]}"
devices="${POSITIONAL[1]}" nodes="${NODE_NUM:-1}"
require_number DEVICE_NUM "$devices"
require_number NODE_NUM "$nodes"
((devices >= 1 && nodes >= 1 && devices % nodes == 0)) ||
  fail "DEVICE_NUM = $devices cannot be divided over NODE_NUM = $nodes hosts"
require_number NODE_RANK "${NODE_RANK:-0}"
require_number MASTER_PORT "${MASTER_PORT:-8118}"
local_devices=$((devices / nodes))
if [[ -n "${DEVICE_IDS:-}" ]]; then
  IFS=, read -r -a ids <<<"$DEVICE_IDS"
  ((${#ids[@]} == local_devices)) ||
    fail "DEVICE_IDS = $DEVICE_IDS names ${#ids[@]} devices, $local_devices are needed on this host"
  export ASCEND_RT_VISIBLE_DEVICES="$DEVICE_IDS" CUDA_VISIBLE_DEVICES="$DEVICE_IDS"
fi
if [[ -n "${RANK_TABLE_FILE:-}" ]]; then
  echo "warning: RANK_TABLE_FILE is not needed by msrun and is left out" >&2
  unset RANK_TABLE_FILE
fi

logs="${LOG_DIR:-outputs/msrun/$(date +%Y%m%d-%H%M%S)}"
words=(--config "${POSITIONAL[0]}")
if ((${#POSITIONAL[@]} == 3)); then
  words+=(--set "data.root=${POSITIONAL[2]}")
fi

more=()
if [[ -n "${BIND_CORE:-}" ]]; then more=(--bind_core="$BIND_CORE"); fi
if [[ -n "${SIM_LEVEL:-}" ]]; then more+=(--sim_level="$SIM_LEVEL"); fi
line=(msrun --worker_num="$devices" --local_worker_num="$local_devices" --master_addr="${MASTER_ADDR:-127.0.0.1}"
  --master_port="${MASTER_PORT:-8118}" --node_rank="${NODE_RANK:-0}" --log_dir="$logs" --join=True "${more[@]}"
  --cluster_time_out="${CLUSTER_TIME_OUT:-300}" --tail_worker_log=0 "$ROOT/train.py" "${words[@]}" "${OPTIONS[@]}")
if [[ -n "${DRY_RUN:-}" ]]; then
  printf -v text ' %q' "${line[@]}"
  echo "${text:1}"
  exit
fi

command -v msrun >/dev/null || fail "msrun is not on the PATH; it comes with MindSpore: bash scripts/setup.sh"
remember_command "$@"
# Host 0 listens on the port; there msrun would try for minutes to get one that is taken.
if ((${NODE_RANK:-0} == 0)); then
  PYTHONPATH="$ROOT/src${PYTHONPATH:+:$PYTHONPATH}" python -c 'import sys
from mindseg.comm import check_port
from mindseg.errors import run_main
run_main(lambda: check_port(*sys.argv[1:]))' MASTER_PORT "${MASTER_PORT:-8118}" "${MASTER_ADDR:-127.0.0.1}"
fi

mkdir -p "$logs"
export MINDSEG_LOCAL_RANKS="$local_devices" # they share this host's cores
# In a session of its own: msrun answers Ctrl-C by killing its workers, which could not save then.
setsid "${line[@]}" 2>"$logs/msrun.log" &
msrun=$!

# shellcheck disable=SC2329 # called by the trap
stop_workers() {
  echo "stopping after the current step" >&2
  for pid in $(pgrep -P "$msrun"); do
    if grep -qz '^MS_ROLE=MS_WORKER' "/proc/$pid/environ" && grep -qz 'train\.py$' "/proc/$pid/cmdline"; then
      kill -TERM "$pid"
    fi
  done
}
trap stop_workers TERM INT

status=0
wait "$msrun" || status=$?
while kill -0 "$msrun" 2>/dev/null; do # a signal ends wait early
  status=0
  wait "$msrun" || status=$?
done
if ((status)); then
  echo "error: the job failed; logs are in $logs:" >&2
  if ! grep -H -m 1 -E '^(error:|[A-Za-z]*Error:)' "$logs"/worker_*.log | cut -c 1-400 >&2; then
    # Killed, or crashed without a word: msrun knows its number, its log says which number it had.
    dead="$(grep -m 1 -o -E 'Worker process [0-9]+ exit.*' "$logs/msrun.log" || true)"
    number="$(cut -d ' ' -f 3 <<<"$dead")"
    echo "$(grep -l -x -E "rank [0-9]+ of [0-9]+ is process $number" "$logs"/worker_*.log || true): ${dead:-see msrun.log}" >&2
  fi
fi
exit "$status"
