"""Label maps as files of annotation tools, and the label maps that each tool's own rule makes of these files.

Nothing here uses mindseg: what it reads of these files is compared with the drawings below. A label map holds class
ids, uint8 (H, W); 255 is unlabelled.
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

UNLABELLED = 255


@dataclass(frozen=True)
class Photographs:
    """Photographs with label maps.

    Attributes:
        files: Image file of each name.
        labels: Label map of each name.
        classes: Class names in the order of their ids.
        palette: Colour (r, g, b) of each class.
        tolerance: Pixels that the sides of polygons may be away from the regions' borders.
    """
    files: Mapping[str, Path]
    labels: Mapping[str, np.ndarray]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    tolerance: float = 0


@dataclass(frozen=True)
class Region:
    """A connected region of one class.

    Attributes:
        value: Class id.
        left: First column.
        top: First row.
        pixels: Its pixels in their box, uint8 (h, w) of 0 and 1.
        filled: The same with its holes.
    """
    value: int
    left: int
    top: int
    pixels: np.ndarray
    filled: np.ndarray

    def centres(self, tolerance: float) -> np.ndarray:
        """Outline through the border's pixels, int (N, 2) of (x, y): for tools that draw the outline, too."""
        contours, _ = cv2.findContours(self.filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return straighten(contours[0][:, 0], tolerance) + np.array([self.left, self.top])

    def sides(self, tolerance: float) -> np.ndarray:
        """Outline along the sides of the border's pixels, int (N, 2) of (x, y): for tools that count pixel centres."""
        # Pixel x is columns 2x and 2x + 1 of the larger mask: half of one more is the side next to either.
        larger = self.filled.repeat(2, 0).repeat(2, 1)
        contours, _ = cv2.findContours(larger, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return straighten((contours[0][:, 0] + 1) // 2, tolerance) + np.array([self.left, self.top])


def straighten(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Corners of a polygon whose sides keep within a distance of the points; at least three, some equal if need be."""
    straight = cv2.approxPolyDP(points[:, None], tolerance, True)[:, 0]
    if len(straight) < 3:       # a line or a dot, which no tolerance may remove
        straight = cv2.approxPolyDP(points[:, None], 0, True)[:, 0]
    return np.concatenate([straight, straight[-1:].repeat(max(3 - len(straight), 0), 0)])


def regions(label: np.ndarray) -> list[Region]:
    """All regions, also unlabelled ones, from the largest to the smallest with their holes.

    In this order a region that lies in the hole of another comes after it: painted one over the other, filled regions
    give the label map.
    """
    found = []
    for value in np.unique(label):
        count, parts, boxes, _ = cv2.connectedComponentsWithStats((label == value).astype(np.uint8), connectivity=4)
        for number in range(1, count):
            left, top, width, height, _ = boxes[number].tolist()
            pixels = (parts[top:top + height, left:left + width] == number).astype(np.uint8)
            contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            filled = cv2.drawContours(np.zeros_like(pixels), contours, -1, 1, cv2.FILLED)
            found.append(Region(int(value), left, top, pixels, filled))
    return sorted(found, key=lambda region: -int(region.filled.sum()))


def write_labelme(photographs: Photographs, folder: Path) -> None:
    """Writes a file of LabelMe beside each image. A polygon's corner is the centre of a pixel, as on its canvas."""
    for name, label in photographs.labels.items():
        shapes = [{"label": "__ignore__" if region.value == UNLABELLED else photographs.classes[region.value],
                   "points": (region.centres(photographs.tolerance) + 0.5).tolist(), "group_id": None,
                   "description": "", "shape_type": "polygon", "flags": {}} for region in regions(label)]
        tree = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": photographs.files[name].name,
                "imageData": None, "imageHeight": label.shape[0], "imageWidth": label.shape[1]}
        (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")


def draw_labelme(folder: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Label maps of LabelMe's files: each polygon drawn as by its ``shape_to_mask``, the later one counts."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        tree = json.loads(path.read_text(encoding="utf-8"))
        label = np.full((tree["imageHeight"], tree["imageWidth"]), UNLABELLED, np.uint8)
        for shape in tree["shapes"]:
            mask = Image.fromarray(np.zeros(label.shape, np.uint8))
            ImageDraw.Draw(mask).polygon(xy=[tuple(point) for point in shape["points"]], outline=1, fill=1)
            ignored = shape["label"] == "__ignore__"
            label[np.array(mask, dtype=bool)] = UNLABELLED if ignored else classes.index(shape["label"])
        found[path.stem] = label
    return found


def write_coco(photographs: Photographs, file: Path) -> None:
    """Writes a file of COCO instances: polygons, and run lengths for regions with holes; none for unlabelled pixels."""
    images, annotations = [], []
    for number, (name, label) in enumerate(photographs.labels.items(), 1):
        height, width = label.shape
        images.append({"id": number, "file_name": photographs.files[name].name, "height": height, "width": width})
        for region in regions(label):
            if region.value == UNLABELLED:
                continue
            segmentation = [region.sides(photographs.tolerance).astype(float).ravel().tolist()]
            if (region.pixels != region.filled).any():
                whole = np.zeros(label.shape, np.uint8, order="F")
                whole[region.top:, region.left:][:len(region.pixels), :region.pixels.shape[1]] = region.pixels
                runs = coco_masks.encode(whole)
                segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": region.value + 1,
                                "segmentation": segmentation, "iscrowd": 0, "area": int(region.pixels.sum())})
    categories = [{"id": i, "name": name} for i, name in enumerate(photographs.classes, 1)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}),
                    encoding="utf-8")


def _coco_polygons(polygons: list, height: int, width: int) -> np.ndarray:
    """Mask of an object as pycocotools draws it, bool (H, W)."""
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))) > 0


