"""Shapes to label maps: each tool's drawing rule against a drawing by hand, orders, classes, splits, configuration."""
import base64
import json
import sys

import cv2
import numpy as np
import pytest

from mindseg.commands import import_labels
from mindseg.config import load_config
from mindseg.data.annotations import rules
from mindseg.errors import DataError, UserError
from tests.support.annotations import (
    SIZE,
    compress,
    fifths,
    labelme,
    line,
    read_labels,
    rows,
    runs,
    write_images,
)
from tests.support.colours import difference
from tests.support.data import random_image, random_label, write_image, write_palette

HEIGHT, WIDTH = SIZE
SQUARE = [[4, 5], [20, 5], [20, 25], [4, 25]]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command in this process; returns the label maps of its output ``out``."""
    def call(*words):
        monkeypatch.setattr("sys.argv", ["mindseg import-labels", "--output", str(tmp_path / "out"), *map(str, words)])
        import_labels.main()
        return read_labels(tmp_path / "out")
    return call


def convex_points(rng, decimals=3):
    """Corners of a convex polygon in the image, in order around it."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    center, radius = rng.uniform([15, 12], [40, 28]), rng.uniform(6, 12, 2)
    return np.round(center + radius * np.stack([np.cos(angles), np.sin(angles)], 1), decimals)


def outlined(points):
    """OpenCV's polygon: that of the corners cut to whole pixels, with its outline."""
    corners = points.astype(int)
    mask = rows(corners, HEIGHT, WIDTH)
    for a, b in zip(corners.tolist(), np.roll(corners, -1, 0).tolist(), strict=True):
        for x, y in line(a, b):
            mask[y, x] = 1
    return mask


def leans(corners):
    """Tests for a tip at the top or bottom whose two sides go the same way: Pillow adds pixels to it."""
    for order in (corners, corners * [1, -1]):
        top = np.argmin(order[:, 1])
        ways = [order[(top + step) % len(order)][0] - order[top][0] for step in (-1, 1)]
        if ways[0] * ways[1] > 0:
            return True
    return False


# The tools' rules.

def test_coco_polygons_by_hand(rng):
    for _ in range(200):
        points = convex_points(rng, 2)
        if rng.random() < 0.5:      # beyond the border, and not convex
            points = np.round(rng.uniform([-8, -6], [WIDTH + 8, HEIGHT + 6], (len(points), 2)), 2)
        drawn = rules.coco_polygons([points], "f")(HEIGHT, WIDTH)
        assert np.array_equal(drawn, fifths(points, HEIGHT, WIDTH)), points.tolist()


def test_coco_takes_pixels_by_their_centres():
    drawn = rules.coco_polygons([np.array([[2.0, 3], [7, 3], [7, 9], [2, 9]])], "f")(HEIGHT, WIDTH)
    expected = np.zeros(SIZE, np.uint8)
    expected[3:9, 2:7] = 1
    assert np.array_equal(drawn, expected)


def test_without_pycocotools_its_formats_name_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"need the package pycocotools; pip install 'mindseg\[train\]'"):
        rules.coco_polygons([np.array([[2.0, 3], [7, 3], [7, 9]])], "f")(HEIGHT, WIDTH)


def test_yolo_polygons_by_hand(rng):
    for _ in range(100):
        points = convex_points(rng)
        parts = points / [WIDTH, HEIGHT]
        drawn = rules.yolo_polygon(parts, "f")(HEIGHT, WIDTH)
        assert np.array_equal(drawn, outlined(parts * [WIDTH, HEIGHT])), points.tolist()


def test_labelme_polygons_by_hand(rng):
    for _ in range(100):
        points = convex_points(rng)
        if leans(points.astype(int)):
            continue
        drawn = rules.pillow("polygon", points, "f")(HEIGHT, WIDTH)
        assert np.array_equal(drawn, rows(points.astype(int), HEIGHT, WIDTH)), points.tolist()


