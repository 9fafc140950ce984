"""Result files of inference programs: which run they belong to, and what they hold."""
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindseg.data.decode import decode_label_values
from mindseg.data.samples import Sample, image_stem
from mindseg.errors import DataError, first_line, shorten
from mindseg.files import file_sha256, read_bytes
from mindseg.logs import log
from mindseg.manifest import Manifest

_ID_TYPES = (np.uint8, np.int16, np.int32, np.int64)
_SUFFIXES = (".png", ".bin", ".npy", ".txt")


class Results:
    """Result files of the runner, of ais_bench or of msit benchmark, by sample name.

    The runner writes ``NAME.png`` (ids) or ``NAME.bin`` (logits); ais_bench ``NAME_0.bin``, ``.npy`` or ``.txt``, where
    NAME is the input file's name up to its first dot. Its ``<folder>_summary.json``, if there, is trusted more.

    The runner's ``summary.json`` says which manifest, model and inputs its results belong to. They are held against
    this manifest; results of other programs carry no identity and are read with a warning.

    Args:
        folder: Folder of the results.
        manifest: Of the model that made them.

    Attributes:
        identity: ``verified`` or ``unverified``.

    Raises:
        DataError: No such folder, the run did not finish, or it belongs to another manifest or model.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        if not self.folder.is_dir():
            raise DataError(f"--result {self.folder}: no such folder; give the one the runner or ais_bench wrote into")
        self.summary = _read_json(self.folder / "summary.json")
        self.ais_bench = _read_json(self.folder.resolve().parent / f"{self.folder.resolve().name}_summary.json")
        self.identity = "verified" if self.summary.get("program") == "segment" else "unverified"
        self._inputs: set[str] = self._check_run() if self.identity == "verified" else set()
        if self.identity == "unverified":
            log.warning("warning: %s: nothing says which model and images these results belong to (only the runner's "
                        "summary.json does); they are scored as they are", self.folder)
        self._owner: dict[Path, str] = {}
        self._listed: dict[str, Path] = {}
        try:
            for entry in (self.ais_bench.get("filesinfo") or {}).values():
                if entry.get("infiles") and entry.get("outfiles"):
                    # The folder may have been copied here since: only the file names count.
                    self._listed[Path(entry["infiles"][0]).stem] = self.folder / Path(entry["outfiles"][0]).name
        except (AttributeError, KeyError, TypeError):
            raise DataError(f"{self.folder.name}_summary.json: filesinfo is not what ais_bench writes; remove the file "
                            "or run the inference again") from None

    def _check_run(self) -> set[str]:
        """Compares the runner's summary with the manifest; returns the names of its inputs."""
        status = self.summary.get("status")
        if status != "finished":
            raise DataError(f"{self.folder}: the run did not finish ({shorten(status)} in summary.json), so results of "
                            "an earlier one may be among these; run the inference again")
        if "tiles" in self.summary:
            raise DataError(f"{self.folder}: results of a run with --tile have the sizes of the images and are not "
                            "scored; run the inference without --tile")
        for key, known in (("manifest_sha256", [file_sha256(self.manifest.path)]),
                           ("model_sha256", [file.sha256 for file in self.manifest.models])):
            if self.summary.get(key) not in known:
                raise DataError(f"{self.folder}: results of another {key.removesuffix('_sha256')} than "
                                f"{self.manifest.path} ({key} is {shorten(self.summary.get(key), 20)}); run the "
                                "inference again")
        names = read_bytes(self.folder / "inputs.txt").tobytes()
        if hashlib.sha256(names).hexdigest() != self.summary.get("inputs_sha256"):
            raise DataError(f"{self.folder / 'inputs.txt'}: not the list of this run's inputs; run the inference again")
        return set(os.fsdecode(names).split("\n"))

    def select(self, samples: Sequence[Sample], allow_failed: bool = False) -> list[Sample]:
        """The samples that can be scored.

        Args:
            samples: Samples of the data set.
            allow_failed: Leave out those that the runner failed on, and print their share.

        Raises:
            DataError: The runner failed on a sample, or was not given it.
        """
        if self.identity == "unverified":
            return list(samples)
        absent = next((sample.name for sample in samples if sample.name not in self._inputs), None)
        if absent is not None:
            raise DataError(f"{self.folder}: sample '{absent}' was not among the inputs of this run; run the inference "
                            "on the whole split, or give the --list or --split that it ran on")
        failed = self._failed()
        lost = [sample.name for sample in samples if sample.name in failed]
        if lost and not allow_failed:
            raise DataError(f"{self.folder}: the runner failed on {len(lost)} of {len(samples)} images (first: "
                            f"{failed[lost[0]]}); mend them and run again, or give --allow_failed to score the others")
        if lost:
            print(f"left out: {len(lost)} of {len(samples)} images ({100 * len(lost) / len(samples):.1f} %), which the "
                  "runner failed on")
        return [sample for sample in samples if sample.name not in failed]

    def _failed(self) -> dict[str, str]:
        """Messages of the images that the runner failed on, by sample name."""
        items = self.summary.get("failed")
        return {image_stem(Path(str(item.get("file")))): str(item.get("error"))
                for item in (items if isinstance(items, list) else []) if isinstance(item, dict)}

    def path(self, name: str) -> Path:
        """The result file of a sample.

        Raises:
            DataError: There is none (says so by name, with the runner's reason if it has one), or it also belongs to
                another sample.
        """
        if self.identity == "verified":
            return self.folder / f"{name}.{'png' if self.manifest.output.type == 'argmax' else 'bin'}"
        stems = (name, f"{name}_0", f"{name}_leftImg8bit_0", f"{name.split('.')[0]}_0")
        if self.manifest.output.confidence:     # of ais_bench, a_1.bin is the confidence of a and not the ids of a_1
            stems = (*stems[1:], name)
        listed = (self._listed.get(key) for key in (name, f"{name}_leftImg8bit"))
        plain = (self.folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
        for path in (*filter(None, listed), *plain):
            if path.is_file():
                owner = self._owner.setdefault(path, name)
                if owner != name:
                    raise DataError(f"{path}: stands for both '{owner}' and '{name}': ais_bench cuts names at the "
                                    f"first dot; put its {self.folder.name}_summary.json beside the folder")
                return path
        reason = next((error for failed, error in self._failed().items() if name in failed), "")
        why = f"the runner failed on it: {reason}" if reason else "run the inference again, or check --split"
        raise DataError(f"{self.folder}: no result for sample '{name}' (searched {name}.png, {name}.bin, "
                        f"{name}_0.bin, .npy, .txt); {why}")

    def ids(self, sample: Sample, size: tuple[int, int]) -> np.ndarray:
        """Class ids uint8 (height, width) of a sample at its own size, which its label has too."""
        return self.manifest.input.eval_resize.restore(self.read(sample.name), size, size)

    def read(self, name: str) -> np.ndarray:
        """Ids (H, W) or logits (C, H, W) at the model's size."""
        path = self.path(name)
        if path.suffix == ".png":
            ids = decode_label_values(read_bytes(path), str(path))
            if ids.shape != self.manifest.input.size:
                raise DataError(f"{path}: result of {ids.shape[0]}x{ids.shape[1]}, the manifest's model gives "
                                f"{'x'.join(map(str, self.manifest.input.size))}; is it of another model?")
            return ids
        return interpret(_load_values(path), self.manifest, str(path))


def _load_values(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".txt":
            return np.array(path.read_text(encoding="ascii").split(), dtype=np.float32)
        return np.fromfile(path, np.uint8)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: cannot read this result ({first_line(error)}); run the inference again") from error


def interpret(values: np.ndarray, manifest: Manifest, name: str) -> np.ndarray:
    """Tells what a result file holds by its size.

    Args:
        values: Raw bytes (uint8, one-dimensional) of a ``.bin``, or the typed array of a ``.npy`` or ``.txt``.
        manifest: Of the model.
        name: File name for error messages.

    Returns:
        Class ids (H, W), or logits (C, H, W) as float32. Where one size fits both (fp16 logits of two classes are as
        long as int32 ids), the manifest's output type decides.

    Raises:
        DataError: The size fits neither, or ids are no class ids.
    """
    (height, width), classes = manifest.input.size, manifest.num_classes
    pixels = height * width
    typed = values.dtype != np.uint8 or values.ndim > 1
    if typed:
        kinds = {pixels: [("ids", values.dtype)], pixels * classes: [("logits", values.dtype)]}
        found = kinds.get(values.size, [])
    else:
        found = [("ids", dtype) for dtype in _ID_TYPES if values.size == pixels * np.dtype(dtype).itemsize]
        found += [("logits", dtype) for dtype in (np.float16, np.float32)
                  if values.size == pixels * classes * np.dtype(dtype).itemsize]
    if not found:
        unit = "values" if typed else "bytes"
        raise DataError(f"{name}: {values.size} {unit} are neither class ids nor logits of {classes} classes for a "
                        f"model of {height}x{width}; is it the result of another model or batch size?")
    expected = "logits" if manifest.output.type == "logits" else "ids"
    kind, dtype = next((item for item in found if item[0] == expected), found[0])
    values = values.reshape(-1) if typed else np.frombuffer(values, dtype)
    if kind == "logits":
        return values.reshape(classes, height, width).astype(np.float32)
    if values.min() < 0 or values.max() >= classes:
        raise DataError(f"{name}: values from {values.min()} to {values.max()} are no ids of {classes} classes; "
                        "is it the result of another model?")
    return values.reshape(height, width).astype(np.uint8)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot read this summary ({first_line(error)}); remove it or run the inference "
                        "again") from error
    return content if isinstance(content, dict) else {}
