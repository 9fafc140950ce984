"""Synthetic streets for the benchmarks, made by tools/make_synthetic.py."""
import subprocess
import sys
from pathlib import Path

from mindseg.errors import UserError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_synthetic.py"


def make_streets(root: Path, split: str, count: int, seed: int, height: int, width: int) -> list[Path]:
    """Makes streets in the layout of Cityscapes.

    Args:
        root: Folder to make; it must not exist or be empty.
        split: "train" or "val".
        count: Number of streets.
        seed: Seed of the data set.
        height: Rows.
        width: Columns.

    Returns:
        The pictures below ``root/leftImg8bit``, sorted by name.

    Raises:
        UserError: The tool failed.
    """
    counts = {"train": 0, "val": 0, split: count}
    command = [sys.executable, TOOL, "--output", root, "--num", counts["train"], "--num_val", counts["val"],
               "--num_test", 0, "--seed", seed, "--height", height, "--width", width]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{TOOL} failed with status {done.returncode}: {done.stderr[-500:]}")
    return sorted((root / "leftImg8bit" / split).rglob("*.png"))


def label_path(picture: Path, kind: str) -> Path:
    """Label file of a picture; ``kind`` is "labelIds" or "instanceIds"."""
    root, split, city = picture.parents[3], *picture.parts[-3:-1]
    return root / "gtFine" / split / city / picture.name.replace("leftImg8bit", f"gtFine_{kind}")
