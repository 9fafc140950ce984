"""Times the calls of our C++ operators: a library with the same functions, which call those of the real one."""
import ctypes
import os
import re
import subprocess
from math import prod
from pathlib import Path

from mindseg.cpu_kernels import library
from mindseg.errors import UserError

_NAME = re.compile(r"^MINDSEG_OPERATOR\(mindseg_(\w+)\)", re.MULTILINE)
_HEAD = """// Made by benchmarks/support/operator_times.py.
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

using Operator = int(int, void**, int*, int64_t**, const char**, void*, void*);
static std::mutex g_lock;
static std::vector<std::string> g_calls;

static int Timed(const char* name, int count, void** data, int* ranks, int64_t** shapes, const char** types, void* a,
                 void* b) {
  static void* real = dlopen(REAL, RTLD_NOW);
  auto* function = reinterpret_cast<Operator*>(dlsym(real, name));
  const auto start = std::chrono::steady_clock::now();
  const int status = function(count, data, ranks, shapes, types, a, b);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::ostringstream line;
  line << name << " " << seconds.count();
  for (int i = 0; i < count; ++i) {
    line << " ";
    for (int axis = 0; axis < ranks[i]; ++axis) line << (axis ? "x" : "") << shapes[i][axis];
  }
  const std::lock_guard<std::mutex> guard(g_lock);
  g_calls.push_back(line.str());
  return status;
}

extern "C" void times_clear() { g_calls.clear(); }

extern "C" void times_write(const char* path) {
  std::ofstream out(path);
  for (const std::string& line : g_calls) out << line << "\\n";
}
"""
_FUNCTION = """
extern "C" int mindseg_{name}(int count, void** data, int* ranks, int64_t** shapes, const char** types, void* a,
                              void* b) {{
  return Timed("mindseg_{name}", count, data, ranks, shapes, types, a, b);
}}
"""

Call = tuple[str, float, list[tuple[int, ...]]]     # name, seconds, shapes of inputs and outputs


class OperatorTimes:
    """A library to give MindSpore in the place of ours.

    Args:
        folder: Gets the library.

    Attributes:
        library: Its path.
    """

    def __init__(self, folder: Path) -> None:
        sources = Path(library.__file__).resolve().parent / "csrc"
        names = [name for path in sorted(sources.glob("*.cc")) for name in _NAME.findall(path.read_text())]
        source, self.library, self.text = folder / "times.cc", folder / "libtimes.so", folder / "times.txt"
        head = _HEAD.replace("REAL", f'"{library.installed_library()}"')
        source.write_text(head + "".join(_FUNCTION.format(name=name) for name in names))
        done = subprocess.run([os.environ.get("CXX") or "g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-o",
                               str(self.library), str(source), "-ldl"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{source} cannot be compiled: {done.stderr[:300]}")
        self._functions = ctypes.CDLL(str(self.library))

    def clear(self) -> None:
        """Forgets all calls so far."""
        self._functions.times_clear()

    def calls(self) -> list[Call]:
        """All calls since then."""
        self._functions.times_write(str(self.text).encode())
        rows = [line.split(" ") for line in self.text.read_text().splitlines()]
        return [(name, float(seconds), [tuple(map(int, shape.split("x"))) for shape in shapes])
                for name, seconds, *shapes in rows]


def products(name: str, shapes: list[tuple[int, ...]]) -> int:
    """Multiplications with addition of an operator, 0 for all but convolutions.

    Args:
        name: Function.
        shapes: Its inputs and outputs: x or dy, weights, geometry, then result or gradient.
    """
    if "convolution" not in name:
        return 0
    # Each pixel of the convolution's result, or of the transposed one's input, meets the weights of its channel.
    if name == "mindseg_transposed_convolution":
        return prod(shapes[0]) * prod(shapes[1][1:])
    return prod(shapes[3]) * prod(shapes[1][1:])
