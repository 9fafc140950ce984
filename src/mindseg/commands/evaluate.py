"""Scores a checkpoint or an exported model: ``python eval.py --config C --ckpt_path best.ckpt --set data.root=D``."""
import argparse
import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindseg.checkpoint import load_weights, read_checkpoint
from mindseg.commands.arguments import add_backend, add_config, create_parser, read_config
from mindseg.config import CONFIGS, Config, read_tree
from mindseg.data.datasets import DatasetInfo, dataset_info, list_samples
from mindseg.data.loader import Loader, create_loader
from mindseg.deploy.backend import use_backend
from mindseg.errors import ConfigError, DataError, UserError
from mindseg.evaluation.cityscapes import instance_reader
from mindseg.evaluation.evaluator import Result, evaluate, image_miou
from mindseg.files import csv_cell, file_sha256, write_json, write_text
from mindseg.inference.exported import ExportedPredictor, open_exported
from mindseg.inference.loading import open_checkpoint
from mindseg.inference.masks import MaskWriter, write_submission
from mindseg.inference.network import NetworkPredictor
from mindseg.inference.predictor import Predictor
from mindseg.logs import log, setup_logging
from mindseg.manifest import load_manifest
from mindseg.metrics import format_table
from mindseg.models import build_network
from mindseg.outputs import OutputFolder
from mindseg.platforms import modelarts_arguments, platform
from mindseg.report.run_page import write_run_report
from mindseg.runtime import Runtime, setup_runtime

