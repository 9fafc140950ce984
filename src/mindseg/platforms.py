"""Training platforms, ModelArts and OpenI: data brought in before a run, results brought out after it."""
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mindseg.config import Config
from mindseg.errors import UserError, first_line, shorten
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
def platform(cfg: Config, run_dir: Path, runtime: Runtime, checkpoint: str | None = None) -> Iterator[Path | None]:
    """Brings the data set in before a run on a platform and the run folder out after it, also if the run fails.

    Without ``runtime.modelarts`` and ``runtime.openi`` nothing happens. The first process of each host brings in, rank
    0 brings out.

    Args:
        cfg: Configuration; ``data.root`` becomes the local folder of the data set.
        run_dir: Run folder.
        runtime: Rank of this process.
        checkpoint: Starting weights or model as the user typed it, looked up in OpenI's folder of models.

    Yields:
        The local copy of the checkpoint that the platform brings, or None.

    Raises:
        UserError: The platform's package is not there, or copying failed.
    """
    r = cfg.runtime
    if r.modelarts and r.openi:
        raise UserError("runtime.modelarts and runtime.openi are two platforms; leave one of them out")
    if r.modelarts:
        chosen = _modelarts(cfg, run_dir, runtime)
    else:
        chosen = _openi(cfg, run_dir, runtime, checkpoint) if r.openi else nullcontext()
    with chosen as found:
        yield found


@contextmanager
def _modelarts(cfg: Config, run_dir: Path, runtime: Runtime) -> Iterator[Path | None]:
    """Copies ``data_url`` and ``checkpoint_url`` to a local cache, and results to ``outer_path`` or ``train_url``."""
    urls = cfg.runtime.modelarts
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
    marker = target.with_name(f".{target.name}.copied")
    with _one_at_a_time(target.with_name(f".{target.name}.lock")):
        if not marker.exists() or marker.read_text() != url:
            _moxing_copy(url, str(target))
            marker.write_text(url)
    return target


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Lets the processes of a host into the block one after the other; ``path`` is the file that they lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


@contextmanager
def _openi(cfg: Config, run_dir: Path, runtime: Runtime, checkpoint: str | None) -> Iterator[Path | None]:
    """Takes data set and checkpoint from OpenI's folders, and copies results to its output folder and uploads it."""
    try:
        from c2net.context import prepare, upload_output
    except ImportError:
        raise UserError("runtime.openi needs the package c2net, which OpenI's tasks have (pip install c2net); "
                        "elsewhere set runtime.openi=false") from None
    try:
        with _one_at_a_time(Path(cfg.runtime.output_dir) / ".openi.lock"):     # c2net does what is left to do
            folders = prepare()
    except Exception as error:
        raise UserError(f"runtime.openi: OpenI's prepare() failed ({first_line(error)}); is this a task of OpenI?"
                        ) from None
    cfg.data.root = str(_data_set(Path(folders.dataset_path), cfg.data.root))
    model = Path(folders.pretrain_model_path) / checkpoint if checkpoint else None
    try:
        yield model if model and model.exists() else None
    finally:
        if runtime.is_main and run_dir.is_dir():
            output = Path(folders.output_path)
            try:
                if not run_dir.resolve().is_relative_to(output.resolve()):
                    shutil.copytree(run_dir, output / run_dir.parent.name / run_dir.name, dirs_exist_ok=True)
                upload_output()
            except Exception as error:
                raise UserError(f"{run_dir}: cannot be copied to OpenI's output folder {output} ({first_line(error)}); "
                                "check its free space") from None


def _data_set(folder: Path, name: str | None) -> Path:
    """The data set of a task: the folder of that name, or the only one."""
    if name and (folder / name).exists():
        return folder / name
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(found) != 1:
        raise UserError(f"data.root = {shorten(name)}: not among the data sets of this OpenI task, "
                        f"{', '.join(path.name for path in found) or 'which has none'}; choose one with data.root")
    return found[0]
