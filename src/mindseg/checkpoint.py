"""Checkpoints: one file with weights, optimizer state, position and configuration, written whole or not at all."""
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Parameter, nn

from mindseg.config import Config, dump_config
from mindseg.errors import UserError, first_line, shorten
from mindseg.files import sync_to_disk
from mindseg.logs import log
from mindseg.models import build_network
from mindseg.models.weight_files import check_finite, read_ckpt, read_safetensors_file, write_safetensors

# What is stored beside the parameters: whole numbers, numbers as text, and text.
_COUNTS, _TEXTS = ("epoch", "step", "eval_step", "samples"), ("config",)
_NUMBERS = ("best_miou", "saved_at", "temperature")
EXTRAS = _COUNTS + _NUMBERS + _TEXTS
TEMPERATURES = (0.01, 100.0)        # the lowest and the highest


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps finished.
        best_miou: Best validation mIoU so far, 0..1; -1 before the first evaluation.
        eval_step: Step of the last evaluation; -1 before the first.
    """
    epoch: int = 0
    step: int = 0
    best_miou: float = -1.0
    eval_step: int = -1


def save_checkpoint(path: Path, parameters: list[Parameter], progress: Progress, cfg: Config, samples: int = 0,
                    saved_at: float | None = None, temperature: float = 1.0) -> None:
    """Writes a checkpoint.

    Args:
        path: Target, ending in ``.ckpt``.
        parameters: What to save.
        progress: Stored beside the parameters.
        cfg: Resolved configuration, stored as text so that the file explains itself.
        samples: Training samples, over all ranks; 0: not known.
        saved_at: Time that is stored, in seconds since 1970; None: now.
        temperature: Divisor of the logits for the confidence.

    Raises:
        UserError: The folder cannot be written; an older file of that name is kept.
    """
    # As text: MindSpore stores a number as float32, and a score must not come back as a lower one.
    texts = {"best_miou": repr(float(progress.best_miou)), "config": dump_config(cfg),
             "saved_at": repr(float(time.time() if saved_at is None else saved_at))}
    if temperature != 1:
        texts["temperature"] = repr(float(temperature))
    counts = {"epoch": progress.epoch, "step": progress.step, "eval_step": progress.eval_step, "samples": samples}
    # Counts come first: a file that was cut is known by them as one that must end with a checksum.
    content = [{"name": name, "data": ms.Tensor(value)} for name, value in counts.items()]
    _write(path, content + [{"name": p.name, "data": p} for p in parameters], texts)


def copy_with_temperature(source: str | Path, target: Path, temperature: float) -> None:
    """Copies a checkpoint, whatever it holds, and stores a temperature in the copy.

    Args:
        source: Checkpoint.
        target: Copy, ending in ``.ckpt``; may be the source.
        temperature: Divisor of the logits for the confidence, 0.01 to 100.

    Raises:
        UserError: The source is missing or damaged, or the copy cannot be written.
    """
    content = _read_content(Path(source))
    texts = {name: value for name, value in content.items() if isinstance(value, str)}
    arrays = [{"name": name, "data": ms.Tensor(value)} for name, value in content.items() if name not in texts]
    _write(target, arrays, texts | {"temperature": repr(float(temperature))})


def _write(path: Path, content: list[dict], texts: dict[str, str]) -> None:
    """Writes a file under a temporary name, syncs it and renames it."""
    tmp = path.with_name(".part.ckpt")      # one name for all, so that the next one takes the place of a leftover
    try:
        ms.save_checkpoint(content, str(tmp), append_dict=texts, crc_check=True)
        sync_to_disk(tmp)
        tmp.chmod(0o644)
        os.replace(tmp, path)
        sync_to_disk(path.parent)
    except (OSError, RuntimeError, ValueError) as error:
        for left in path.parent.glob(".part.*"):     # MindSpore writes .tmp before it renames to .ckpt
            with suppress(OSError):
                left.unlink()
        raise UserError(f"{path}: cannot write the checkpoint ({first_line(error)}); free space or choose another "
                        "runtime.output_dir") from None


def name_last(path: Path, limit: int) -> None:
    """Names a checkpoint ``step<N>.ckpt`` also ``last.ckpt``, a link that takes no space, and removes old ones.

    In this order a run that is killed at any moment has both names or will write both again.

    Args:
        path: Checkpoint.
        limit: Files ``step<N>.ckpt`` to keep, those written last; 0: all.
    """
    last = path.with_name("last.ckpt")
    tmp = path.with_name(".last.link.tmp")
    tmp.unlink(missing_ok=True)
    try:
        os.link(path, tmp)
    except OSError:     # a file system without links
        shutil.copyfile(path, tmp)
    os.replace(tmp, last)
    sync_to_disk(path.parent)
    for old in periodic_checkpoints(path.parent)[limit:] if limit else ():
        old.unlink(missing_ok=True)


def periodic_checkpoints(folder: Path) -> list[Path]:
    """The files ``step<N>.ckpt`` of a folder, the last written first (a run may go on from an earlier one)."""
    found = [path for path in folder.glob("step*.ckpt") if path.stem[4:].isdigit()]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, int(path.stem[4:])), reverse=True)


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a checkpoint file.

    Args:
        path: ``.ckpt`` file of this project or of MindSpore, or a ``.safetensors`` file that :func:`save_weights`
            wrote.

    Returns:
        Arrays by parameter name, and if it is ours the extras ``epoch``, ``step``, ``best_miou``, ``eval_step``,
        ``config``, and, except in older files, ``samples`` and ``saved_at`` (seconds since 1970); after a calibration
        also ``temperature``, the divisor of the logits.

    Raises:
        UserError: No such file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        why = " (training writes it when it evaluates)" if path.name == "best.ckpt" else ""
        others = ", ".join(sorted(other.name for other in path.parent.glob("[!.]*.ckpt"))[:5])
        raise UserError(f"{path}: no such checkpoint file{why}" + (f"; the folder holds {others}" if others else ""))
    content = _read_content(path)
    extras = _check_extras(path, content)
    return {name: value for name, value in content.items() if not isinstance(value, str) and name not in EXTRAS}, extras


def _read_content(path: Path, only: Iterable[str] | None = None) -> dict[str, np.ndarray | str]:
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the checkpoint is empty; the run that wrote it was cut off, take another one")
        return _read_weights(path) if path.suffix == ".safetensors" else read_ckpt(path, only)
    except UserError:
        raise
    except Exception as error:      # a header of safetensors can hold anything
        raise UserError(f"{path}: damaged, or not a MindSpore checkpoint ({first_line(error)}); take another") from None


def save_weights(path: Path, parameters: Iterable[Parameter], cfg: Config, extras: dict) -> None:
    """Writes parameters as safetensors, with the configuration and the extras of their checkpoint in the metadata.

    Args:
        path: File to write, ``….safetensors``.
        parameters: What to save, as float32.
        cfg: Resolved configuration.
        extras: Extras of the checkpoint, as :func:`read_checkpoint` returns them.

    Raises:
        UserError: The file cannot be written.
    """
    texts = {name: str(value) for name, value in extras.items()} | {"config": dump_config(cfg), "format": "mindspore"}
    write_safetensors(path, {p.name: p.asnumpy() for p in parameters}, texts)


def _read_weights(path: Path) -> dict[str, np.ndarray | str]:
    """The content of a file that :func:`save_weights` wrote, as it would come from a checkpoint."""
    arrays, texts = read_safetensors_file(path)
    found = {name: texts[name] for name in EXTRAS if name in texts}
    return arrays | {name: np.array(int(text)) if name in _COUNTS else text for name, text in found.items()}


def _check_extras(path: Path, content: dict[str, np.ndarray | str]) -> dict:
    """The extras among a checkpoint's content, as Python values."""
    extras = {}
    for name in EXTRAS:
        value = content.get(name)
        if value is None:
            continue
        try:
            if name in _TEXTS:
                valid = isinstance(value, str)
            elif name in _NUMBERS:      # a score is an array in older files
                value = float(value)
                valid = np.isfinite(value) and (name != "temperature" or TEMPERATURES[0] <= value <= TEMPERATURES[1])
            else:
                valid = not isinstance(value, str) and value.dtype.kind in "iu" and value.size == 1 and value >= -1
                value = value.item() if valid else value
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise UserError(f"{path}: damaged: its {name} is {shorten(value)}; take another")
        extras[name] = value
    return extras