EXAMPLES = """examples:
  python eval.py --config configs/fast_scnn/fast_scnn_cityscapes.yaml --ckpt_path best.ckpt --set data.root=D
  python eval.py --config C --ckpt_path RUN/ckpt                          every checkpoint of a run, best first
  python eval.py --config C --ckpt_path best.ckpt --mode msflip --report
  python eval.py --config C --ckpt_path best.ckpt --save_masks labelIds   and a zip for the benchmark server
  python eval.py --config C --ckpt_path best.ckpt --protocol bisenetv2_paper
  python eval.py --config C --ckpt_path best.ckpt --backend auto
  python eval.py --config C --manifest export/deploy.yaml --file_format ONNX --output eval_onnx
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser("Score a checkpoint or an exported model.", EXAMPLES)
    add_config(parser)
    # ModelArts brings the checkpoint itself.
    fetched = any(word.startswith("--checkpoint_url") for word in sys.argv)
    model = parser.add_mutually_exclusive_group(required=not fetched)
    model.add_argument("--ckpt_path", help="checkpoint, or a folder of checkpoints, or a run folder")
    model.add_argument("--manifest", help="deploy.yaml of an exported model")
    parser.add_argument("--file_format", choices=("ONNX", "MINDIR"), default="ONNX", help="which file of the manifest")
    add_backend(parser)
    parser.add_argument("--mode", metavar="MODE", help="whole, slide, ms, flip, msflip or slide_msflip (eval.mode)")
    parser.add_argument("--protocol", metavar="NAME", help="how a paper or an older recipe evaluates: a file of "
                        "configs/protocols, or a path")
    parser.add_argument("--output", help="folder for the results (default: the checkpoint's run folder)")
    parser.add_argument("--save_masks", choices=("color", "labelIds"), help="write predictions as PNG, labelIds also "
                        "packed for the benchmark server")
    parser.add_argument("--csv", action="store_true", help="also write images.csv, the IoU of every image")
    parser.add_argument("--report", action="store_true", help="also write report.html, one page that needs no network")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=EVAL_JSON", help="with --report: the "
                        "same model's result in another program, to show beside; repeatable")
    parser.add_argument("--overwrite", action="store_true", help="also replace files that this program did not write")
    return parser.parse_args(modelarts_arguments(sys.argv[1:]))


def main() -> None:
    """Scores a checkpoint, a folder of checkpoints or an exported model."""
    args = parse_args()
    overrides = protocol_overrides(args.protocol) if args.protocol else []
    overrides += args.set + ([f"eval.mode={args.mode}"] if args.mode else [])
    cfg = read_config(args.config, overrides)
    runtime = setup_runtime(cfg.runtime)
    setup_logging(rank=runtime.rank)
    output = output_folder(args, cfg)
    with platform(cfg, output, runtime, args.ckpt_path) as checkpoint:
        request = Request(args.config, output, str(checkpoint) if checkpoint else args.ckpt_path, args.manifest,
                          args.file_format, args.save_masks, args.csv, args.report, tuple(args.beside), args.overwrite,
                          args.backend)
        try:
            score(cfg, runtime, request)
        except OSError as error:
            raise UserError(f"{output}: cannot write there ({error.strerror}); choose another --output") from None


def output_folder(args: argparse.Namespace, cfg: Config) -> Path:
    """``--output``, or the run folder of the checkpoint, or the folder of the manifest.

    A checkpoint that a platform brings has neither: ``<runtime.output_dir>/<config name>/eval``.
    """
    if args.output:
        return Path(args.output)
    if cfg.runtime.openi or not (args.ckpt_path or args.manifest):
        return Path(cfg.runtime.output_dir) / Path(args.config).stem / "eval"
    path = Path(args.ckpt_path or args.manifest).resolve()
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "ckpt" else folder


def protocol_overrides(name: str) -> list[str]:
    """The overrides that a protocol stands for, to be given to ``load_config`` before the user's own.

    Args:
        name: Stem of a file of configs/protocols, or the path of a YAML file with a section ``eval``.

    Raises:
        ConfigError: No such protocol, or the file holds something else.
    """
    known = sorted(path.stem for path in (CONFIGS / "protocols").glob("*.yaml"))
    renamed = f"{name.removesuffix('_seed')}_modelzoo" if name.endswith("_seed") else name
    if renamed != name and renamed in known:
        log.warning("--protocol %s is an old name; write %s", name, renamed)
        name = renamed
    path = CONFIGS / "protocols" / f"{name}.yaml" if name in known else Path(name)
    try:
        tree = read_tree(path)
    except ConfigError:
        raise ConfigError(f"--protocol {name}: no such protocol; use {', '.join(known)}, or a YAML file with a section "
                          "eval") from None
    if set(tree) != {"eval"} or not isinstance(tree["eval"], dict):
        raise ConfigError(f"{path}: a protocol holds the section eval and nothing else")
    return [f"eval.{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in tree["eval"].items()]


@dataclass(frozen=True)
class Request:
    """Options of one evaluation.

    Attributes:
        config: Configuration file, as typed.
        output: Folder of the results.
        ckpt_path: Checkpoint, or a folder of them; None: the manifest counts.
        manifest: ``deploy.yaml`` of an exported model.
        file_format: ``ONNX`` or ``MINDIR``, which file of the manifest.
        save_masks: ``color``, ``labelIds`` or None.
        csv: Write ``images.csv`` with the IoU of every image.
        report: Write ``report.html``.
        beside: ``name=eval.json`` of the same model in other programs, for the report.
        overwrite: Replace files that this program did not write.
        backend: ``mindspore``, ``openvino`` or ``auto``, see ``deploy.backend.use_backend``.
    """
    config: str
    output: Path
    ckpt_path: str | None = None
    manifest: str | None = None
    file_format: str = "ONNX"
    save_masks: str | None = None
    csv: bool = False
    report: bool = False
    beside: tuple[str, ...] = ()
    overwrite: bool = False
    backend: str = "mindspore"


def score(cfg: Config, runtime: Runtime, request: Request) -> None:
    """Evaluates a checkpoint, a folder of checkpoints or an exported model.

    Raises:
        UserError: Anything about the model, the data or the output that the user can mend.
    """
    info = dataset_info(cfg.data)
    if request.save_masks == "labelIds" and cfg.eval.label_size == "input":
        raise UserError("--save_masks labelIds: benchmark servers want masks of the images' own size, but "
                        "eval.label_size = input; set eval.label_size=original")
    if request.manifest and request.backend != "mindspore":
        raise UserError(f"--backend {request.backend}: belongs to --ckpt_path; leave it out, --file_format chooses the "
                        "program of an exported model")
    programs = read_beside(request.beside)
    several = request.ckpt_path and Path(request.ckpt_path).is_dir()
    if several and request.backend == "openvino":
        raise UserError(f"--backend openvino: {request.ckpt_path} is a folder of checkpoints; name one of them")
    if several and request.save_masks:
        raise UserError(f"--save_masks: {request.ckpt_path} is a folder of checkpoints; name one of them")
    with OutputFolder(request.output, request.overwrite, shared=runtime.size > 1) as results:
        results.claim(*_result_files(runtime, request, info))
        if several:
            _score_folder(cfg, runtime, request, info, programs)
        else:
            _score_model(cfg, runtime, request, info, programs)


def _result_files(runtime: Runtime, request: Request, info: DatasetInfo) -> list[Path]:
    """Files that this process will write; claimed at once, so that no work is lost."""
    names = [_csv_name(runtime)] if request.csv else []
    if runtime.is_main:
        names += ["eval.json", "eval_results.txt"] + (["report.html"] if request.report else [])
        names += [info.submission.archive] if request.save_masks == "labelIds" else []
        if request.ckpt_path and Path(request.ckpt_path).is_dir():
            names += [f"{path.name}.eval.json" for path in _checkpoints(request)]
    return [request.output / name for name in names]


def _score_model(cfg: Config, runtime: Runtime, request: Request, info: DatasetInfo,
                 programs: list[tuple[str, float]]) -> None:
    """Evaluates one checkpoint or exported model."""
    if request.manifest:
        predictor = open_for_scoring(cfg, info, request)
    else:
        predictor = open_checkpoint(request.ckpt_path, cfg)
        use_backend(request.backend, predictor, cfg, request.ckpt_path)
    record, result, rows = _score_one(cfg, runtime, request, predictor, request.ckpt_path or request.manifest)
    _write_csv(runtime, request, info.classes, rows)
    if runtime.is_main:
        _save(cfg, runtime, request, record, result, programs)


def read_beside(pairs: tuple[str, ...]) -> list[tuple[str, float]]:
    """Mean IoU of each ``name=eval.json``.

    Raises:
        UserError: Not of that form, or the file is missing or holds no mIoU.
    """
    found = []
    for pair in pairs:
        name, equals, path = pair.partition("=")
        try:
            found.append((name, float(json.loads(Path(path).read_text(encoding="utf-8"))["miou"])))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--beside {pair}: {path if equals else 'no file'} is not an eval.json with a miou; "
                            "write it as name=FILE") from None
    return found


def open_for_scoring(cfg: Config, info: DatasetInfo, request: Request) -> ExportedPredictor:
    """The exported model of a manifest; the loader is set to its colour order.

    Raises:
        UserError: It has other classes, or section ``eval`` asks for something that only a checkpoint can do.
    """
    manifest = load_manifest(request.manifest)
    if manifest.num_classes != len(info.classes):
        raise UserError(f"{manifest.path}: the model has {manifest.num_classes} classes, data.name = {info.name} has "
                        f"{len(info.classes)}; give the configuration it was exported with")
    if cfg.eval.loss:
        raise UserError("eval.loss: an exported model gives no logits to compute it from; set eval.loss=false")
    if cfg.eval.mode != "whole" or cfg.eval.label_size != "original":
        raise UserError(f"eval.mode = {cfg.eval.mode}, eval.label_size = {cfg.eval.label_size}: an exported model has "
                        "one input size and is scored whole at the labels' size; add --mode whole "
                        "--set eval.label_size=original --set eval.resize=null")
    resize, own = cfg.eval.resize or {}, manifest.input.resize
    rule, size = resize.get("rule", "none"), resize.get("size")
    size = size[0] if isinstance(size, list) and len(size) == 1 else size
    if size is not None and (rule, size) != (own["rule"], own.get("size")):
        raise UserError(f"eval.resize = {resize}: {manifest.path} has its own rule, {own}; add --set eval.resize=null "
                        "to use that, or export the model again with this configuration")
    cfg.data.color_order = manifest.input.color_order
    return open_exported(manifest, request.file_format.lower())


def _score_one(cfg: Config, runtime: Runtime, request: Request, predictor: Predictor,
               name: str) -> tuple[dict, Result, list[list]]:
    """Evaluates one model; returns the content of ``eval.json``, the examples and the lines of ``images.csv``."""
    digest = None if request.manifest else file_sha256(name)       # now: a training may replace the file meanwhile
    loader = create_loader(cfg, "eval", runtime.rank, runtime.size)
    info = loader.info
    writer = None
    if request.save_masks:
        # Rank 0 packs the masks of all ranks, and only those: the folder may hold an earlier run's.
        notes = _notes(request, runtime.rank) if runtime.size > 1 and request.save_masks == "labelIds" else None
        masks = OutputFolder(request.output / f"masks_{request.save_masks}", request.overwrite,
                             shared=runtime.size > 1, own=True)
        writer = MaskWriter(request.save_masks, info, masks, notes)
    rows: list[list] = []

    def on_image(image: str, ids: np.ndarray, counts: np.ndarray) -> None:
        if writer:
            writer.write(image, ids)
        if request.csv:
            rows.append([image, *_image_scores(counts)])

    result = evaluate(predictor, loader, cfg.eval.num_images if request.report else 0,
                      _instances(cfg, loader), on_image, predictor.loss if cfg.eval.loss else None,
                      request.report and predictor.gives_confidence)
    resize = predictor.manifest.input.resize if request.manifest else cfg.eval.resize
    record = {"checkpoint": str(name), "checkpoint_sha256": digest, "device": runtime.device_target,
              "backend": predictor.backend, "config": request.config, "mode": cfg.eval.mode, "resize": resize,
              "size_step": None if request.manifest else predictor.size_step,
              "label_size": cfg.eval.label_size, "split": cfg.data.eval_split, "classes": list(info.classes),
              **result.scores}
    if writer and request.save_masks == "labelIds" and runtime.is_main:
        files = writer.files if runtime.size == 1 else _all_masks(writer.output.folder, request, runtime.size)
        log.info("submission archive: %s", write_submission(files, info, request.output))
    return record, result, rows


def _notes(request: Request, rank: int) -> Path:
    """The file in which a rank notes the names of its masks."""
    return request.output / f".masks.rank{rank}.txt"


def _all_masks(folder: Path, request: Request, size: int) -> list[Path]:
    """The masks of all ranks, which have written all of theirs: their matrices are summed."""
    files: list[Path] = []
    for notes in (_notes(request, rank) for rank in range(size)):
        files += [folder / name for name in notes.read_text(encoding="utf-8").splitlines()]
        notes.unlink()
    return files


def _instances(cfg: Config, loader: Loader) -> Callable[[str], np.ndarray] | None:
    if not cfg.eval.instance_iou or not loader.info.instance_sizes:
        return None
    try:
        return instance_reader(list_samples(cfg.data, "eval"))
    except DataError:
        return None     # evaluated from a MindRecord file, without the folders


def _image_scores(counts: np.ndarray) -> list:
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    accuracy = hit.sum() / counts.sum() if counts.any() else 0.0
    iou = [f"{h / u:.6f}" if u else "" for h, u in zip(hit, union, strict=True)]
    return [f"{image_miou(counts):.6f}", f"{accuracy:.6f}", *iou]


def _write_csv(runtime: Runtime, request: Request, classes: tuple[str, ...], rows: list[list]) -> None:
    """Writes ``images.csv``, or this rank's part of it, if it is asked for."""
    if not request.csv:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "miou", "pixel_accuracy", *map(csv_cell, classes)])
    writer.writerows([csv_cell(name), *scores] for name, *scores in rows)
    write_text(request.output / _csv_name(runtime), text.getvalue())


