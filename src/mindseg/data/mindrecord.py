"""MindRecord files of encoded images and labels: columns file_name (string), data and label (bytes).

A build is written into a hidden folder beside its place, read back, and only then moved there; its description,
``NAME.json``, comes last.
"""
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import mindspore.dataset as ds
from mindspore.mindrecord import FileWriter

from mindseg.data.datasets import IGNORE, DatasetInfo, Sample
from mindseg.data.decode import check_sizes, decode_image, decode_label, decode_label_values, encode_label
from mindseg.data.jpeg import restart_interval
from mindseg.errors import DataError

COLUMNS = ["file_name", "data", "label"]
CODECS = ("png", "webp", "jpeg")
_GROUP = 16                  # rows handed to the writer at once
_LARGE = 8 * 2 ** 20         # a row must fit into a page: 32 MB, or MindRecord's limit if there are files above this
_LARGE_PAGE = 256 * 2 ** 20


@dataclass(frozen=True)
class Packing:
    """How to pack.

    Attributes:
        codec: ``png`` keeps the bytes of the source images; ``webp`` re-encodes them without loss, ``jpeg`` with loss
            (JPEG sources keep their bytes).
        fast_labels: Re-encode labels, without loss, so that they decode three times faster; else keep their bytes.
        num_shards: Number of files.
        shuffle_seed: Seed of a random order, ``None``: the order of the samples.
        quality: JPEG quality, 1..100.
        overwrite: Replace what stands at the output.
    """
    codec: str = "png"
    fast_labels: bool = False
    num_shards: int = 1
    shuffle_seed: int | None = None
    quality: int = 98
    overwrite: bool = False


@dataclass
class _Row:
    """One sample as it will be stored, and what the sidecar says about it."""
    record: dict
    digest: str
    source_digest: str
    counts: np.ndarray
    size: str


def sidecar_path(path: Path) -> Path:
    """The JSON file beside a MindRecord."""
    return path.with_name(path.name + ".json")


def shard_paths(path: Path, num_shards: int) -> list[Path]:
    """The names that MindSpore gives to the shards of ``path``."""
    if num_shards == 1:
        return [path]
    digits = len(str(num_shards - 1))
    return [path.with_name(f"{path.name}{i:0{digits}d}") for i in range(num_shards)]


