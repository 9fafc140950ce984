"""``report.html`` of an evaluation: its scores and images, and the curves of the run that the checkpoint came from."""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindseg.config import Config, dump_config
from mindseg.data.datasets import dataset_info
from mindseg.evaluation.evaluator import Example, Result
from mindseg.report.charts import read_history
from mindseg.report.html import ReportData, write_report
from mindseg.runtime import Runtime, environment


def write_run_report(folder: Path, cfg: Config, record: dict, result: Result, runtime: Runtime,
                     programs: Sequence[tuple[str, float]] = ()) -> Path:
    """Writes ``report.html``.

    Args:
        folder: Where to.
        cfg: Resolved configuration of the evaluation.
        record: Content of ``eval.json``.
        result: Holds the worst and best images.
        runtime: For the description of the machine.
        programs: mIoU of the same model in other programs, by name.

    Returns:
        The file.
    """
    facts = [("inference", record["mode"])]
    for key, label in (("mean_category_iou", "category IoU"), ("miiou", "iIoU")):
        if record.get(key) is not None and record[key] == record[key]:
            facts.append((label, f"{100 * record[key]:.2f} %"))
    info = dataset_info(cfg.data)
    share = f"; the pictures are from the first of {runtime.size} processes' share" if runtime.size > 1 else ""
    if programs:
        programs = [(Path(record["checkpoint"]).name, record["miou"]), *programs]
    metrics = _metrics_file(folder, Path(record["checkpoint"]))
    data = ReportData(
        title=f"{cfg.model.name} on {Path(record['config']).stem.removeprefix(f'{cfg.model.name}_')}",
        subtitle=f"Evaluated on {record['images']} images of split {record['split']}{share}",
        classes=info.classes, palette=info.palette, scores=record, facts=facts,
        programs=programs, worst=_rgb(result.worst, cfg), best=_rgb(result.best, cfg),
        history=read_history(metrics) if metrics else (), config=dump_config(cfg), environment=environment(runtime))
    return write_report(folder / "report.html", data)


def _metrics_file(folder: Path, checkpoint: Path) -> Path | None:
    """``metrics.csv`` of the run that a checkpoint ``RUN/ckpt/<name>.ckpt`` belongs to."""
    places = (checkpoint.resolve().parent.parent / "metrics.csv", folder / "metrics.csv")
    return next((path for path in places if path.is_file()), None)


def _rgb(examples: Sequence[Example], cfg: Config) -> list[Example]:
    """Images come in the network's colour order; pages show RGB."""
    if cfg.data.color_order == "RGB":
        return list(examples)
    return [replace(example, image=example.image[..., ::-1]) for example in examples]