def test_labelme_boxes_circles_and_points_by_hand():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    box = rules.pillow("rectangle", np.array([[20.0, 9], [5, 3]]), "f")(HEIGHT, WIDTH)
    assert np.array_equal(box, (x >= 5) & (x <= 20) & (y >= 3) & (y <= 9))
    distance = np.hypot(x - 25, y - 20)
    for drawn, radius in ((rules.pillow("circle", np.array([[25.0, 20], [25, 30]]), "f")(HEIGHT, WIDTH), 10),
                          (rules.pillow("point", np.array([[25.0, 20]]), "f")(HEIGHT, WIDTH), 5)):
        assert drawn[distance <= radius - 0.75].all()
        assert not drawn[distance > radius + 0.75].any()
    level = rules.pillow("line", np.array([[10.0, 20], [30, 20]]), "f")(HEIGHT, WIDTH)
    assert level[:, 20].sum() == 10             # LabelMe's lines are ten pixels wide
    assert np.array_equal(np.flatnonzero(level.any(0)), np.arange(10, 31))


def test_labelme_bitmaps_lie_at_their_corner():
    patch = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    drawn = rules.bitmap(patch, np.array([[5.0, 7], [7, 8]]), "f")(HEIGHT, WIDTH)
    expected = np.zeros(SIZE, np.uint8)
    expected[7:9, 5:8] = patch
    assert np.array_equal(drawn, expected)
    cut = rules.bitmap(patch, np.array([[-1.0, HEIGHT - 1], [1, HEIGHT]]), "f")(HEIGHT, WIDTH)
    assert np.array_equal(np.argwhere(cut), [[HEIGHT - 1, 1]])      # its first row, from x = -1 on


def test_cvat_ellipses_by_their_equation():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    drawn = rules.cvat_ellipse(np.array([25.2, 19.8]), np.array([14.6, 6.4]), 0, "f")(HEIGHT, WIDTH)
    inside = np.hypot((x - 25) / 15, (y - 20) / 6)
    assert drawn[inside <= 0.93].all()
    assert not drawn[inside > 1.1].any()
    upright = rules.cvat_ellipse(np.array([25.0, 20]), np.array([14.0, 6]), 90, "f")(HEIGHT, WIDTH)
    assert upright[:, 25].sum() == 29
    assert upright[20].sum() == 13


def test_run_lengths(rng):
    for _ in range(20):
        mask = random_label(rng, HEIGHT, WIDTH, [0, 1])
        lengths = runs(mask.T.ravel())
        for counts in (lengths, compress(lengths)):
            drawn = rules.coco_rle({"size": list(SIZE), "counts": counts}, "f")(HEIGHT, WIDTH)
            assert np.array_equal(drawn, mask)
        window = mask[6:30, 9:50]
        drawn = rules.cvat_rle(runs(window.ravel()), (9, 6, 41, 24), "f")(HEIGHT, WIDTH)
        expected = np.zeros(SIZE, np.uint8)
        expected[6:30, 9:50] = window
        assert np.array_equal(drawn, expected)


# The formats.

def test_labelme_files(tmp_path, run, capsys):
    write_images(tmp_path / "d", 3)
    patch = cv2.imencode(".png", np.full((4, 6), 1, np.uint8))[1].tobytes()
    labelme(tmp_path / "d" / "p00.json", [{"label": "road", "points": SQUARE},
                                          {"label": "car", "points": [[10, 10], [30, 15]], "shape_type": "rectangle"}])
    labelme(tmp_path / "d" / "p01.json", [
        {"label": "car", "points": [[2, 3], [7, 6]], "shape_type": "mask", "mask": base64.b64encode(patch).decode()},
        {"label": "__ignore__", "points": [[20, 20], [30, 30]], "shape_type": "rectangle", "group_id": 3}])
    labelme(tmp_path / "d" / "p02.json", [], more={"imageData": "A" * 10000, "imagePath": "..\\photos\\p02.png"})
    found = run("--input", tmp_path / "d")
    expected = np.zeros((3, *SIZE), np.uint8)       # background, car, road
    expected[0, 5:26, 4:21] = 2
    expected[0, 10:16, 10:31] = 1
    expected[1, 3:7, 2:8] = 1
    expected[1, 20:31, 20:31] = 255
    for i in range(3):
        assert np.array_equal(found[f"p{i:02d}"], expected[i])
    printed = capsys.readouterr().out
    assert "overlap on 66 pixels of 1 images; the later shape counts there" in printed
    assert "1 images have no shape" in printed
    assert f"{100 * (21 * 17 - 66) / 3 / HEIGHT / WIDTH:.3f} %" in printed      # road


