# Shared by the run_*.sh scripts; sourced, not run.
# shellcheck shell=bash disable=SC2034

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

# What the user types again to continue a stopped run; train.py prints it.
remember_command() {
  SEGMENTATION_COMMAND="$(printf '%q ' bash "$0" "$@")"
  export SEGMENTATION_COMMAND
}

require_file() {
  [[ -f "$1" ]] || fail "$1: no such file"
}

require_number() {
  [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 = $2 is not a number"
}
