"""Polygons as files: one of LabelMe an image, and one of COCO for all."""
import json
import os
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from mindseg.data.datasets import DatasetInfo
from mindseg.files import replacing, write_text
from mindseg.inference.polygons import Region, find_regions
from mindseg.inference.predictor import Answer
from mindseg.outputs import OutputFolder

_LABELME_VERSION = "5.5.0"


class PolygonFiles:
    """Writes polygons, shares of the classes and mean confidence of images.

    ``coco.json`` grows with each image, so that memory does not; it gets its name when the block ends without error.

    Args:
        results: Output folder.
        info: Names of the classes.
    """

    def __init__(self, results: OutputFolder, info: DatasetInfo) -> None:
        self.results, self.info = results, info
        self._images: list[dict] = []
        self._annotations = 0
        self._open = ExitStack()

    def __enter__(self) -> "PolygonFiles":
        path = self.results.folder / "coco.json"
        self.results.claim(path)
        self._stream = self._open.enter_context(
            open(self._open.enter_context(replacing(path)), "w", encoding="utf-8", errors="backslashreplace"))
        self._stream.write('{"info": {"description": "Written by mindseg predict"},\n"annotations": [')
        return self

    def __exit__(self, kind: type | None, *rest: object) -> bool | None:
        if kind is None:
            categories = [{"id": i, "name": name} for i, name in enumerate(self.info.classes, 1)]
            self._stream.write(f'],\n"images": {_dump(self._images)},\n"categories": {_dump(categories)}}}\n')
        return self._open.__exit__(kind, *rest)

    def write(self, path: Path, image: Path, name: str, answer: Answer) -> None:
        """Writes the file of one image and adds it to ``coco.json``.

        Args:
            path: JSON file, claimed by the caller.
            image: The image.
            name: Its name in ``coco.json``.
            answer: Classes of the pixels.
        """
        ids, confidence = answer
        regions = find_regions(ids)
        facts = {"shares": self._shares(ids)}
        if confidence is not None:
            facts["mean_confidence"] = round(float(confidence.mean()) / 255, 4)
        tree = labelme_tree(regions, self.info.classes, os.path.relpath(image, path.parent), ids.shape) | facts
        write_text(path, _dump(tree) + "\n")
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name, "height": ids.shape[0], "width": ids.shape[1], **facts})
        for region in regions:
            self._stream.write(",\n" if self._annotations else "\n")
            self._annotations += 1
            self._stream.write(_dump({"id": self._annotations, "image_id": number, **coco_annotation(region)}))

    def _shares(self, ids: np.ndarray) -> dict[str, float]:
        """Share of the pixels of each class that occurs, 0..1."""
        counts = np.bincount(ids.ravel(), minlength=len(self.info.classes))
        return {name: round(float(count) / ids.size, 6) for name, count in zip(self.info.classes, counts, strict=True)
                if count}


def coco_annotation(region: Region) -> dict:
    """A region as COCO's annotation, without ids; the category of class k is k + 1.

    COCO's polygons have no holes: a slit of no width leads to each hole. The area counts pixels.
    """
    points = [value for point in region.single_ring() for value in point]
    return {"category_id": region.class_id + 1, "segmentation": [points], "area": region.area,
            "bbox": list(region.box), "iscrowd": 0}


def labelme_tree(regions: list[Region], classes: tuple[str, ...], image: str, size: tuple[int, int]) -> dict:
    """Content of a LabelMe file, which draws later shapes over earlier ones, so that holes need no polygon.

    Args:
        regions: Result of :func:`.polygons.find_regions`.
        classes: Names of the classes.
        image: Path of the image, relative to the file's folder.
        size: Height and width of the image.
    """
    shapes = [{"label": classes[region.class_id], "points": _labelme_points(region.border), "group_id": None,
               "description": "", "shape_type": "polygon", "flags": {}, "mask": None} for region in regions]
    return {"version": _LABELME_VERSION, "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None,
            "imageHeight": size[0], "imageWidth": size[1]}


def _labelme_points(border: np.ndarray) -> list[list[float]]:
    """Three points or more; LabelMe draws the line through them too, so they are the centres of the border's pixels."""
    points = cv2.approxPolyDP(border.astype(np.int32), 0, True)[:, 0]
    points = np.concatenate([points, np.repeat(points[-1:], max(0, 3 - len(points)), 0)])
    return (points + 0.5).tolist()


def _dump(tree: dict | list) -> str:
    return json.dumps(tree, ensure_ascii=False)
