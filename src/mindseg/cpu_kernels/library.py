"""The library of C++ operators for training and evaluation on a CPU: built once, used where it is there.

It lies in the user's cache folder under a name that contains a hash of its sources, so a changed source is never run
with an old library. Without it, or with ``MINDSEG_CPU_KERNELS=0``, MindSpore's own operators do the same work.
"""
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from mindseg.errors import UserError, first_line

SWITCH = "MINDSEG_CPU_KERNELS"
_SOURCES = Path(__file__).resolve().parent / "csrc"
# No flag that depends on this machine: the functions that matter are compiled for several instruction sets.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")


def cache_folder() -> Path:
    """The package's part of the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindseg"


def library_path() -> Path:
    """Place of the library of this version, built or not."""
    digest = hashlib.sha256(" ".join((*_FLAGS, platform.machine())).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return cache_folder() / f"libmindseg_cpu-{digest.hexdigest()[:12]}.so"


@cache
def installed_library() -> str | None:
    """Path of the library, if it was built and is not switched off; asked once a process."""
    path = library_path()
    return str(path) if os.environ.get(SWITCH) != "0" and path.is_file() else None


def build_library() -> Path:
    """Compiles the library, if it is not there yet.

    Returns:
        Its place.

    Raises:
        UserError: There is no C++ compiler, or it fails.
    """
    path = library_path()
    if path.is_file():
        return path
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise UserError("no C++ compiler: install g++ (Debian: apt install g++), or name one in CXX")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    command = [compiler, *_FLAGS, "-o", str(temporary), *map(str, sorted(_SOURCES.glob("*.cc")))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = first_line(RuntimeError(done.stderr or f"exit status {done.returncode}"))
            raise UserError(f"{compiler} cannot compile the CPU kernels ({reason}); install GCC 9 or newer")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def set_threads(count: int) -> None:
    """Sets the threads of each operator; results do not depend on it.

    Args:
        count: Number of threads; 0: as many as there are cores.
    """
    ctypes.CDLL(installed_library()).mindseg_set_threads(count)


def call(name: str, *arrays: np.ndarray) -> int:
    """Calls an operator on arrays, as MindSpore does on tensors.

    Args:
        name: Its name without prefix.
        arrays: Inputs, then outputs, which it fills; all contiguous.

    Returns:
        0, or 1 if it does not take these types and shapes.
    """
    count = len(arrays)
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    pointers = [ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)) for shape in shapes]
    return getattr(ctypes.CDLL(installed_library()), f"mindseg_{name}")(
        count, (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays]),
        (ctypes.c_int * count)(*[array.ndim for array in arrays]),
        (ctypes.POINTER(ctypes.c_int64) * count)(*pointers),
        (ctypes.c_char_p * count)(*[str(array.dtype).encode() for array in arrays]), None, None)
