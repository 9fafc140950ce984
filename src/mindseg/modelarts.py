"""ModelArts: the flags that the platform appends to a command, data copied in, results copied out."""
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindseg.config import Config
from mindseg.errors import UserError, first_line
from mindseg.runtime import Runtime

MODELARTS_FLAGS = ("data_url", "train_url", "checkpoint_url", "outer_path")
_MODELARTS_SWITCHES = ("use_modelarts", "modelarts", "enable_modelarts")


def modelarts_arguments(argv: list[str]) -> list[str]:
    """Turns the flags that ModelArts appends to a command into one ``--set runtime.modelarts={…}``.

    Args:
        argv: Command line without the program's name. ``--data_url X`` and ``--data_url=X`` both work; switches such as
            ``--use_modelarts 1`` are left out, the addresses say enough.

    Returns:
        The command line that argparse understands; the same one if there is no such flag.
    """
    rest, found, words = [], {}, list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or flag not in MODELARTS_FLAGS + _MODELARTS_SWITCHES:
            rest.append(word)
            continue
        if not equals and words and not words[0].startswith("--"):      # a switch may stand alone
            value = words.pop(0)
        if flag in MODELARTS_FLAGS and value:
            found[flag] = value
    if found:
        pairs = ", ".join(f"{key}: {json.dumps(value)}" for key, value in found.items())
        rest += ["--set", f"runtime.modelarts={{{pairs}}}"]
    return rest


@contextmanager
def modelarts(cfg: Config, run_dir: Path, runtime: Runtime) -> Iterator[Path | None]:
    """Copies the data set in before and the run folder out after a run on ModelArts, also if the run fails.

    ``data_url`` is copied to a local cache, which becomes ``data.root``; ``checkpoint_url`` likewise. The run folder is
    copied to ``outer_path`` or, without it, ``train_url``. Without ``runtime.modelarts`` nothing happens.

    Args:
        cfg: Configuration; ``data.root`` is changed.
        run_dir: Run folder.
        runtime: The first process of each host copies in, rank 0 copies out.

    Yields:
        The local copy of ``checkpoint_url``, or None.

    Raises:
        UserError: The platform's package moxing is not there, or copying failed.
    """
    urls = cfg.runtime.modelarts
    if not urls:
        yield None
        return
    unknown = sorted(set(urls) - set(MODELARTS_FLAGS))
    if unknown:
        raise UserError(f"runtime.modelarts has no key '{unknown[0]}'; it knows {', '.join(MODELARTS_FLAGS)}")
    cache = Path(os.environ.get("MODELARTS_CACHE", "/cache"))
    if "data_url" in urls:
        cfg.data.root = str(_copy_in(urls["data_url"], cache / "data"))
    checkpoint = None
    if "checkpoint_url" in urls:
        checkpoint = _copy_in(urls["checkpoint_url"], cache / "checkpoint" / Path(urls["checkpoint_url"]).name)
    try:
        yield checkpoint
    finally:
        target = urls.get("outer_path") or urls.get("train_url")
        if target and runtime.is_main and run_dir.is_dir():
            _moxing_copy(str(run_dir), f"{target.rstrip('/')}/{run_dir.parent.name}/{run_dir.name}")


def _copy_in(url: str, target: Path) -> Path:
    """Copies a file or folder once for all processes of this host; the others wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    marker = target.with_name(f".{target.name}.copied")
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists() or marker.read_text() != url:
            _moxing_copy(url, str(target))
            marker.write_text(url)
    return target


def _moxing_copy(source: str, target: str) -> None:
    try:
        import moxing
    except ImportError:
        raise UserError("runtime.modelarts needs the package moxing, which only ModelArts has; elsewhere leave "
                        "--data_url and --train_url out, or set runtime.modelarts=null") from None
    try:
        (moxing.file.copy_parallel if moxing.file.is_directory(source) else moxing.file.copy)(source, target)
    except Exception as error:
        raise UserError(f"{source}: cannot be copied to {target} ({first_line(error)}); check the address and its "
                        "permissions") from None