def draw_coco(file: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Label maps of a COCO file: each object as by ``COCO.annToMask``, the smaller one counts."""
    tree = json.loads(file.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in tree["categories"]}
    found = {}
    for image in tree["images"]:
        label = np.full((image["height"], image["width"]), UNLABELLED, np.uint8)
        drawn = []
        for item in (item for item in tree["annotations"] if item["image_id"] == image["id"]):
            parts = item["segmentation"]
            mask = coco_masks.decode(parts) > 0 if isinstance(parts, dict) else _coco_polygons(parts, *label.shape)
            drawn.append((mask, classes.index(names[item["category_id"]])))
        for mask, value in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
            label[mask] = value
        found[Path(image["file_name"]).stem] = label
    return found


def write_cvat_images(photographs: Photographs, file: Path) -> None:
    """Writes "CVAT for images 1.1"; polygons of the label ``background`` are unlabelled."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name, rgb in zip(photographs.classes, photographs.palette, strict=True):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = "#" + bytes(rgb).hex()
    for number, (name, pixels) in enumerate(photographs.labels.items()):
        image = ElementTree.SubElement(root, "image", id=str(number), name=photographs.files[name].name,
                                       width=str(pixels.shape[1]), height=str(pixels.shape[0]))
        for order, region in enumerate(regions(pixels)):
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in region.sides(photographs.tolerance))
            label = "background" if region.value == UNLABELLED else photographs.classes[region.value]
            ElementTree.SubElement(image, "polygon", label=label, source="manual", occluded="0", points=points,
                                   z_order=str(order))
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def draw_cvat_images(file: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Label maps of "CVAT for images 1.1": polygons as pycocotools draws them, the higher ``z_order`` counts."""
    found = {}
    for image in ElementTree.parse(file).getroot().iter("image"):
        label = np.full((int(image.get("height")), int(image.get("width"))), UNLABELLED, np.uint8)
        for polygon in sorted(image.iter("polygon"), key=lambda item: int(item.get("z_order"))):
            points = [float(number) for number in polygon.get("points").replace(";", ",").split(",")]
            unlabelled = polygon.get("label") == "background"
            label[_coco_polygons([points], *label.shape)] = (
                UNLABELLED if unlabelled else classes.index(polygon.get("label")))
        found[Path(image.get("name")).stem] = label
    return found


def write_masks(photographs: Photographs, folder: Path) -> None:
    """Writes colour masks, and ``colors.txt`` with a line ``name,r,g,b`` a colour. Unlabelled pixels are black."""
    folder.mkdir(parents=True)
    table = np.zeros((256, 3), np.uint8)
    table[:len(photographs.palette)] = photographs.palette
    for name, label in photographs.labels.items():
        Image.fromarray(table[label]).save(folder / f"{name}.png")
    rows = [*zip(photographs.classes, photographs.palette, strict=True), ("unlabelled", (0, 0, 0))]
    (folder / "colors.txt").write_text("".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in rows), encoding="utf-8")


def write_cvat_masks(photographs: Photographs, folder: Path) -> None:
    """Writes CVAT's "Segmentation mask 1.1", in which unlabelled pixels are its ``background``."""
    masks = folder / "SegmentationClass"
    write_masks(photographs, masks)
    (masks / "colors.txt").unlink()     # CVAT has a table of its own
    rows = [("background", (0, 0, 0)), *zip(photographs.classes, photographs.palette, strict=True)]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(
        f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in rows), encoding="utf-8")
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("".join(f"{name}\n" for name in photographs.labels), encoding="utf-8")
