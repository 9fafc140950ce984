"""Output of an import: label maps, lists, and a configuration."""
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from mindseg.data.annotations.bounded import Problems
from mindseg.data.annotations.images import ImageFolder, read_size
from mindseg.data.annotations.shapes import Annotation, Collection, Color
from mindseg.data.decode import encode_label
from mindseg.data.labels import IGNORE
from mindseg.data.palettes import arranged_palette, count_contacts
from mindseg.data.samples import check_name, image_stem
from mindseg.errors import DataError, shorten
from mindseg.files import file_sha256, write_bytes
from mindseg.outputs import OutputFolder, output_path, result_names
from mindseg.yaml_text import PlainDumper

_CROP = (512, 1024)     # pixels of a training crop at most, short and long side
_LARGE = 2 ** 21        # pixels of images that are made smaller for training and evaluation
_STEPS, _BATCH = 480, 4     # of the quick start's recipe, enough for a first result


@dataclass(frozen=True)
class Labelled:
    """An image with its new label map.

    Attributes:
        image: Image file.
        label: Label file.
        size: (height, width).
        digest: SHA-256 of the image file.
        split: ``train``, ``val`` or empty.
    """
    image: Path
    label: Path
    size: tuple[int, int]
    digest: str
    split: str


@dataclass
class Statistics:
    """Counts of an import.

    Attributes:
        pixels: Pixels of each class id, int64 (256,).
        contacts: Neighbouring pixels of each two class ids, int64 (256, 256).
        overlap: Pixels that shapes of different classes cover.
        overlapping: Images with such pixels.
        empty: Images without any shape.
    """
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    contacts: np.ndarray = field(default_factory=lambda: np.zeros((256, 256), np.int64))
    overlap: int = 0
    overlapping: int = 0
    empty: int = 0


def write_labels(collection: Collection, images: ImageFolder, ids: Mapping[str, int], background: int,
                 folder: OutputFolder, below: str, counts: Statistics, problems: Problems) -> list[Labelled]:
    """Draws and writes the label map of each annotated image.

    Args:
        collection: Annotations.
        images: The images.
        ids: Class id of each name.
        background: Class id of pixels without a shape.
        folder: Output folder.
        below: Name of the folder inside for the label maps.
        counts: Receives the counts.
        problems: Receives the mistakes.

    Returns:
        The images in the order of their names.

    Raises:
        DataError: An image is missing, damaged, annotated twice, or its annotations do not fit.
    """
    found = _find_images(collection, images, problems)
    names = result_names(Path(os.path.relpath(image, images.folder)) for image in found)
    samples = []
    for image, annotation in tqdm(sorted(found.items(), key=lambda pair: pair[0]), desc="labels", unit="image"):
        with problems.one_image():
            height, width = read_size(image, annotation.size, annotation.source)
            label, overlap = annotation.paint(height, width, ids, background)
            name = f"{names[Path(os.path.relpath(image, images.folder))]}.png"
            path = output_path(folder.folder / below, name, str(image))
            folder.claim(path)
            write_bytes(path, encode_label(label))
            samples.append(Labelled(image, path, (height, width), file_sha256(image), annotation.split))
            counts.pixels += np.bincount(label.ravel(), minlength=256)
            counts.contacts += count_contacts(label)
            counts.overlap, counts.overlapping = counts.overlap + overlap, counts.overlapping + (overlap > 0)
            counts.empty += not annotation.labels()
    return samples


def _find_images(collection: Collection, images: ImageFolder, problems: Problems) -> dict[Path, Annotation]:
    """The image of each annotation."""
    found: dict[Path, Annotation] = {}
    stems: dict[Path, Path] = {}
    for annotation in collection.annotations:
        with problems.one_image():
            image = images.find(annotation.image, annotation.source, annotation.near)
            _check_path(image)
            if image in found:
                raise DataError(f"{image}: is annotated twice, by {found[image].source} and {annotation.source}; "
                                "remove one of them")
            if stems.setdefault(image.with_suffix(""), image) != image:
                raise DataError(f"{image}: {stems[image.with_suffix('')].name} differs in its ending only; rename one")
            found[image] = annotation
    return found


def _check_path(image: Path) -> None:
    """Refuses images whose path a list cannot hold."""
    check_name(image_stem(image), str(image))
    if re.search("[,\x00-\x1f\x7f]", str(image)) or str(image) != str(image).strip():
        raise DataError(f"{image}: a comma, a control character or a blank at the end of the path cannot stand in a "
                        "list of images; rename it")
    try:
        str(image).encode()
    except UnicodeEncodeError:
        raise DataError(f"{shorten(str(image))}: the path is not UTF-8; rename it") from None


