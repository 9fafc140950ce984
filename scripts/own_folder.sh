# shellcheck shell=bash
# Sourced by the scripts that write into a folder of their own.

# Makes a folder for results, or takes one that was made here before; a folder with a user's files is left alone.
own_folder() {
  local folder=$1 marker=$1/.mindseg-work
  if [[ ! -f $marker ]]; then
    if [[ -e $folder && ! -d $folder ]] || [[ -n $(ls -A -- "$folder" 2>/dev/null) ]]; then
      echo "error: $folder: holds files that this script did not make; set OUTPUT to a new folder" >&2
      exit 1
    fi
    { mkdir -p -- "$folder" && : >"$marker"; } 2>/dev/null || {
      echo "error: $folder: cannot be written; set OUTPUT to another folder" >&2
      exit 1
    }
  fi
}
