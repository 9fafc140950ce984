"""Parts that the command lines share."""
import argparse
from collections.abc import Iterable
from pathlib import Path

from mindseg.config import Config, load_config
from mindseg.data.datasets import check_classes
from mindseg.data.decode import limit_pixels


def create_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Makes a parser whose help keeps the line breaks.

    Args:
        description: First paragraph of the help.
        examples: Last paragraph of the help.
    """
    return argparse.ArgumentParser(description=description, epilog=examples,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(parser: argparse.ArgumentParser, required: bool = True, note: str = "") -> None:
    """Adds ``--config`` and ``--set``.

    Args:
        parser: Parser of the command.
        required: The command cannot do without a configuration.
        note: Text behind the help of ``--config``.
    """
    parser.add_argument("--config", required=required, metavar="YAML",
                        help=f"file, or a name of configs/ such as fast_scnn_camvid{note}")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="overrides a configuration key; repeatable")


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend``."""
    parser.add_argument("--backend", choices=("mindspore", "openvino", "auto"), default="mindspore",
                        help="program that runs the network of a checkpoint on a CPU; auto: the faster one at the "
                        "first image (default: %(default)s)")


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Loads a configuration, checks that network and data set have the same number of classes, and limits image sizes.

    Args:
        path: YAML file.
        overrides: ``section.key=value`` texts of ``--set``.

    Raises:
        ConfigError: Something in it is wrong.
    """
    cfg = load_config(path, overrides)
    check_classes(cfg, str(path))
    limit_pixels(cfg.runtime.max_pixels)
    return cfg


def add_dataset(parser: argparse.ArgumentParser, split: str = "val") -> None:
    """Adds ``--manifest``, ``--dataset``, ``--split`` and ``--list``.

    Args:
        parser: Parser of the command.
        split: Default of ``--split``.
    """
    parser.add_argument("--manifest", required=True, help="deploy.yaml of the exported model, or its folder")
    parser.add_argument("--dataset", required=True, metavar="ROOT", help="folder of the data set the manifest names")
    parser.add_argument("--split", default=split, help="split to take (default: %(default)s)")
    parser.add_argument("--list", help="file of image,label lines to take instead of a split")