def split_samples(samples: Sequence[Labelled], share: float, seed: int) -> list[Labelled]:
    """Gives each sample its split, unless the annotations do.

    Files of equal content go to the same split.

    Args:
        samples: Samples in the order of their names.
        share: Part of the images for ``val``, between 0 and 1.
        seed: Seed of the draw.

    Raises:
        DataError: There are fewer than two different images.
    """
    if {"train", "val"} <= {sample.split for sample in samples}:
        return [replace(sample, split=sample.split or "train") for sample in samples]
    digests = list(dict.fromkeys(sample.digest for sample in samples))
    if len(digests) < 2:
        raise DataError(f"{len(digests)} different images were annotated, but a training needs one and an evaluation "
                        "another; annotate more, or give --val_input")
    count = min(max(round(share * len(digests)), 1), len(digests) - 1)
    chosen = {digests[i] for i in np.random.default_rng(seed).permutation(len(digests))[:count]}
    return [replace(sample, split="val" if sample.digest in chosen else "train") for sample in samples]


def list_text(samples: Sequence[Labelled], root: Path) -> str:
    """Lines ``image,label`` of a list, relative to a folder.

    Args:
        samples: Samples of one split.
        root: Folder.
    """
    lines = []
    for sample in samples:
        folder = os.path.relpath(os.path.realpath(sample.image.parent), os.path.realpath(root))
        lines.append(f"{Path(folder).as_posix()}/{sample.image.name},{sample.label.relative_to(root).as_posix()}\n")
    return "".join(lines)


def describe_config(samples: Sequence[Labelled], root: Path, classes: Sequence[str],
                    colors: Mapping[str, Color], counts: Statistics) -> dict:
    """Settings for a first training of Fast-SCNN, those of the quick start with sizes that fit the images.

    Images of over two million pixels are made smaller.

    Args:
        samples: All samples.
        root: Folder of the lists.
        classes: Class names.
        colors: Colours of classes; used if each class has one of its own.
        counts: Counts of the import.
    """
    palette = [colors.get(name) for name in classes]
    if None in palette or len(set(palette)) < len(palette):
        palette = arranged_palette(counts.contacts[:len(classes), :len(classes)])
    height, width = (int(np.median([sample.size[side] for sample in samples])) for side in (0, 1))
    data = {"name": "list", "root": str(root), "train_list": str(root / "train.txt"),
            "eval_list": str(root / "val.txt"), "class_names": list(classes), "palette": [list(rgb) for rgb in palette],
            "scale_range": [0.5, 2.0]}
    tree = {"model": {"name": "fast_scnn", "num_classes": len(classes)}, "data": data}
    if height * width > _LARGE:
        scale = _CROP[1] / max(height, width)
        height, width = (round(side * scale / 32) * 32 for side in (height, width))
        data["scale_base"] = min(height, width)
        tree["eval"] = {"resize": {"rule": "long_side", "size": [height, width]}}
    else:
        (height, width), _ = Counter(sample.size for sample in samples).most_common(1)[0]
        tree["export"] = {"height": max(height, 32), "width": max(width, 32)}
    limits = _CROP if height <= width else _CROP[::-1]
    data["crop_size"] = [max(min(side, limit) // 32 * 32, 32)
                         for side, limit in zip((height, width), limits, strict=True)]
    count = sum(sample.split == "train" for sample in samples)
    epochs = min(max(round(_STEPS * _BATCH / count), 4), 400)
    return tree | {"optim": {"name": "adam", "lr": 3.0e-3, "weight_decay": 0.0, "warmup_steps": 20},
                   "train": {"global_batch": min(_BATCH, count), "epochs": epochs, "run_eval": True,
                             "eval_interval": max(epochs // 4, 1), "log_interval": 5}}


def config_text(tree: Mapping, about: str) -> str:
    """A configuration as YAML.

    Args:
        tree: Sections.
        about: First line, a comment.
    """
    return (f"# {' '.join(about.split())}\n# It is yours: change what you like; docs/configuration.md lists all keys.\n"
            + yaml.dump(dict(tree), Dumper=PlainDumper, sort_keys=False, default_flow_style=None, width=120,
                        allow_unicode=True))


def class_table(classes: Sequence[str], counts: Statistics) -> list[str]:
    """Lines with each class, its id and its share of the pixels.

    Args:
        classes: Class names.
        counts: Counts of the import.
    """
    total = max(int(counts.pixels.sum()), 1)
    rows = [*enumerate(classes), (IGNORE, "(ignored)")]
    return [f"  {i:3d}  {name:<20} {100 * counts.pixels[i] / total:8.3f} %" for i, name in rows]
