"""Publishes trained weights: a small file of parameters, named by its content and listed in ``weights/README.md``."""
import os
from pathlib import Path

from mindseg.checkpoint import Progress, load_network, read_checkpoint, save_checkpoint
from mindseg.commands.arguments import create_parser, read_config
from mindseg.errors import UserError
from mindseg.files import file_sha256, remove_leftovers, temporary_name, write_text

EXAMPLES = """examples:
  mindseg publish --config configs/fast_scnn/fast_scnn_camvid.yaml --ckpt_path RUN/ckpt/best.ckpt \\
      --data "CamVid train, 367 images" --score "63.0 % mIoU on CamVid val, whole images"
"""
HEAD = """# Weights

Checkpoints trained with this project. They hold parameters and configuration, but no optimizer state and no auxiliary
heads. A name ends with the first eight digits of the file's SHA-256. `mindseg.load` and `mindseg predict` need only the
file. `mindseg eval` and `mindseg export` take it as `--ckpt_path` and `mindseg train` as `--pretrained`, each with the
configuration in the table as `--config`. `mindseg publish` writes this page.

| file | configuration | trained on | score | epochs | MB | SHA-256 |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Writes the file and its row of the table, which replaces an older row of the same configuration."""
    parser = create_parser(__doc__, EXAMPLES)
    parser.add_argument("--config", required=True, help="configuration of the run")
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the run")
    parser.add_argument("--data", required=True, help="training data, for the table")
    parser.add_argument("--score", required=True, help="score and what it was measured on, for the table")
    parser.add_argument("--output", default="weights", help="folder (default: weights)")
    args = parser.parse_args()
    if "|" in args.data + args.score:
        raise UserError("--data and --score go into a table: they cannot hold the character |")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    table = output / "README.md"
    text = table.read_text(encoding="utf-8") if table.exists() else HEAD
    if not text.startswith(HEAD):
        raise UserError(f"{table}: not the table of weights that this command writes; choose another --output")
    path = publish(args.config, args.ckpt_path, output)
    _, extras = read_checkpoint(path)
    digest = file_sha256(path)
    row = (f"| `{path.name}` | `{Path(args.config).stem}` | {args.data} | {args.score} | {extras['epoch']} | "
           f"{path.stat().st_size / 1e6:.2f} | `{digest}` |\n")
    kept = [line for line in text.splitlines(keepends=True) if f"`{Path(args.config).stem}`" not in line]
    write_text(table, "".join(kept) + row)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {digest}")


def publish(config: str, ckpt_path: str, output: Path) -> Path:
    """Writes the weights of a run's checkpoint without what only training needs.

    Args:
        config: Configuration of the run.
        ckpt_path: Checkpoint of the run.
        output: Folder.

    Returns:
        ``<output>/<configuration>-<8 digits>.ckpt``.

    Raises:
        UserError: The checkpoint does not fit the configuration, or was not made by a run of this project.
    """
    cfg = read_config(config)
    network = load_network(cfg, ckpt_path)
    _, extras = read_checkpoint(ckpt_path)
    if not {"epoch", "step", "best_miou"} <= set(extras):
        raise UserError(f"{ckpt_path}: not a checkpoint of a run of this project; give RUN/ckpt/best.ckpt")
    parameters = [p for p in network.get_parameters() if not p.name.startswith("aux") and not p.name.endswith(".step")]
    tmp = temporary_name(output / f"{Path(config).stem}.ckpt")
    remove_leftovers(output)
    # The time of the run, so that the same weights have the same name.
    save_checkpoint(tmp, parameters, Progress(extras["epoch"], extras["step"], extras["best_miou"]), cfg,
                    saved_at=extras.get("saved_at", 0.0), temperature=extras.get("temperature", 1.0))
    path = output / f"{Path(config).stem}-{file_sha256(tmp)[:8]}.ckpt"
    os.replace(tmp, path)
    return path
