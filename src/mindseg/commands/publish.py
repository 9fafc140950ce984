"""Publishes trained weights: a small checkpoint listed in ``weights/README.md``, or a folder for a model hub."""
import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindspore import Parameter, Tensor, nn

from mindseg.checkpoint import Progress, load_network, read_checkpoint, save_checkpoint, save_weights
from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.config import dump_config
from mindseg.data.datasets import dataset_info
from mindseg.errors import UserError
from mindseg.files import file_sha256, remove_leftovers, temporary_name, write_text
from mindseg.inference.loading import HUB_WEIGHTS
from mindseg.manifest import MANIFEST_NAME
from mindseg.outputs import OutputFolder
from mindseg.report.model_card import HARDWARE, Facts, card, section
from mindseg.runtime import setup_runtime

EXAMPLES = """examples:
  mindseg publish --config fast_scnn_camvid --ckpt_path RUN/ckpt/best.ckpt --eval RUN/eval.json --dataset CamVid \\
      --data "train, 367 images of 360x480" --domain "street scenes from a car" --terms "CC BY-NC 4.0"
  mindseg publish … --hub DIR --license cc-by-nc-4.0 --set export.height=720 --set export.width=960
"""
HEAD = """# Weights

Checkpoints trained with this project. They hold parameters and configuration, but no optimizer state and no auxiliary
heads. A name ends with the first eight digits of the file's SHA-256. `mindseg.load` and `mindseg predict` need only the
file. `mindseg eval` and `mindseg export` take it as `--ckpt_path` and `mindseg train` as `--pretrained`, each with the
configuration in the table as `--config`. The section of a configuration has the scores of the classes, and the terms of
the data. `mindseg publish` writes this page.

| file | configuration | data | input | mIoU, % | epochs | MB | SHA-256 |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Publishes one checkpoint."""
    args = _parse_args()
    texts = {name: getattr(args, name) for name in ("dataset", "data", "domain", "terms")}
    for name, text in texts.items():
        if "|" in text or "\n" in text:
            raise UserError(f"--{name} goes into a table: it must be one line without the character |")
    cfg, stem = read_config(args.config, args.set), Path(args.config).stem
    _, extras = read_checkpoint(args.ckpt_path)
    if not {"epoch", "step", "best_miou"} <= set(extras):
        raise UserError(f"{args.ckpt_path}: not a checkpoint of a run of this project; give RUN/ckpt/best.ckpt")
    scores = read_scores(args.eval, args.ckpt_path, list(dataset_info(cfg.data).classes))
    if args.hub:
        setup_runtime(cfg.runtime)
    network = load_network(cfg, args.ckpt_path)
    facts = Facts(stem, cfg, extras["epoch"], scores, **texts)
    if args.hub:
        publish_folder(Path(args.hub), facts, network, extras, Path(args.ckpt_path), args.license, args.overwrite)
    else:
        publish_file(Path(args.output), facts, network, extras, Path(args.ckpt_path), args.half)


def _parse_args() -> argparse.Namespace:
    parser = create_parser(__doc__, EXAMPLES)
    add_config(parser)
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the run")
    parser.add_argument("--eval", required=True, metavar="EVAL_JSON",
                        help="scores of this checkpoint, from mindseg eval")
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--data", required=True, help="part of the data set that it was trained on, in words")
    parser.add_argument("--domain", required=True, help="what the photographs show, in words")
    parser.add_argument("--terms", required=True, help="terms of the data set, in words")
    parser.add_argument("--output", default="weights", help="folder of checkpoints and their page (default: weights)")
    parser.add_argument("--half", action="store_true", help="store the kernels of convolutions as float16; the page "
                        "lists the file when it is published once more, with scores of its own")
    parser.add_argument("--hub", metavar="DIR", help="write a folder for a model hub (Hugging Face, Modelers) instead: "
                        "safetensors, ONNX, deploy.yaml, config.yaml and a model card")
    parser.add_argument("--license", metavar="ID", help="with --hub: licence of the weights, such as apache-2.0")
    parser.add_argument("--overwrite", action="store_true", help="with --hub: replace files that mindseg did not write")
    args = parser.parse_args()
    if args.hub and not args.license:
        parser.error("--hub needs --license, the licence under which you publish the weights")
    if args.hub and args.half:
        parser.error("--half is for a checkpoint; a hub's folder has float32 weights")
    return args


def read_scores(path: str, ckpt_path: str, classes: list[str]) -> dict:
    """Reads the scores of a checkpoint.

    Args:
        path: ``eval.json``.
        ckpt_path: The checkpoint that it must be of.
        classes: Names of the classes that it must have.

    Raises:
        UserError: The file is missing or damaged, or has the scores of another checkpoint.
    """
    again = f"run mindseg eval with --ckpt_path {ckpt_path}"
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
        numbers = [scores["miou"], scores["pixel_accuracy"], *(value for value in scores["iou"] if value is not None)]
        sound = (all(0 <= float(value) <= 1 for value in numbers) and len(scores["iou"]) == len(classes)
                 and {"images", "split", "mode", "resize", "checkpoint_sha256"} <= set(scores)
                 and scores["device"] in HARDWARE)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not the eval.json of an evaluation of one checkpoint; {again}")
    if scores["checkpoint_sha256"] != file_sha256(ckpt_path) or scores["classes"] != classes:
        raise UserError(f"{path}: has the scores of another checkpoint, {scores.get('checkpoint')}; {again}")
    return scores