def coco(path, images, annotations, categories=("car", "road")):
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [
        {"id": 10 * i, "name": name} for i, name in enumerate(categories, 1)]}))
    return path


def box(x0, y0, x1, y1):
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


def test_coco_file(tmp_path, run, capsys):
    write_images(tmp_path, 2)
    crowd = np.zeros(SIZE, np.uint8)
    crowd[:, :4] = 1
    images = [{"id": i, "file_name": f"p0{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(2)]
    source = coco(tmp_path / "a.json", images, [
        {"id": 1, "image_id": 0, "category_id": 10, "segmentation": [box(5, 5, 10, 10), box(2, 20, 6, 24)]},
        {"id": 2, "image_id": 0, "category_id": 20, "segmentation": [box(3, 3, 30, 30)], "iscrowd": 0},
        {"id": 3, "image_id": 0, "category_id": 10, "iscrowd": 1,
         "segmentation": {"size": list(SIZE), "counts": runs(crowd.T.ravel())}},
        {"id": 4, "image_id": 1, "category_id": 20, "iscrowd": 0,
         "segmentation": {"size": list(SIZE), "counts": compress(runs(crowd.T.ravel()))}}])
    found = run("--input", source)
    first = np.zeros(SIZE, np.uint8)        # background, car, road
    first[:, :4] = 1                        # the crowd lies below the smaller road
    first[3:30, 3:30] = 2
    first[5:10, 5:10] = first[20:24, 2:6] = 1       # the smallest lies above, though it is first in the file
    assert np.array_equal(found["p00"], first)
    assert np.array_equal(found["p01"], 2 * crowd)
    # 27 of road and crowd; 25 and 12 of car and road, of which 4 are crowd, too.
    assert "overlap on 60 pixels of 1 images; the smaller shape counts there" in capsys.readouterr().out


def cvat(path, images, labels=(("road", "#804080"), ("car", "#00008e"))):
    names = "".join(f"<label><name>{name}</name><color>{color}</color><attributes/></label>" for name, color in labels)
    body = "".join(f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
                   for i, (name, shapes) in enumerate(images.items()))
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>'
                    f'{names}</labels></task></meta>{body}</annotations>')
    return path


def test_cvat_file(tmp_path, run, capsys):
    write_images(tmp_path / "images", 2)
    mask = np.zeros((6, 9), np.uint8)
    mask[1:5, 2:] = 1
    points = np.array([[10.25, 30.5], [40.75, 28.0], [35.5, 38.25]])
    source = cvat(tmp_path / "annotations.xml", {
        "images/p00.png": '<box label="car" xtl="5" ytl="5" xbr="20" ybr="15" z_order="2" occluded="0"/>'
                          '<box label="road" xtl="0" ytl="0" xbr="30" ybr="25" z_order="1"/>'
                          '<points label="car" points="1,2" z_order="0"/><tag label="car"/>',
        "p01.png": f'<mask label="car" rle="{", ".join(map(str, runs(mask.ravel())))}" left="20" top="3" width="9" '
                   'height="6" z_order="0"/><polygon label="road" z_order="0" points="'
                   + ";".join(f"{x},{y}" for x, y in points) + '"><attribute name="a">1</attribute></polygon>'})
    found = run("--input", source)
    expected = np.zeros((2, *SIZE), np.uint8)       # background, road, car
    expected[0, :25, :30] = 1
    expected[0, 5:15, 5:20] = 2
    expected[1][fifths(points, HEIGHT, WIDTH) > 0] = 1
    expected[1, 3:9, 20:29][mask > 0] = 2
    assert np.array_equal(found["p00"], expected[0])
    assert np.array_equal(found["p01"], expected[1])
    printed = capsys.readouterr().out
    assert "overlap on 150 pixels of 1 images; the shape with the higher z_order" in printed
    assert "1 x points: left out, it has no area" in printed
    assert "1 x tag" in printed


def test_turned_boxes_of_cvat(tmp_path, run):
    write_images(tmp_path, 2)
    shape = '<box label="{}" xtl="10" ytl="10" xbr="30" ybr="20" rotation="{}"/>'
    found = run("--input", cvat(tmp_path / "a.xml", {"p00.png": shape.format("car", 90),
                                                     "p01.png": shape.format("road", 30)}))
    upright = np.zeros(SIZE, np.uint8)
    upright[5:25, 15:25] = 2
    assert np.array_equal(found["p00"], upright)
    half = np.radians(30)
    turn = np.array([[np.cos(half), -np.sin(half)], [np.sin(half), np.cos(half)]])
    corners = [turn @ corner + [20, 15] for corner in ([-10, -5], [10, -5], [10, 5], [-10, 5])]
    assert np.array_equal(found["p01"], fifths(np.array(corners), HEIGHT, WIDTH))


COLORS = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (10, 20, 30)}


