"""The run folder: its name, its lock, and the description of the run."""
import fcntl
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mindseg.comm import broadcast_object
from mindseg.config import Config, dump_config
from mindseg.cpu_kernels.library import installed_library
from mindseg.errors import ConfigError, UserError, shorten
from mindseg.files import remove_leftovers, write_json
from mindseg.runtime import Runtime, environment


def create_run_dir(cfg: Config, config_path: str | Path, runtime: Runtime) -> Path:
    """Makes ``<output_dir>/<config name>/<timestamp>[-<name>]``, a folder that was not there before.

    Returns:
        The run folder, the same one on all ranks.

    Raises:
        UserError: The folder cannot be written, or ``runtime.name`` cannot be a part of its name.
    """
    parent, label = Path(cfg.runtime.output_dir) / Path(config_path).stem, cfg.runtime.name
    if label is not None and not re.fullmatch(r"[\w.-]{1,64}", label):
        raise ConfigError(f"runtime.name = {shorten(label)}: it becomes a part of a folder's name; use up to 64 "
                          "letters, digits and the characters . _ -")
    moment = int(time.time())
    try:
        while runtime.is_main:
            try:
                (parent / _folder_name(moment, label)).mkdir(parents=True)
                break
            except FileExistsError:     # another run of this second
                if not (parent / _folder_name(moment, label)).is_dir():
                    raise
                moment += 1
    except OSError as error:
        raise _not_writable(parent, error) from None
    return parent / _folder_name(broadcast_object(moment, runtime.size), label)


def _folder_name(moment: int, label: str | None) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(moment))
    return f"{stamp}-{label}" if label else stamp


@contextmanager
def removed_if_refused(run_dir: Path, runtime: Runtime) -> Iterator[None]:
    """Removes a new run folder again if an error that the user can correct ends the run before it has trained.

    Args:
        run_dir: Folder that :func:`create_run_dir` made. It stays if it holds more than the description and the log.
        runtime: Rank of this process; only rank 0 removes.
    """
    try:
        yield
    except UserError:
        if runtime.is_main:
            _remove_empty_run(run_dir)
        raise


def _remove_empty_run(run_dir: Path) -> None:
    """Removes a run folder, unless it holds results or files that are not of the start of a run."""
    paths = sorted(run_dir.rglob("*"), reverse=True)        # what is in a folder before the folder
    files = [path for path in paths if not path.is_dir() or path.is_symlink()]
    for path in files:
        table = path.name == "metrics.csv" and path.read_text(encoding="utf-8").count("\n") == 1     # its heading
        if not (table or re.fullmatch(r"config\.yaml|env\.json|train\.log|rank\d+\.log", path.name)):
            return
    with suppress(OSError):     # a file that has come since
        for path in files:
            path.unlink()
        for path in [*(path for path in paths if path not in files), run_dir]:
            path.rmdir()


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot write there ({error.strerror}); set runtime.output_dir to a folder that can be "
                     "written")


@contextmanager
def lock_run(run_dir: Path, runtime: Runtime) -> Iterator[None]:
    """Keeps other trainings out of a run folder.

    The lock is on ``train.log``; the kernel releases it when the process ends, however it ends.

    Args:
        run_dir: Run folder.
        runtime: Rank of this process; only rank 0 locks.

    Raises:
        UserError: Another training is there, or the folder cannot be written.
    """
    if not runtime.is_main:
        yield
        return
    try:
        file = open(run_dir / "train.log", "ab")    # noqa: SIM115 (closed below; an error in the block is not ours)
    except OSError as error:
        raise _not_writable(run_dir, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir}: another training is running in this folder; wait for it or stop it, or start "
                            "a new run without --resume") from None
        except OSError:
            pass        # a file system without locks
        yield


def clean_run(run_dir: Path) -> None:
    """Removes the temporary files of a training that was killed.

    Args:
        run_dir: Run folder, locked.
    """
    remove_leftovers(run_dir)
    for pattern in ("ckpt/.part.*", "ckpt/.last.link.tmp", "rank*/ckpt/.part.*", "rank*/ckpt/.last.link.tmp"):
        for path in run_dir.glob(pattern):
            path.unlink(missing_ok=True)


def describe_run(cfg: Config, run_dir: Path, runtime: Runtime) -> None:
    """Writes ``config.yaml`` and ``env.json`` into a run folder, which is made if need be.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        if runtime.is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            dump_config(cfg, run_dir / "config.yaml")
            kernels = installed_library() if runtime.device_target == "CPU" else None
            write_json(run_dir / "env.json", {**environment(runtime), "cpu_kernels": kernels and Path(kernels).name})
    except OSError as error:
        raise _not_writable(run_dir, error) from None


def make_folder(path: Path) -> None:
    """Makes a folder with its parents.

    Raises:
        UserError: It cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None
