"""The files in weights/ are what their names and the table beside them say."""
import hashlib

import pytest

from src.config import load_config
from src.engine.checkpoint import read_checkpoint
from tests.conftest import ROOT

FILES = sorted((ROOT / "weights").glob("*.ckpt"))


def test_there_are_some():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_name_table_and_content_agree(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config, _, digits = path.stem.rpartition("-")
    assert digest.startswith(digits)
    assert len(digits) == 8
    assert path.stat().st_size < 5e6
    (row,) = [line for line in (ROOT / "weights" / "README.md").read_text().splitlines() if path.name in line]
    assert f"`{digest}`" in row
    assert f"`{config}`" in row
    parameters, _ = read_checkpoint(path)
    assert not [name for name in parameters if "moment" in name or name.startswith("aux")]
    cfg = load_config(next((ROOT / "configs").rglob(f"{config}.yaml")))
    assert cfg.model.num_classes == len(cfg.data.class_names)
