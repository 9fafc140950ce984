# Shared by the run_*.sh scripts; sourced, not run.
# shellcheck shell=bash disable=SC2034

unset CDPATH # cd would print its target, or go elsewhere
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The project's own environment if there is one, else whatever python is on the PATH.
if [[ -x "$ROOT/.venv/bin/python" ]]; then
  export PATH="$ROOT/.venv/bin:$PATH"
fi

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints the comment at the head of the calling script.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 1
}

# split_arguments WORD…: positional words go to POSITIONAL, everything from the first --option on to OPTIONS.
split_arguments() {
  POSITIONAL=()
  OPTIONS=()
  while (($#)) && [[ "$1" != --* ]]; do
    POSITIONAL+=("$1")
    shift
  done
  OPTIONS=("$@")
}

# What the user types again to continue a stopped run; train.py prints it. Quoted so that it reads the same in any locale.
# shellcheck disable=SC2089,SC2090 # the quotes are for the reader of the variable
remember_command() {
  local name word
  MINDSEG_COMMAND=""
  for name in DEVICE_TARGET DEVICE_IDS NODE_NUM NODE_RANK MASTER_ADDR MASTER_PORT; do
    [[ -z "${!name:-}" ]] || MINDSEG_COMMAND+="$name=${!name} "
  done
  for word in bash "$0" "$@"; do
    MINDSEG_COMMAND+="'${word//\'/\'\\\'\'}' "
  done
  export MINDSEG_COMMAND
}

require_file() {
  [[ -f "$1" ]] || fail "$1: no such file"
}

require_number() {
  [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 = $2 is not a number"
}