def write_masks(folder, rng, colors, count=4):
    """Colour masks, and the class ids that they stand for."""
    labels = [random_label(rng, *SIZE, list(range(len(colors)))) for _ in range(count)]
    table = np.array(list(colors.values()), np.uint8)
    for i, label in enumerate(labels):
        label.flat[:len(colors)] = np.arange(len(colors))
        write_image(folder / f"p{i:02d}.png", table[label][..., ::-1])
    return labels


@pytest.mark.parametrize("line_form", ["{0}:{1},{2},{3}::", "{0},{1},{2},{3}", "{1} {2} {3}\t{0}"])
def test_colour_masks_with_a_table(tmp_path, rng, run, line_form):
    write_images(tmp_path / "images", 4)
    labels = write_masks(tmp_path / "masks", rng, COLORS)
    (tmp_path / "t.txt").write_text("# a table\n" + "".join(line_form.format(n, *c) + "\n" for n, c in COLORS.items()))
    found = run("--input", tmp_path / "masks", "--images", tmp_path / "images", "--colors", tmp_path / "t.txt")
    for i, label in enumerate(labels):
        assert np.array_equal(found[f"p{i:02d}"], label)
    cfg = load_config(tmp_path / "out" / "out.yaml")
    assert dict(zip(cfg.data.class_names, map(tuple, cfg.data.palette), strict=True)) == COLORS


def test_colours_found_are_named_in_order(tmp_path, rng, run):
    write_images(tmp_path / "images", 4)
    colors = {"a": (1, 2, 3), "b": (1, 3, 0), "c": (200, 0, 0)}         # in order of red, green, blue
    labels = write_masks(tmp_path / "masks", rng, colors)
    found = run("--input", tmp_path / "masks", "--images", tmp_path / "images", "--classes", *colors)
    for i, label in enumerate(labels):
        assert np.array_equal(found[f"p{i:02d}"], label)
    cfg = load_config(tmp_path / "out" / "out.yaml")
    assert dict(zip(cfg.data.class_names, map(tuple, cfg.data.palette), strict=True)) == colors


def test_colours_of_voc_have_its_order_and_its_border(tmp_path, rng, run):
    write_images(tmp_path / "images", 4)
    colors = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bicycle": (0, 128, 0), "void": (224, 224, 192)}
    labels = write_masks(tmp_path / "masks", rng, colors)
    found = run("--input", tmp_path / "masks", "--images", tmp_path / "images")
    for i, label in enumerate(labels):
        assert np.array_equal(found[f"p{i:02d}"], np.where(label == 3, 255, label))


