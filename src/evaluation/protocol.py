"""Named ways to evaluate: files of configs/protocols that hold nothing but a section ``eval``."""
import json
from pathlib import Path

import yaml

from src.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "protocols"


def protocol_overrides(name: str) -> list[str]:
    """The overrides that a protocol stands for, to be given to ``load_config`` before the user's own.

    Args:
        name: Stem of a file of configs/protocols, or the path of a YAML file with a section ``eval``.

    Raises:
        ConfigError: No such protocol, or the file holds something else.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    path = FOLDER / f"{name}.yaml" if name in known else Path(name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise ConfigError(f"--protocol {name}: no such protocol; use {', '.join(known)}, or a YAML file with a section "
                          "eval") from None
    if not isinstance(tree, dict) or set(tree) != {"eval"} or not isinstance(tree["eval"], dict):
        raise ConfigError(f"{path}: a protocol holds the section eval and nothing else")
    return [f"eval.{key}={json.dumps(value)}" for key, value in tree["eval"].items()]
