"""Builds MindRecord files of encoded images and labels.

A build is written into a hidden folder beside its place, read back, and only then moved there, with its description,
``NAME.json``.
"""
import fcntl
import glob
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from tqdm import tqdm

import mindspore.dataset as ds
from mindspore.mindrecord import FileWriter

from mindseg.data.datasets import DatasetInfo
from mindseg.data.decode import check_sizes, decode_checked_label, decode_image, encode_label
from mindseg.data.jpeg import restart_interval
from mindseg.data.labels import IGNORE
from mindseg.data.pipeline import LoaderOptions, Pipeline
from mindseg.data.record_files import DESCRIPTION, file_identities
from mindseg.data.samples import Sample
from mindseg.data.sources import COLUMNS, FolderSource, as_bytes, sidecar_path
from mindseg.errors import DataError, first_line
from mindseg.files import REMOVE_NAME, finish_set, replace_set, write_json
from mindseg.outputs import check_new

CODECS = ("png", "webp", "jpeg")
_GROUP = 16                  # rows handed to the writer at once
_LARGE = 8 * 2 ** 20         # a row must fit into a page: 32 MB, or MindRecord's limit if there are files above this
_LARGE_PAGE = 256 * 2 ** 20


@dataclass(frozen=True)
class Packing:
    """Options of a build.

    Attributes:
        codec: ``png`` keeps the bytes of the source images; ``webp`` re-encodes the decoded pixels without loss,
            ``jpeg`` with loss (JPEG sources keep their bytes).
        fast_labels: Re-encode labels, without loss, so that they decode three times faster; else keep their bytes.
        num_shards: Number of files.
        shuffle_seed: Seed of a random order, ``None``: the order of the samples.
        quality: JPEG quality, 1..100.
        overwrite: Replace an existing set.
    """
    codec: str = "png"
    fast_labels: bool = False
    num_shards: int = 1
    shuffle_seed: int | None = None
    quality: int = 98
    overwrite: bool = False


def _encode(source: FolderSource, lut: np.ndarray, packing: Packing, name: str, sample_index: np.ndarray,
            data: np.ndarray, label: np.ndarray) -> tuple[dict, str, str, np.ndarray, str]:
    """Checks and encodes one sample, in a thread of the pipeline.

    Returns:
        The row, digest of its content and of the source files, pixels of each train id, and size.
    """
    image_name, label_name = source.describe(int(sample_index[2]), name)
    pixels = decode_image(data, image_name)
    values = decode_checked_label(label, label_name, lut)
    check_sizes(pixels.shape, values.shape, image_name, data)
    source_digest = _digest(data, label)
    if packing.fast_labels:
        label = np.frombuffer(encode_label(values), np.uint8)
    if packing.codec == "webp":
        data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])[1]       # above 100 means lossless
    elif packing.codec == "jpeg" and data[:2].tobytes() != b"\xff\xd8":
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, packing.quality,
                                             cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(pixels.shape[1])])[1]
    counts = np.bincount(cv2.LUT(values, lut).ravel(), minlength=256)
    return ({"file_name": name, "data": data.tobytes(), "label": label.tobytes()}, _digest(data, label), source_digest,
            counts, f"{values.shape[1]}x{values.shape[0]}")


def _digest(*columns: np.ndarray) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(column.size.to_bytes(8, "little"))
        digest.update(column)
    return digest.hexdigest()


