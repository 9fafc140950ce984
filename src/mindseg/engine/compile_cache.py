"""Compiled graphs of the training step, kept between runs in the user's cache folder.

MindSpore stores graphs by their numbers, in the order of compilation, in one folder a process, and notices neither
other shapes nor another configuration (docs/mindspore_notes.md). So each step has a folder of its own here, whose name
is a hash of all that its graphs depend on, and only the first step of a process is kept.
"""
import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn

from mindseg.cpu_kernels.library import cache_folder, installed_library
from mindseg.engine.train_step import TrainStep
from mindseg.errors import first_line

SWITCH = "MINDSEG_COMPILE_CACHE"
_MOST = 40      # folders, of some megabytes at most; those unused for longest go first
_DAY = 86400    # seconds after which a folder that was never finished is removed
_PACKAGE = Path(__file__).resolve().parents[1]
_process = {"keeps": True}      # MindSpore remembers the first folder that it is given


def keep_graphs(step: TrainStep, settings: str) -> None:
    """Lets the pieces of a step be read from files, or else be written, unless ``MINDSEG_COMPILE_CACHE=0``.

    Args:
        step: Step of a process that trains alone, in graph mode.
        settings: Text with all settings that it was built from.
    """
    if os.environ.get(SWITCH) != "0":
        kept = _KeptGraphs(step.gradients, step.update, settings)
        step.compute, step.finish = kept.compute, kept.finish


class _KeptGraphs:
    """The two compiled pieces of a training step; their first graphs are read from files, or else written.

    Args:
        gradients: First piece; its arguments are tensors.
        update: Second piece.
        settings: Text with all settings that they were built from.
    """

    def __init__(self, gradients: nn.Cell, update: nn.Cell, settings: str) -> None:
        self.gradients, self.update, self.settings = gradients, update, settings
        self._left = [gradients, update]        # pieces that have no graph yet
        self._folder = self._new = None

    def compute(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Runs the first piece."""
        if len(self._left) == 2:
            self._open(args)
        return self._run(self.gradients, args)

    def finish(self, *args: Tensor) -> Tensor:
        """Runs the second piece."""
        complete = self._left == [self.update]
        result = self._run(self.update, args)
        if complete:
            self._close()
        return result

    def _run(self, piece: nn.Cell, args: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if self._left[:1] != [piece]:
            return piece(*args)
        try:
            with _kept_in(self._new or self._folder):
                result = piece(*args)
        except (ImportError, OSError, RuntimeError, SyntaxError, ValueError) as error:
            self._give_up(error)
            return piece(*args)
        self._left.pop(0)
        return result

    def _give_up(self, error: Exception) -> None:
        """Keeps nothing: MindSpore cannot store every graph, and wants to read the script that was started."""
        logging.getLogger(__name__).info("compiled graphs are not kept: %s", first_line(error))
        self._left = []
        if self._new is not None:
            shutil.rmtree(self._new, ignore_errors=True)

    def _open(self, args: tuple[Tensor, ...]) -> None:
        """Finds the folder of the graphs for arguments of these shapes, or begins a new one."""
        keeps, _process["keeps"] = _process["keeps"], False
        if not keeps:
            self._left = []
            return
        folder = cache_folder() / "graphs" / self._digest(args)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.is_dir():
                os.utime(folder)
            else:
                self._new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
            self._folder = folder
        except OSError:     # nothing can be written there
            self._left = []

    def _close(self) -> None:
        """Gives a new folder its name, so that no process reads half a step, and removes old ones."""
        if self._new is not None:
            with suppress(OSError):     # another process was faster
                self._new.rename(self._folder)
            shutil.rmtree(self._new, ignore_errors=True)
        folders = sorted(self._folder.parent.iterdir(), key=_used)
        named = [path for path in folders if not path.name.startswith(".new-")]
        unfinished = [path for path in folders if path not in named and _used(path) < time.time() - _DAY]
        for old in [*named[:-_MOST], *unfinished]:
            shutil.rmtree(old, ignore_errors=True)

    def _digest(self, args: tuple[Tensor, ...]) -> str:
        """Hash of the settings, the shapes, the parameters, the code, and the machine's programs."""
        tensors = [*args, *self.gradients.get_parameters(), *self.update.get_parameters()]
        shapes = [(getattr(tensor, "name", ""), tensor.shape, str(tensor.dtype)) for tensor in tensors]
        variables = sorted(pair for pair in os.environ.items() if pair[0].startswith("MS_"))
        digest = hashlib.sha256(repr((self.settings, shapes, ms.__version__, sys.version, sys.argv[0],
                                      platform.machine(), installed_library(), variables)).encode())
        for path in sorted(_PACKAGE.rglob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:32]


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """Lets MindSpore read what it compiles from a folder, or write it there."""
    os.environ.update({"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(folder)})
    try:
        yield
    finally:
        for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
            del os.environ[name]


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:     # another process has removed it
        return 0.0
