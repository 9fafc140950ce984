"""Arguments that several commands share."""
import argparse


def create_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser that prints the examples as they are.

    Args:
        description: First lines of ``--help``.
        examples: Last lines of ``--help``.
    """
    return argparse.ArgumentParser(description=description, epilog=examples,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(parser: argparse.ArgumentParser, required: bool = True, note: str = "") -> None:
    """Adds ``--config`` and ``--set``.

    Args:
        parser: Receives the arguments.
        required: ``--config`` must be given.
        note: Text behind the help of ``--config``.
    """
    parser.add_argument("--config", required=required,
                        help=f"YAML file, or a name of configs/ such as fast_scnn_camvid{note}")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")


def add_dataset(parser: argparse.ArgumentParser, split: str = "val") -> None:
    """Adds ``--manifest``, ``--dataset``, ``--split`` and ``--list``.

    Args:
        parser: Receives the arguments.
        split: Default of ``--split``.
    """
    parser.add_argument("--manifest", required=True, help="deploy.yaml of the exported model, or its folder")
    parser.add_argument("--dataset", required=True, metavar="ROOT", help="folder of the data set the manifest names")
    parser.add_argument("--split", default=split, help="split to take (default: %(default)s)")
    parser.add_argument("--list", help="file of image,label lines to take instead of a split")
