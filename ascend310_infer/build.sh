#!/bin/bash
# Builds the runner with every backend whose SDK is found:
#   acl       ASCEND_HOME_PATH  (source /usr/local/Ascend/ascend-toolkit/set_env.sh sets it)
#   mslite    MS_LITE_HOME      (an unpacked MindSpore Lite package)
#   openvino  OpenVINO_DIR      (default: asks the repository's .venv, then python3, for its openvino wheel)
#
# usage: bash ascend310_infer/build.sh [--test] [cmake options, e.g. -DSANITIZE=address,undefined]
#   --test   also builds the tests and the simulated AscendCL, and runs ctest
# environment: BUILD_DIR (default ascend310_infer/build), CXX
# needs: g++ cmake libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev libyaml-cpp-dev libssl-dev
#        zlib1g-dev nlohmann-json3-dev libcli11-dev (without apt-get, -DSEGMENT_FETCH=ON downloads the last two)
set -euo pipefail
unset CDPATH # cd would print its target, or go elsewhere

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 0
fi

run_tests=false
if [[ ${1:-} == --test ]]; then
  run_tests=true
  shift
  set -- -DBUILD_TESTING=ON "$@"
fi

fail() {
  echo "error: $*" >&2
  exit 1
}

find_openvino() {
  local python
  for python in "$root/.venv/bin/python" python3; do
    if "$python" -c 'import openvino, os; print(os.path.join(os.path.dirname(openvino.__file__), "cmake"))' 2>/dev/null; then
      return 0
    fi
  done
  return 0
}

find_cmake() {
  if command -v cmake; then
    return 0
  fi
  if [[ -x $root/.venv/bin/cmake ]]; then
    echo "$root/.venv/bin/cmake"
  fi
}

missing=()
command -v "${CXX:-g++}" >/dev/null || missing+=("g++")
cmake=$(find_cmake)
[[ -n $cmake ]] || missing+=("cmake")
if ((${#missing[@]})); then
  fail "missing: ${missing[*]}; on Debian and Ubuntu: apt-get install ${missing[*]}"
fi

OpenVINO_DIR=${OpenVINO_DIR:-$(find_openvino)}
# Empty ones too: CMake would remember what an earlier call found.
options=("-DOpenVINO_DIR=$OpenVINO_DIR" "-DASCEND_HOME_PATH=${ASCEND_HOME_PATH:-}" "-DMS_LITE_HOME=${MS_LITE_HOME:-}")

build=${BUILD_DIR:-$here/build}
# One at a time: two builds in one folder would overwrite each other's files.
mkdir -p "$build"
exec 9>"$build/.building"
flock 9
echo "building in $build with $cmake ${options[*]} $*"
"$cmake" -S "$here" -B "$build" "${options[@]}" "$@"
# nproc would take OMP_NUM_THREADS for a limit, and a compiler is no OpenMP program.
"$cmake" --build "$build" --parallel "$(env -u OMP_NUM_THREADS nproc)"
if $run_tests; then
  "${cmake%cmake}ctest" --test-dir "$build" --output-on-failure
fi