def build_records(samples: Sequence[Sample], output: Path, info: DatasetInfo, lut: np.ndarray,
                  packing: Packing, about: dict) -> dict:
    """Packs samples into a MindRecord set with a JSON description beside it.

    Args:
        samples: What to pack; every one needs a label.
        output: The file, or the stem of the shard names.
        info: The data set.
        lut: Label LUT, uint8 (256,); a label with another value ends the build.
        packing: How to pack.
        about: Further entries of the description (split, root, …).

    Returns:
        The description, as written to ``output.json``.

    Raises:
        DataError: Output exists, a sample is broken, the disk is full, or what was written reads back differently.
    """
    present = [p for p in _existing(output) if p.exists()]
    if present and not packing.overwrite:
        raise DataError(f"{present[0]}: exists already; choose another --output or give --overwrite")
    order = np.arange(len(samples))
    if packing.shuffle_seed is not None:
        order = np.random.default_rng(packing.shuffle_seed).permutation(len(samples))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    except OSError as error:
        raise DataError(f"{output}: cannot write there ({error.strerror}); choose another --output") from None
    try:
        rows = _prepare_all([samples[i] for i in order], lut, packing)
        writer = FileWriter(str(work / output.name), packing.num_shards)
        if _largest(samples) > _LARGE:
            writer.set_page_size(_LARGE_PAGE)
        description = _write(writer, rows, len(samples), packing)
        names = _verify(shard_paths(work / output.name, packing.num_shards)[0], description.pop("digests"))
        description = {"format_version": 1, "dataset": info.name, "classes": list(info.classes), **about, **description,
                       "names": names}
        description["class_pixels"] = description["class_pixels"][:len(info.classes)]
        _publish(work, output, description, packing)
    except RuntimeError as error:
        raise DataError(f"{output}: MindRecord could not be written: {first_line(error)}") from None
    except OSError as error:
        raise DataError(f"{output}: could not be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return description


def _existing(output: Path) -> list[Path]:
    """The possible files of a set of that name, whatever its number of shards."""
    shards = [p for p in output.parent.glob(f"{glob.escape(output.name)}[0-9]*")
              if p.name.removeprefix(output.name).isdecimal() and p.with_name(p.name + ".db").is_file()
              and not sidecar_path(p).is_file()]        # with a description of its own it is another set
    return [f for p in (output, *sorted(shards)) for f in (p, p.with_name(p.name + ".db"))] + [sidecar_path(output)]


def _largest(samples: Sequence[Sample]) -> int:
    try:
        return max(s.image.stat().st_size for s in samples)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _prepare_all(samples: Sequence[Sample], lut: np.ndarray, packing: Packing) -> Iterator[_Row]:
    """Prepares rows on all cores, in order, with a bounded number of them in memory."""
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future] = deque()
    try:
        for sample in samples:
            pending.append(pool.submit(_prepare, sample, lut, packing))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(sample: Sample, lut: np.ndarray, packing: Packing) -> _Row:
    if sample.label is None:
        raise DataError(f"{sample.image}: has no label; only labelled splits can be packed")
    data, label = read_file(sample.image), read_file(sample.label)
    pixels = decode_image(data, str(sample.image))
    ids = decode_label(label, str(sample.label), lut)
    check_sizes(pixels.shape, ids.shape, str(sample.image))
    source_digest = _digest(data, label)
    if packing.fast_labels:
        label = np.frombuffer(encode_label(decode_label_values(label, str(sample.label))), np.uint8)
    if packing.codec == "webp":
        data = _encode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])       # above 100 means lossless
    elif packing.codec == "jpeg" and data[:2].tobytes() != b"\xff\xd8":
        data = _encode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, packing.quality,
                                        cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(pixels.shape[1])])
    record = {"file_name": sample.name, "data": data.tobytes(), "label": label.tobytes()}
    return _Row(record, _digest(data, label), source_digest, np.bincount(ids.ravel(), minlength=256),
                f"{ids.shape[1]}x{ids.shape[0]}")


