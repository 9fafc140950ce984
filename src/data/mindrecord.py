"""MindRecord files of encoded images and labels: columns file_name (string), data and label (bytes)."""
from pathlib import Path

import mindspore.dataset as ds

from src.errors import DataError

COLUMNS = ("file_name", "data", "label")


def first_line(error: Exception) -> str:
    """The first telling line of one of MindSpore's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\t")]
    return lines[0][:300] if lines else type(error).__name__


def open_records(path: Path) -> tuple[Path, int]:
    """Checks that a MindRecord set can be read.

    Args:
        path: The file, or the name that was given when several shards (``path0``, ``path1``, …) were written.

    Returns:
        A file that MindDataset opens (with its sister shards), and the number of samples.

    Raises:
        DataError: Missing, unreadable, half written, or without the three columns.
    """
    file = next((p for p in (path, path.with_name(path.name + "0"), path.with_name(path.name + "00"))
                 if p.is_file()), None)
    if file is None:
        raise DataError(f"{path}: no such MindRecord file; build it with tools/build_mindrecord.py")
    if not file.with_name(file.name + ".db").is_file():
        raise DataError(f"{file}: its index {file.name}.db is missing; copy both files, or rebuild them")
    try:
        count = ds.MindDataset(str(file), columns_list=list(COLUMNS), num_parallel_workers=1).get_dataset_size()
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{file}: not a readable MindRecord with the columns {', '.join(COLUMNS)} "
                        f"({first_line(error)}); rebuild it with tools/build_mindrecord.py --overwrite") from None
    if count == 0:
        raise DataError(f"{file}: the MindRecord holds no samples; rebuild it")
    return file, count
