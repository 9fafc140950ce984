#!/usr/bin/env bash
# Makes .venv and installs what is missing: bash scripts/setup.sh [run|dev|slow]
#   run (default): training, evaluation, export and the CPU runner;  dev: tests and linters too;
#   slow: also what only the slow tests want (clang, whose fuzzer reads manifests and images; a compiler and an emulator
#   for aarch64; ffmpeg).
# System packages are installed when this runs as root on a Debian-like system, otherwise they are named.
set -euo pipefail
unset CDPATH # cd would print its target, or go elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:-run}
case "$kind" in run | dev | slow) ;; *) echo "usage: bash scripts/setup.sh [run|dev|slow]" >&2; exit 2 ;; esac

packages=(g++ cmake make libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev libyaml-cpp-dev libssl-dev
  zlib1g-dev nlohmann-json3-dev libcli11-dev python3-venv)
if [ "$kind" != run ]; then packages+=(chromium libjemalloc2); fi
if [ "$kind" = slow ]; then packages+=(clang libclang-rt-dev g++-aarch64-linux-gnu qemu-user-static ffmpeg); fi
installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }
missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "error: system packages are missing; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi

python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || {
    echo "error: $("$python" --version) found, MindSpore has wheels for Python 3.10 to 3.12; set PYTHON=python3.11" >&2
    exit 1
  }
  "$python" -m venv .venv
fi
files=(requirements.txt requirements-deploy.txt)
if [ "$kind" != run ]; then files+=(requirements-dev.txt) kind=dev; fi
stamp=$(cat "${files[@]}" pyproject.toml | sha256sum | cut -d' ' -f1)
if [ "$(cat ".venv/installed-$kind" 2>/dev/null)" != "$stamp" ]; then
  echo "installing Python packages into .venv, some minutes: ${files[*]}"
  .venv/bin/pip install --quiet --disable-pip-version-check "${files[@]/#/-r}"
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
  echo "$stamp" >".venv/installed-$kind"
  echo "done; next: source .venv/bin/activate"
fi
.venv/bin/python -m mindseg build-kernels >/dev/null