@pytest.mark.parametrize("colored", [True, False])
def test_cvat_segmentation_masks(tmp_path, rng, run, colored):
    """CVAT's masks are colours, or palette indices whose palette has the colours of labelmap.txt."""
    root = tmp_path / "task"
    write_images(root / "JPEGImages", 4)
    labels = write_masks(root / "SegmentationClass", rng, COLORS)
    write_masks(root / "SegmentationObject", rng, {"a": (1, 1, 1), "b": (7, 7, 7)})
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(
        f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLORS.items()))
    if not colored:
        for i, label in enumerate(labels):
            write_image(root / "SegmentationClass" / f"p{i:02d}.png", label)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p00\np02\n")
    (lists / "val.txt").write_text("p01\r\np03\r\n")
    found = run("--input", root, "--ignore", "road")
    for i, label in enumerate(labels):
        assert np.array_equal(found[f"p{i:02d}"], np.array([0, 255, 1])[label])
    rows = (tmp_path / "out" / "val.txt").read_text().split()
    assert [row.split(",")[0][-7:] for row in rows] == ["p01.png", "p03.png"]


@pytest.mark.parametrize("palette", [True, False])
def test_masks_of_class_numbers(tmp_path, rng, run, palette):
    write_images(tmp_path / "images", 3)
    labels = [random_label(rng, *SIZE, [0, 1, 2, 255]) for _ in range(3)]
    for i, label in enumerate(labels):
        label.flat[:3] = 0, 1, 2
        (write_palette if palette else write_image)(tmp_path / "masks" / f"p{i:02d}_mask.png", label)
    found = run("--input", tmp_path / "masks", "--images", tmp_path / "images", "--classes", "a", "b", "c")
    for i, label in enumerate(labels):
        assert np.array_equal(found[f"p{i:02d}"], label)


def test_colours_of_many_classes_differ_where_they_touch(tmp_path, run):
    write_images(tmp_path / "images", 2)
    label = np.arange(HEIGHT * WIDTH).reshape(SIZE) // WIDTH // 2 % 12     # stripes: each class touches two others
    for i in range(2):
        write_image(tmp_path / "masks" / f"p{i:02d}.png", label.astype(np.uint8))
    run("--input", tmp_path / "masks", "--images", tmp_path / "images")
    palette = load_config(tmp_path / "out" / "out.yaml").data.palette
    assert len(palette) == 12
    assert min(difference(palette[k], palette[k + 1]) for k in range(11)) >= 20


