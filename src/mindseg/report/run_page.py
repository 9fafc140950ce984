"""``report.html`` of an evaluation: scores, example images, and the curves of the run the checkpoint belongs to."""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindseg.config import Config, dump_config
from mindseg.data.datasets import dataset_info
from mindseg.evaluation.evaluator import Example, Result
from mindseg.report.charts import number, read_history
from mindseg.report.pages import ReportData, write_report
from mindseg.runtime import Runtime, environment


def write_run_report(folder: Path, cfg: Config, record: dict, result: Result, runtime: Runtime,
                     programs: Sequence[tuple[str, float]] = ()) -> Path:
    """Writes ``report.html``.

    Args:
        folder: Folder of the page.
        cfg: Resolved configuration of the evaluation.
        record: Content of ``eval.json``.
        result: Images with the lowest and highest mIoU.
        runtime: Device and processes, for the description of the environment.
        programs: mIoU of the same model in other programs, by name.

    Returns:
        The file.
    """
    checkpoint = Path(record["checkpoint"])
    run_folder = checkpoint.resolve().parent.parent     # of RUN/ckpt/NAME.ckpt
    facts = [("inference", record["mode"])]
    for key, label in (("mean_category_iou", "category IoU"), ("miiou", "iIoU"), ("ece", "calibration error")):
        if number(record.get(key)) is not None:
            facts.append((label, f"{100 * record[key]:.2f} %"))
    info = dataset_info(cfg.data)
    share = f"; the images are from the first of {runtime.size} processes" if runtime.size > 1 else ""
    data = ReportData(
        title=f"{cfg.model.name} on {Path(record['config']).stem.removeprefix(f'{cfg.model.name}_')}",
        subtitle=f"Evaluated on {record['images']} images of split {record['split']}{share}",
        classes=info.classes, palette=info.palette, scores=record, facts=facts,
        programs=[(checkpoint.name, record["miou"]), *programs] if programs else (),
        worst=_rgb(result.worst, cfg), best=_rgb(result.best, cfg),
        history=read_history(run_folder / "metrics.csv") or read_history(folder / "metrics.csv"),
        config=dump_config(cfg), environment=environment(runtime) | {"backend": record["backend"]})
    return write_report(folder / "report.html", data)


def _rgb(examples: Sequence[Example], cfg: Config) -> Sequence[Example]:
    """Images come in the network's colour order; pages show RGB."""
    if cfg.data.color_order == "RGB":
        return examples
    return [replace(example, image=example.image[..., ::-1]) for example in examples]