def published_parameters(network: nn.Cell) -> list[Parameter]:
    """Parameters of a network without those of auxiliary heads and without counters of a training."""
    return [p for p in network.get_parameters() if not p.name.startswith("aux") and not p.name.endswith(".step")]


def halved(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Copies of parameters, those with several dimensions in float16. They are float32 again when they are loaded.

    Raises:
        UserError: A value is too large for float16.
    """
    limit, result = np.finfo(np.float16).max, []
    for parameter in parameters:
        value = parameter.asnumpy()
        if value.ndim > 1:
            if np.abs(value).max() > limit:
                raise UserError(f"--half: {parameter.name} has the value {np.abs(value).max():g}, and float16 ends at "
                                f"{limit:g}; publish without --half")
            value = value.astype(np.float16)
        result.append(Parameter(Tensor(value), name=parameter.name))
    return result


def publish_file(output: Path, facts: Facts, network: nn.Cell, extras: dict, source: Path, half: bool = False) -> Path:
    """Writes a checkpoint without what only training needs, and its row and section of the page.

    An older row of the same configuration is replaced. A source that was published in this folder stays as it is.
    Rounded weights have other scores than their source: the page lists them once they are the source themselves.

    Args:
        output: Folder, made if need be.
        facts: Facts of the model.
        network: Network with the weights of the checkpoint.
        extras: Extras of the checkpoint.
        source: The checkpoint.
        half: Store the kernels of convolutions as float16.

    Returns:
        ``<output>/<configuration>-<8 digits>.ckpt``.

    Raises:
        UserError: The page in the folder was written by somebody else.
    """
    output.mkdir(parents=True, exist_ok=True)
    page = output / "README.md"
    text = page.read_text(encoding="utf-8") if page.exists() else HEAD
    if not text.startswith(HEAD):
        raise UserError(f"{page}: not the page of weights that this command writes; choose another --output")
    path = output / f"{facts.name}-{file_sha256(source)[:8]}.ckpt"
    if not (path.exists() and path.samefile(source)):
        tmp = temporary_name(output / f"{facts.name}.ckpt")
        remove_leftovers(output)
        # The time of the run, so that the same weights have the same name.
        parameters = published_parameters(network)
        save_checkpoint(tmp, halved(parameters) if half else parameters,
                        Progress(extras["epoch"], extras["step"], extras["best_miou"]), facts.cfg,
                        saved_at=extras.get("saved_at", 0.0), temperature=extras.get("temperature", 1.0))
        path = output / f"{facts.name}-{file_sha256(tmp)[:8]}.ckpt"
        os.replace(tmp, path)
    digest, megabytes = file_sha256(path), path.stat().st_size / 1e6
    if half:
        print(f"{path}: {megabytes:.2f} MB, float16; score it with mindseg eval, and publish it with these scores and "
              f"without --half: then {page} lists it")
        return path
    row = (f"| `{path.name}` | `{facts.name}` | {facts.dataset} | {facts.size} | {facts.miou} | {facts.epochs} | "
           f"{megabytes:.2f} | `{digest}` |\n")
    write_text(page, _with_model(text, facts.name, row, section(facts)))
    print(f"{path}: {megabytes:.2f} MB, {digest}")
    return path


def _with_model(text: str, name: str, row: str, part: str) -> str:
    """The page with a model's row and section, which replace older ones of the same configuration."""
    table, *parts = text[len(HEAD):].split("\n## ")
    rows = [line for line in table.splitlines(keepends=True) if line.strip() and f"`{name}`" not in line]
    parts = [f"## {old.strip()}\n" for old in parts if old.splitlines()[0] != name]
    return HEAD + "".join([*rows, row]) + "".join(f"\n{old}" for old in [*parts, part])


def publish_folder(hub: Path, facts: Facts, network: nn.Cell, extras: dict, source: Path, license_id: str,
                   overwrite: bool = False) -> None:
    """Writes a folder for a model hub, which ``mindseg.load`` opens.

    Args:
        hub: Folder, made if need be; files that this program did not write are kept.
        facts: Facts of the model.
        network: Network with the weights of the checkpoint.
        extras: Extras of the checkpoint.
        source: The checkpoint.
        license_id: Licence of the weights, as hubs write it.
        overwrite: Replace files of others too.

    Raises:
        UserError: A package for the export is missing, or a file of others is in the way.
    """
    try:
        from mindseg.deploy.exporter import export
    except ImportError as error:
        raise UserError(f"--hub writes the model as ONNX too and needs the package {error.name}; pip install "
                        "'mindseg[deploy]'") from None
    paths = [hub / name for name in (HUB_WEIGHTS, "config.yaml", "README.md")]
    with OutputFolder(hub, overwrite) as output:
        output.check(*paths)
    manifest = export(facts.cfg, source, ["ONNX"], hub, overwrite=overwrite)
    with OutputFolder(hub, overwrite) as output:
        output.claim(*paths)
        save_weights(paths[0], published_parameters(network), facts.cfg, extras)
        dump_config(facts.cfg, paths[1])
        names = [HUB_WEIGHTS, "config.yaml", manifest.find("onnx").file, MANIFEST_NAME]
        write_text(paths[2], card(facts, license_id, {name: file_sha256(hub / name) for name in names}))
    print(f"{hub}: {', '.join(names)} and README.md, the model card")