def test_binary_masks(tmp_path, rng, run):
    write_images(tmp_path / "images", 3)
    labels = [random_label(rng, *SIZE, [0, 255]) for _ in range(3)]
    for i, label in enumerate(labels):
        label.flat[:2] = 0, 255
        write_image(tmp_path / "masks" / f"p{i:02d}.png", label)
    found = run("--input", tmp_path / "masks", "--images", tmp_path / "images", "--classes", "ground", "crack")
    for i, label in enumerate(labels):
        assert np.array_equal(found[f"p{i:02d}"], label // 255)


def test_masks_to_evaluate_on_have_the_names_of_the_others(tmp_path, rng, run):
    """A colour that only some masks have shifts no class."""
    for i, colors in enumerate([[(1, 1, 1), (2, 2, 2), (3, 3, 3)], [(2, 2, 2), (3, 3, 3)]]):
        write_images(tmp_path / "images" / str(i), 2, seed=i)
        write_masks(tmp_path / str(i), rng, dict(enumerate(colors)), 2)
    run("--input", tmp_path / "0", "--images", tmp_path / "images" / "0", "--val_input", tmp_path / "1", "--val_images",
        tmp_path / "images" / "1")
    val = cv2.imread(str(tmp_path / "out" / "labels" / "val" / "p00.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(val + 1, cv2.imread(str(tmp_path / "1" / "p00.png"))[..., 0])


def test_yolo_data_set(tmp_path, run, capsys):
    write_images(tmp_path / "train" / "images", 2)
    write_images(tmp_path / "valid" / "images", 1, seed=1)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: {0: road, 1: car}\n")
    road = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    car = np.array([[0.2, 0.2], [0.5, 0.2], [0.4, 0.6]])
    for split in ("train", "valid"):
        folder = tmp_path / split / "labels"
        folder.mkdir()
        (folder / "p00.txt").write_text("".join(
            f"{number} {' '.join(map(str, points.ravel()))}\n" for number, points in ((1, car), (0, road))))
    run("--input", tmp_path)
    expected = outlined(road * [WIDTH, HEIGHT])             # background, road, car
    expected[outlined(car * [WIDTH, HEIGHT]) > 0] = 2       # the smaller one lies above, though it is first
    for split in ("train", "valid"):
        label = cv2.imread(str(tmp_path / "out" / "labels" / split / "images" / "p00.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(label, expected)
    assert "2 to train and 1 to evaluate on" in capsys.readouterr().out


@pytest.fixture
def yolo_lists(tmp_path):
    """Two images of one name and two that no list names; ``data.yaml`` names lists, of which the one to test on is not
    there, as it often is."""
    for number, split in enumerate(("train", "val", "test", "more")):
        write_images(tmp_path / "images" / split, 1, seed=number)
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "p00.txt").write_text(f"{number % 2} 0.1 0.1 0.9 0.1 0.9 0.9\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "data.yaml").write_text(
        "path: ../datasets/mine\ntrain: lists/train.txt\nval: [val.txt]\ntest: test.txt\nnames: [a, b]\n")
    (tmp_path / "lists" / "train.txt").write_text("./../images/train/p00.png\n")
    (tmp_path / "val.txt").write_text("images/val/p00.png\r\n\r\n")
    return tmp_path


def test_yolo_lists_of_images(yolo_lists, run, capsys):
    """``./`` is the folder of the list, other paths begin at that of ``data.yaml``."""
    run("--input", yolo_lists)
    assert "2 images in the format yolo, 1 to train and 1 to evaluate on" in (printed := capsys.readouterr().out)
    assert "note: 2 images are neither in train nor in val of data.yaml: left out" in printed
    for split in ("train", "val"):
        assert (yolo_lists / "out" / f"{split}.txt").read_text().split(",")[0] == f"../images/{split}/p00.png"


def test_yolo_lists_of_another_machine(yolo_lists, run, capsys):
    """The lists lie in the folder ``path``; its images have paths that are not here, but file names of their own."""
    for split in ("train", "val"):
        for kind, suffix in (("images", ".png"), ("labels", ".txt")):
            old = yolo_lists / kind / split / f"p00{suffix}"
            old.rename(old.with_stem(split))
    home = yolo_lists / "datasets" / "mine"
    home.mkdir(parents=True)
    (yolo_lists / "lists").rename(home / "lists")
    (home / "lists" / "train.txt").write_text("/content/datasets/mine/images/train/train.png\n")
    (yolo_lists / "val.txt").write_text("../datasets/mine/images/val/val.png\n")
    run("--input", yolo_lists / "data.yaml")
    assert "1 to train and 1 to evaluate on" in capsys.readouterr().out
    assert "images/train/train.png," in (yolo_lists / "out" / "train.txt").read_text()


@pytest.mark.parametrize(("name", "text", "told"), [
    ("val.txt", None, r"data\.yaml: its list of images 'val\.txt' is not below"),
    ("val.txt", "", r"val\.txt: names no image"),
    ("val.txt", "./images/val/none.png", r"val\.txt:1: the image .*none\.png' is not below"),
    ("val.txt", "images/p00.png", r"val\.txt:1: the image 'images/p00\.png' may be"),
    ("lists/train.txt", "../../../etc/passwd", r"train\.txt:1: the image '\.\./\.\./\.\./etc/passwd' is not below")])
def test_wrong_yolo_lists_are_named(yolo_lists, run, name, text, told):
    if text is None:
        (yolo_lists / name).unlink()
    else:
        (yolo_lists / name).write_text(text)
    with pytest.raises(DataError, match=told):
        run("--input", yolo_lists)


# Classes, splits, configuration.

def make_labelme(folder, count=10, labels=("road", "car"), **more):
    for i, path in enumerate(write_images(folder, count, **more)):
        labelme(path.with_suffix(".json"), [{"label": labels[i % len(labels)], "points": SQUARE}], None)


def test_classes_in_the_given_order(tmp_path, run):
    make_labelme(tmp_path / "d", labels=("road", "car", "cat"))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    found = run("--input", tmp_path / "d", "--classes", tmp_path / "labels.txt", "--ignore", "cat")
    assert [found[f"p{i:02d}"][10, 10] for i in range(3)] == [1, 2, 255]
    assert load_config(tmp_path / "out" / "out.yaml").data.class_names == ["_background_", "road", "car"]


def test_holes_that_labelme_calls_background(tmp_path, run):
    make_labelme(tmp_path / "d")
    labelme(tmp_path / "d" / "p00.json", [{"label": "road", "points": SQUARE}, {"label": "_background_", "points": [
        [8, 8], [12, 12]], "shape_type": "rectangle"}], None)
    found = run("--input", tmp_path / "d")
    assert load_config(tmp_path / "out" / "out.yaml").data.class_names == ["_background_", "car", "road"]
    expected = np.zeros(SIZE, np.uint8)
    expected[5:26, 4:21] = 2
    expected[8:13, 8:13] = 0
    assert np.array_equal(found["p00"], expected)


def test_pixels_without_a_shape_may_be_ignored_or_join_a_class(tmp_path, run):
    make_labelme(tmp_path / "d")
    run("--input", tmp_path / "d")
    assert [0, 0, 0] not in load_config(tmp_path / "out" / "out.yaml").data.palette
    found = run("--input", tmp_path / "d", "--ignore", "background", "--overwrite")
    assert set(found["p00"].ravel()) == {1, 255}
    found = run("--input", tmp_path / "d", "--background", "road", "--overwrite")
    assert set(found["p00"].ravel()) == {1}
    assert set(found["p01"].ravel()) == {0, 1}


def test_the_split_depends_on_the_seed_alone(tmp_path, run):
    make_labelme(tmp_path / "d")
    (tmp_path / "d" / "p09.png").write_bytes((tmp_path / "d" / "p00.png").read_bytes())
    draws = set()
    for seed in (1, 1, 2, 3, 4):
        run("--input", tmp_path / "d", "--seed", seed, "--val_share", 0.3, "--overwrite")
        train, val = ({row.split(",")[0][-7:] for row in (tmp_path / "out" / f"{split}.txt").read_text().split()}
                      for split in ("train", "val"))
        assert len(train | val) == 10
        assert not train & val
        assert 3 <= len(val) <= 4
        assert len({"p00.png", "p09.png"} & val) != 1        # equal photographs stay together
        draws.add((seed, *sorted(val)))
    assert len({draw[1:] for draw in draws}) > 1
    assert len(draws) == 4


@pytest.mark.parametrize(("size", "crop", "scale", "evaluated"), [
    (SIZE, [32, 32], None, None), ((360, 480), [352, 480], None, None), ((900, 600), [896, 512], None, None),
    ((1024, 2048), [512, 1024], None, None), ((1500, 2000), [512, 1024], 768, [768, 1024]),
    ((2000, 1500), [1024, 512], 768, [1024, 768])])
def test_sizes_of_the_configuration(tmp_path, rng, run, size, crop, scale, evaluated):
    for i in range(2):
        write_image(tmp_path / "d" / f"p{i}.jpg", random_image(rng, *size))
        labelme(tmp_path / "d" / f"p{i}.json", [{"label": "a", "points": SQUARE}], size, {"imagePath": f"p{i}.jpg"})
    run("--input", tmp_path / "d")
    cfg = load_config(tmp_path / "out" / "out.yaml")
    assert (cfg.data.crop_size, cfg.data.scale_base) == (crop, scale)
    if evaluated:
        assert cfg.eval.resize == {"rule": "long_side", "size": evaluated}
    else:
        assert (cfg.export.height, cfg.export.width) == size
    assert (cfg.model.num_classes, cfg.train.global_batch) == (2, 1)


def test_nothing_of_the_user_is_replaced(tmp_path, run):
    make_labelme(tmp_path / "d")
    before = {path: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    run("--input", tmp_path / "d")
    config = tmp_path / "out" / "out.yaml"
    config.write_text(config.read_text().replace("lr: 0.003", "lr: 0.001"))
    with pytest.raises(Exception, match="exists already"):
        run("--input", tmp_path / "d")
    assert load_config(config).optim.lr == 0.001
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(Exception, match="not written by mindseg"):
        run("--input", tmp_path / "d", "--output", tmp_path / "other")
    assert {path: path.read_bytes() for path in (tmp_path / "d").iterdir()} == before