def build_records(samples: Sequence[Sample], output: Path, info: DatasetInfo, lut: np.ndarray,
                  packing: Packing, about: dict) -> dict:
    """Packs samples into a MindRecord set with a JSON description beside it.

    Args:
        samples: Samples; every one needs a label.
        output: The file, or the stem of the shard names.
        info: Data set.
        lut: Label LUT, uint8 (256,); a label with another value ends the build.
        packing: Options.
        about: Further entries of the description (split, root, …).

    Returns:
        The description, as written to ``output.json``.

    Raises:
        UserError: Output exists, a sample is broken, the disk is full, or a row reads back differently.
    """
    finish_set(output)
    for path in _existing(output):
        check_new(path, packing.overwrite)
    source = FolderSource(samples)
    order = np.argsort(np.argsort([s.name for s in samples]))       # the source sorts by name
    if packing.shuffle_seed is not None:
        order = np.random.default_rng(packing.shuffle_seed).permutation(order)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        with _work_folder(output) as folder:
            work = folder / output.name
            writer = FileWriter(str(work), packing.num_shards)
            if max((p.stat().st_size for p in (s.image for s in samples) if p.is_file()), default=0) > _LARGE:
                writer.set_page_size(_LARGE_PAGE)
            rows = Pipeline(source, order, partial(_encode, source, lut, packing),
                            LoaderOptions(num_workers=os.cpu_count() or 1))
            digests, contents = _write(writer, rows, len(samples))
            names = _verify(_shard_paths(work, packing.num_shards)[0], digests)
            counts = contents.pop("counts").tolist()
            description = {
                "format_version": 1, "dataset": info.name, "classes": list(info.classes), **about,
                "samples": len(samples), "num_shards": packing.num_shards, "codec": packing.codec,
                "lossless": packing.codec != "jpeg", "fast_labels": packing.fast_labels, **contents,
                "class_pixels": counts[:len(info.classes)], "ignored_pixels": counts[IGNORE], "names": names,
                "sha256": file_identities(tuple(_shard_paths(work, packing.num_shards)))}
            write_json(sidecar_path(work), description)
            replace_set(folder, output, [path.name for path in _existing(output)])
    except RuntimeError as error:
        raise DataError(f"{output}: MindRecord could not be written: {first_line(error)}") from None
    except OSError as error:
        raise DataError(f"{output}: could not be written ({error.strerror or error}); free space or choose another "
                        "--output") from None
    return description


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """Hidden folder beside the output; locked while this process lives, so that another build leaves it alone."""
    with TemporaryDirectory(prefix=f".{output.name}.building-", dir=output.parent, ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY)
        try:
            with suppress(OSError):     # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(handle)


def _remove_leftovers(output: Path) -> None:
    """Removes hidden folders of builds of this output that were killed; leaves those that hold other files."""
    own = (output.name, f".{output.name}.")
    for folder in output.parent.glob(f".{glob.escape(output.name)}.building-*"):
        with suppress(OSError):     # no folder, or it belongs to a build that runs
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if all(path.name == REMOVE_NAME or path.name.startswith(own) for path in folder.iterdir()):
                    shutil.rmtree(folder)
            finally:
                os.close(handle)


def _existing(output: Path) -> list[Path]:
    """Possible files of a set of that name, whatever its number of shards."""
    shards = [p for p in output.parent.glob(f"{glob.escape(output.name)}[0-9]*")
              if p.name.removeprefix(output.name).isdecimal() and p.with_name(p.name + ".db").is_file()
              and not sidecar_path(p).is_file()]        # with a description of its own it is another set
    return [f for p in (output, *sorted(shards)) for f in (p, p.with_name(p.name + ".db"))] + [sidecar_path(output)]


def _shard_paths(path: Path, num_shards: int) -> list[Path]:
    """Names that MindSpore gives to the shards of ``path``."""
    if num_shards == 1:
        return [path]
    digits = len(str(num_shards - 1))
    return [path.with_name(f"{path.name}{i:0{digits}d}") for i in range(num_shards)]


def _write(writer: FileWriter, rows: Pipeline, total: int) -> tuple[dict[str, str], dict]:
    """Writes the files; returns the digest of each sample and what the description says of the contents."""
    writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}, "label": {"type": "bytes"}},
                      DESCRIPTION)
    group: list[dict] = []
    digests: dict[str, str] = {}
    sources: dict[str, str] = {}
    sizes: Counter = Counter()
    counts = np.zeros(256, np.int64)
    for ((_, result),) in tqdm(rows, total=total, desc="packing", unit="image"):
        if isinstance(result, Exception):
            raise result
        row, digest, source_digest, pixels, size = result
        digests[row["file_name"]], sources[row["file_name"]] = digest, source_digest
        sizes[size] += 1
        counts += pixels
        group.append(row)
        if len(group) == _GROUP or len(digests) == total:
            writer.write_raw_data(group)
            group = []
    writer.commit()
    fingerprint = hashlib.sha256("".join(f"{n} {sources[n]}\n" for n in sorted(sources)).encode()).hexdigest()
    return digests, {"sizes": dict(sizes.most_common()), "source_sha256": fingerprint, "counts": counts}


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