def newest_checkpoint(paths: Iterable[Path]) -> Path | None:
    """The checkpoint of a run that was saved last and can be read; others are passed over with a warning.

    Args:
        paths: Files. The time and step written in them count, not their names; without a time, that of the file.

    Returns:
        One of the paths; None if there are none.

    Raises:
        UserError: None of them can be read.
    """
    found, problem = [], None
    for path in paths:
        try:
            extras = _check_extras(path, _read_content(path, EXTRAS))
            if "step" not in extras:
                raise UserError(f"{path}: holds weights only; start anew from them with --pretrained")
            moment = extras["saved_at"] if "saved_at" in extras else path.stat().st_mtime
            found.append((moment, extras["step"], path.name == "last.ckpt", path))
        except UserError as error:
            problem = problem or error
            log.warning("passed over: %s", error)
    for *_, path in sorted(found, reverse=True):
        try:
            check_finite(read_checkpoint(path)[0], path)
            return path
        except UserError as error:
            problem = problem or error
            log.warning("passed over: %s", error)
    if problem:
        raise problem
    return None


def load_weights(net: nn.Cell, arrays: dict[str, np.ndarray], origin: str) -> None:
    """Copies a checkpoint's weights into a network.

    The optimizer's state is passed over. A moving average of the weights (``ema.…``) is taken in their place. Auxiliary
    heads may be missing: published weights often come without them, and evaluation never runs them.

    Args:
        net: Network that receives them.
        arrays: Arrays by parameter name.
        origin: File name for messages.

    Raises:
        UserError: A parameter of the network is missing, has another shape, or holds values that are not finite.
    """
    own = {p.name: p for p in net.get_parameters()}
    arrays = arrays | {name: arrays[f"ema.{name}"] for name in own if f"ema.{name}" in arrays}
    # Dropout counters belong to a training run, not to the function that the network computes.
    missing = [name for name in own if name not in arrays and not name.startswith("aux") and not name.endswith(".step")]
    if missing:
        raise UserError(f"{origin}: {len(missing)} of {len(own)} parameters of this network are not in the checkpoint "
                        f"(first: {missing[0]}); check model.name and model.variant")
    check_finite({name: arrays[name] for name in own if name in arrays}, origin)
    for name, param in own.items():
        if name not in arrays:
            continue
        if tuple(arrays[name].shape) != tuple(param.shape):
            raise UserError(f"{origin}: {name} has shape {tuple(arrays[name].shape)}, this network wants "
                            f"{tuple(param.shape)}; check model.num_classes and model.variant")
        param.set_data(ms.Tensor(arrays[name], param.dtype))


def load_network(cfg: Config, ckpt_path: str | Path) -> nn.Cell:
    """The network of a configuration with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: The file is missing, damaged, or holds another network.
    """
    arrays, _ = read_checkpoint(ckpt_path)
    net = build_network(cfg)
    load_weights(net, arrays, str(ckpt_path))
    net.set_train(False)
    return net