def _csv_name(runtime: Runtime) -> str:
    return f"images.rank{runtime.rank}.csv" if runtime.size > 1 else "images.csv"


def _checkpoints(request: Request) -> list[Path]:
    """Checkpoints of the folder ``request.ckpt_path``, or of the run folder."""
    folder = Path(request.ckpt_path)
    folder = folder / "ckpt" if (folder / "ckpt").is_dir() else folder
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith("."))


def _score_folder(cfg: Config, runtime: Runtime, request: Request, info: DatasetInfo,
                  programs: list[tuple[str, float]]) -> None:
    """Evaluates every checkpoint of a folder with one compiled network; the best one's results are ``eval.json``."""
    paths = _checkpoints(request)
    if not paths:
        raise UserError(f"--ckpt_path {request.ckpt_path}: the folder holds no *.ckpt file")
    if request.backend == "auto":
        log.info("backend mindspore: %s is a folder of checkpoints, each of which OpenVINO would compile anew",
                 request.ckpt_path)
    predictor = NetworkPredictor(cfg, build_network(cfg), info)
    found: list[tuple[dict, Result]] = []
    for path in paths:
        try:
            arrays, extras = read_checkpoint(path)
            load_weights(predictor.net, arrays, str(path))
        except UserError as error:
            log.info("left out: %s", error)
            continue
        temperature = extras.get("temperature", 1.0)
        if temperature != predictor.temperature:        # compiled into its graphs
            predictor = NetworkPredictor(cfg, predictor.net, info, temperature)
        record, result, rows = _score_one(cfg, runtime, request, predictor, path)
        log.info("%s: mIoU %.2f %%", path.name, 100 * record["miou"])
        if runtime.is_main:
            write_json(request.output / f"{path.name}.eval.json", record)
        if not found or record["miou"] > found[0][0]["miou"]:
            _write_csv(runtime, request, info.classes, rows)
        found = sorted([*found, (record, result)], key=lambda pair: -pair[0]["miou"])
        found[1:] = [(other, Result({}, [], [])) for other, _ in found[1:]]      # only the best one's pictures are kept
    if not found:
        raise UserError(f"--ckpt_path {request.ckpt_path}: none of the {len(paths)} checkpoints fits the configuration")
    if runtime.is_main:
        ranking = [(Path(record["checkpoint"]).name, record["miou"]) for record, _ in found]
        width = max(len(name) for name, _ in ranking)
        lines = [f"{'checkpoint':<{width}}  mIoU (%)"] + [f"{n:<{width}}  {100 * m:8.2f}" for n, m in ranking]
        log.info("%d of %d checkpoints, best first\n%s", len(found), len(paths), "\n".join(lines))
        record, result = found[0]
        record["ranking"] = [{"checkpoint": name, "miou": miou} for name, miou in ranking]
        _save(cfg, runtime, request, record, result, programs)


def _save(cfg: Config, runtime: Runtime, request: Request, record: dict, result: Result,
          programs: list[tuple[str, float]]) -> None:
    """Prints the table and writes ``eval.json``, ``eval_results.txt`` and ``report.html``."""
    info = dataset_info(cfg.data)
    log.info("%s, mode %s, %d images in %.1f s\n%s", record["checkpoint"], record["mode"], record["images"],
             record["seconds"], format_table(record, info.classes))
    write_json(request.output / "eval.json", record)
    write_text(request.output / "eval_results.txt", modelzoo_text(record, info.classes))
    if request.report:
        write_run_report(request.output, cfg, record, result, runtime, programs)
    log.info("results in %s", request.output)


def modelzoo_text(scores: dict, classes: tuple[str, ...]) -> str:
    """Pixel accuracy and mIoU, then one line a class, all 0..1, in the format of the MindSpore model zoo's scripts."""
    lines = [f"validation pixAcc: {scores['pixel_accuracy']:.6f}, mIoU: {scores['miou']:.6f}"]
    lines += [f"class name: {name} iou: {iou:.6f}" for name, iou in zip(classes, scores["iou"], strict=True)]
    return "\n".join(lines) + "\n"