def read_file(path: Path) -> np.ndarray:
    """The bytes of a file as a uint8 vector. Raises ``DataError`` if it cannot be read."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _encode(suffix: str, pixels: np.ndarray, options: list[int]) -> np.ndarray:
    return cv2.imencode(suffix, pixels, options)[1].ravel()


def _digest(*columns: np.ndarray) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(column.size.to_bytes(8, "little"))
        digest.update(column)
    return digest.hexdigest()


def _write(writer: FileWriter, rows: Iterable[_Row], total: int, packing: Packing) -> dict:
    """Writes the files and describes them; ``digests`` is for :func:`_verify`."""
    writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}, "label": {"type": "bytes"}},
                      "encoded images and label maps")
    group: list[dict] = []
    digests: dict[str, str] = {}
    sources: dict[str, str] = {}
    sizes: Counter = Counter()
    counts = np.zeros(256, np.int64)
    for row in tqdm(rows, total=total, desc="packing", unit="image"):
        name = row.record["file_name"]
        digests[name], sources[name] = row.digest, row.source_digest
        sizes[row.size] += 1
        counts += row.counts
        group.append(row.record)
        if len(group) == _GROUP:
            writer.write_raw_data(group)
            group = []
    if group:
        writer.write_raw_data(group)
    writer.commit()
    fingerprint = hashlib.sha256("".join(f"{n} {sources[n]}\n" for n in sorted(sources)).encode()).hexdigest()
    return {"samples": total, "num_shards": packing.num_shards, "codec": packing.codec,
            "lossless": packing.codec != "jpeg", "fast_labels": packing.fast_labels,
            "sizes": dict(sizes.most_common()), "source_sha256": fingerprint, "class_pixels": counts.tolist(),
            "ignored_pixels": int(counts[IGNORE]), "digests": digests}


def _verify(path: Path, digests: dict[str, str]) -> list[str]:
    """Reads everything back; returns the names in stored order."""
    names = []
    rows = ds.MindDataset(str(path), columns_list=COLUMNS, shuffle=False, num_parallel_workers=1)
    for row in tqdm(rows.create_dict_iterator(num_epochs=1, output_numpy=True), total=len(digests), desc="verifying",
                    unit="image"):
        name = str(row["file_name"])
        if _digest(as_bytes(row["data"]), as_bytes(row["label"])) != digests.get(name):
            raise DataError(f"{path}: sample '{name}' reads back differently; check the disk and build again")
        names.append(name)
    if sorted(names) != sorted(digests):
        raise DataError(f"{path}: {len(names)} of {len(digests)} samples read back; check the disk and build again")
    return names


def _publish(work: Path, output: Path, description: dict, packing: Packing) -> None:
    """Moves a verified set to its place. The old one goes first and the file that readers open comes last, so that an
    interruption can leave nothing, but never a mixture."""
    sidecar_path(work / output.name).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    for old in reversed(_existing(output)):
        old.unlink(missing_ok=True)
    for shard in reversed(shard_paths(work / output.name, packing.num_shards)):
        os.replace(f"{shard}.db", output.with_name(f"{shard.name}.db"))
        os.replace(shard, output.with_name(shard.name))
    os.replace(sidecar_path(work / output.name), sidecar_path(output))


def as_bytes(column: np.ndarray) -> np.ndarray:
    """A ``bytes`` column as a uint8 vector: it arrives as an S string, whose ``.item()`` drops trailing zeros."""
    return np.frombuffer(column, np.uint8) if column.dtype.kind == "S" else column


def first_line(error: BaseException) -> str:
    """The telling line of one of MindSpore's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\t")]
    telling = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    return (telling or lines or [type(error).__name__])[0][:300]


def open_records(path: Path) -> tuple[Path, int, list[str] | None]:
    """Checks that a MindRecord set can be read: its header, its columns, its first and its last row.

    Args:
        path: The file, or the name that was given when several shards (``path0``, ``path1``, …) were written.

    Returns:
        A file that MindDataset opens (with its sister shards), the number of samples, and their names in stored order
        if a description lies beside it.

    Raises:
        DataError: Missing, unreadable, half written, or without the three columns.
    """
    file = next((p for p in (path, *(path.with_name(path.name + "0" * k) for k in (1, 2, 3))) if p.is_file()), None)
    if file is None:
        raise DataError(f"{path}: no such MindRecord file; build it with mindseg pack")
    if not file.with_name(file.name + ".db").is_file():
        raise DataError(f"{file}: its index {file.name}.db is missing; copy both files, or build them again")
    try:
        count = ds.MindDataset(str(file), num_parallel_workers=1).get_dataset_size()
        if count:
            ends = ds.MindDataset(str(file), columns_list=COLUMNS, num_parallel_workers=1,
                                  sampler=ds.SubsetSampler([0, count - 1]))
            for _ in ends.create_dict_iterator(num_epochs=1, output_numpy=True):
                pass
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{file}: not a whole MindRecord with the columns {', '.join(COLUMNS)} "
                        f"({first_line(error)}); build it again with --overwrite") from None
    if count == 0:
        raise DataError(f"{file}: the MindRecord holds no samples; build it again")
    return file, count, _stored_names(sidecar_path(path), file, count)


def _stored_names(sidecar: Path, file: Path, count: int) -> list[str] | None:
    if not sidecar.is_file():
        return None
    try:
        names = json.loads(sidecar.read_text(encoding="utf-8"))["names"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{sidecar}: not a description of {file.name}; remove it or build the file again") from None
    if len(names) != count:
        raise DataError(f"{sidecar}: speaks of {len(names)} samples, {file} holds {count}; remove it or build the "
                        "file again")
    return names
