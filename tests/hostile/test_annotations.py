"""Annotation files that are damaged, hostile or about other images: one line that names the file, and no harm."""
import json
import re

import numpy as np
import pytest

from mindseg.commands import import_labels
from mindseg.data.annotations import bounded
from mindseg.data.annotations.bounded import Problems
from mindseg.data.annotations.formats import read_collection
from mindseg.data.annotations.images import ImageFolder, read_size
from mindseg.data.annotations.rules import coco_rle
from mindseg.data.annotations.shapes import choose_ids
from mindseg.errors import DataError, UserError
from tests.support.annotations import SIZE, compress, labelme, runs, write_images
from tests.support.data import random_image, write_image
from tests.support.hostile import check_refused, files_below, run_program

HEIGHT, WIDTH = SIZE
SQUARE = [[4, 5], [20, 5], [20, 25], [4, 25]]
FLAT = [4, 5, 20, 5, 20, 25, 4, 25]


@pytest.fixture
def import_refused(monkeypatch, tmp_path):
    """Checks that an import is refused, with words in its message, and that it writes no configuration."""
    def check(*words, told=()):
        monkeypatch.setattr("sys.argv", ["mindseg import-labels", *map(str, words), "--output", str(tmp_path / "out")])
        message = check_refused(import_labels.main, *told)
        assert not list((tmp_path / "out").glob("*.yaml"))
        return message
    return check


# A file of LabelMe: what is wrong with its shape or with other keys, and the words of the refusal.
LABELME = {
    "two points": ({"points": SQUARE[:2]}, {}, "shape 1: has 2 points"),
    "NaN": ({"points": [*SQUARE, [float("nan"), 1]]}, {}, "coordinate nan is no number"),
    "infinity": ({"points": [*SQUARE, [1, float("inf")]]}, {}, "coordinate inf"),
    "a huge number": ({"points": [*SQUARE, [1, 10 ** 400]]}, {}, "is no number of pixels"),
    "a text": ({"points": [*SQUARE, ["1", 1]]}, {}, "coordinate '1'"),
    "true": ({"points": [*SQUARE, [True, 1]]}, {}, "coordinate True"),
    "three coordinates": ({"points": [[1, 2, 3]]}, {}, "no list of [x, y]"),
    "no points": ({"points": []}, {}, "shape 1"), "points are null": ({"points": None}, {}, "shape 1"),
    "far away": ({"points": [*SQUARE, [9000, 1]]}, {}, "lies far outside the image of 56x40"),
    "another kind": ({"shape_type": "spline" * 100}, {}, "the shape_type 'spline"),
    "a list as kind": ({"shape_type": [1]}, {}, "the shape_type [1]"),
    "no label": ({"label": None}, {}, "the label None"), "empty label": ({"label": "  "}, {}, "the label '  '"),
    "long label": ({"label": "x" * 10 ** 6}, {}, "the label 'xxx"), "control": ({"label": "a\x1bb"}, {}, "printable"),
    "no mask": ({"shape_type": "mask", "points": SQUARE[:2], "mask": None}, {}, "no base64"),
    "mask of text": ({"shape_type": "mask", "points": SQUARE[:2], "mask": "AAAA"}, {}, "cannot be decoded"),
    "shapes a number": ({}, {"shapes": 5}, "must be a list of objects"),
    "shapes of numbers": ({}, {"shapes": [1, 2]}, "must be a list of objects"),
    "another size": ({}, {"imageWidth": 9}, "was made for an image of 9x40, but"),
    "imagePath a number": ({}, {"imagePath": 5}, "imagePath is 5"),
    "another image": ({}, {"imagePath": "none.png"}, "'none.png' is not below"),
    "the parent": ({}, {"imagePath": "../secret.png"}, "'../secret.png' is not below"),
    "Windows": ({}, {"imagePath": "C:\\x\\secret.png"}, "is not below"),
    "NUL": ({}, {"imagePath": "a\0b.png"}, "is not below"),
    "long path": ({}, {"imagePath": "a" * 10 ** 5}, "is not below"),
}


@pytest.mark.parametrize("case", LABELME)
def test_labelme(tmp_path, import_refused, case):
    shape, more, told = LABELME[case]
    write_images(tmp_path / "d", 2)
    write_image(tmp_path / "secret.png", random_image(np.random.default_rng(0), *SIZE))
    labelme(tmp_path / "d" / "p00.json", [{"label": "a", "points": SQUARE}])
    labelme(tmp_path / "d" / "p01.json", [{"label": "a", "points": SQUARE, **shape}], more=more)
    import_refused("--input", tmp_path / "d", "--format", "labelme", told=(told, "p01.json", "--on_error skip"))


BROKEN = {"empty": b"", "cut off": b'{"shapes": [', "not JSON": b"\x89PNG", "a list": b"[1, 2]", "a number": b"7",
          "deep": b"[" * 10 ** 5, "deep objects": b'{"a":' * 10 ** 5,
          "UTF-16": '{"shapes": []}'.encode("utf-16") + b"x",
          "long number": b'{"shapes": ' + b"9" * 10 ** 5 + b"}", "another object": b'{"a": "' + b"b" * 10 ** 6 + b'"}'}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("form", ["auto", "labelme", "coco"])
def test_broken_json(tmp_path, import_refused, case, form):
    write_images(tmp_path / "d", 2)
    (tmp_path / "d" / "p00.json").write_bytes(BROKEN[case])
    import_refused("--input", tmp_path / "d" / "p00.json", "--format", form, told=("p00.json",))


def test_a_large_file_is_not_read(tmp_path, import_refused):
    (tmp_path / "d").mkdir()
    with open(tmp_path / "d" / "a.json", "wb") as stream:
        stream.truncate(bounded.LARGEST_FILE + 1)
    import_refused("--input", tmp_path / "d" / "a.json", told=("a.json", "is over 512 MiB"))


def polygon(*values, **more):
    return {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [list(values)], **more}


def rle(counts, size=SIZE):
    return polygon(segmentation={"size": list(size), "counts": counts})


# The second annotation of a COCO file, other keys of the file, and the words of the refusal.
COCO = {
    "a box": (polygon(4, 5, 20, 25), {}, "has 2 points"), "odd": (polygon(*FLAT, 1), {}, "no pairs of numbers"),
    "NaN": (polygon(*FLAT, float("nan"), 1), {}, "coordinate nan"),
    "no polygon": (polygon(segmentation=[]), {}, "no polygon"),
    "far away": (polygon(*FLAT, -900.5, 1), {}, "(-900.5, 1) lies far outside"),
    "null": (polygon(segmentation=None), {}, "segmentation is None"),
    "other image": (polygon(*FLAT, image_id=77), {}, "no image with the id 77"),
    "other category": (polygon(*FLAT, category_id=77), {}, "no category with the id 77"),
    "category a text": (polygon(*FLAT, category_id="1"), {}, "category_id is '1'"),
    "short runs": (rle([10, 20]), {}, "add up to 30 pixels, not to the 2240"),
    "long runs": (rle([0, 10 ** 9]), {}, "add up to 1000000000"), "negative runs": (rle([-1, 2241]), {}, "damaged"),
    "runs of fractions": (rle([0.5, 2239.5]), {}, "damaged"), "no runs": (rle(None), {}, "damaged"),
    "runs of another size": (rle([0, 400], (20, 20)), {}, "are of 20x20, but the image is 56x40"),
    "a size of texts": (rle([0, 400], ("a", "b")), {}, "damaged"), "empty text": (rle(""), {}, "add up to 0"),
    "text that goes on": (rle(compress([0, 2240])[:-1]), {}, "damaged"),
    "text without end": (rle("P" * 99999), {}, "damaged"),
    "strange text": (rle("\u20ac"), {}, "damaged"), "short text": (rle(compress([0, 2000])), {}, "add up to 2000"),
    "categories missing": (polygon(*FLAT), {"categories": None}, "categories: must be a list"),
    "images of numbers": (polygon(*FLAT), {"images": [1]}, "images: must be a list"),
    "an image twice": (polygon(*FLAT, image_id=0), {"images": [{"id": i, "file_name": "p00.png"} for i in (0, 1)]},
                       "is annotated twice"),
    "no file name": (polygon(*FLAT, image_id=0), {"images": [{"id": 0}]}, "file_name is None"),
}


@pytest.mark.parametrize("case", COCO)
def test_coco(tmp_path, import_refused, case):
    annotation, more, told = COCO[case]
    write_images(tmp_path / "d", 2)
    tree = {"images": [{"id": i, "file_name": f"p0{i}.png"} for i in range(2)], "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [FLAT]}, annotation]}
    (tmp_path / "d" / "a.json").write_text(json.dumps(tree | more))
    import_refused("--input", tmp_path / "d" / "a.json", told=(told,))


def test_damaged_texts_of_run_lengths_never_reach_the_decoder(rng):
    """Any text decodes to the whole mask or is refused; pycocotools would read beyond a text that goes on."""
    mask = rng.integers(0, 2, SIZE, np.uint8)
    good, refused = compress(runs(mask.T.ravel())), 0
    for _ in range(300):
        text = list(good)
        for _ in range(rng.integers(1, 4)):
            text[rng.integers(len(text))] = chr(rng.integers(32, 127))
        try:
            assert coco_rle({"size": list(SIZE), "counts": "".join(text)}, "f")(*SIZE).shape == SIZE
        except DataError:
            refused += 1
    assert refused > 200


# The content of an image of CVAT, and the words of the refusal.
CVAT = {
    "two points": ('<polygon label="a" points="1,2;3,4"/>', "has 2 points"),
    "NaN": ('<polygon label="a" points="1,2;3,4;nan,5"/>', "coordinate nan"),
    "words": ('<polygon label="a" points="1,2;3,4;x,5"/>', "coordinate 'x'"),
    "no points": ('<polygon label="a"/>', "image 'p01.png'"),
    "no label": ('<polygon points="1,2;3,4;5,5"/>', "label None"),
    "half a box": ('<box label="a" xtl="1" ytl="2" xbr="3"/>', "ybr: the coordinate None"),
    "infinity": ('<box label="a" xtl="1" ytl="2" xbr="3" ybr="inf"/>', "coordinate inf"),
    "short mask": ('<mask label="a" rle="3, 4" left="0" top="0" width="3" height="3"/>', "do not add up to the 3x3"),
    "mask outside": ('<mask label="a" rle="0, 9" left="55" top="0" width="3" height="3"/>', "does not fit into"),
    "negative run": ('<mask label="a" rle="-3, 12" left="0" top="0" width="3" height="3"/>', "are damaged"),
    "no runs": ('<mask label="a" left="0" top="0" width="3" height="3"/>', "are damaged"),
    "inverted ellipse": ('<ellipse label="a" cx="9" cy="9" rx="-3" ry="2"/>', "negative"),
    "another element": ('<star label="a"/>', "the shape is unknown"),
}


def cvat_text(content, before="", size=(WIDTH, HEIGHT)):
    return (f'<?xml version="1.0" encoding="utf-8"?>{before}<annotations><meta><task><labels><label><name>a</name>'
            '</label></labels></task></meta>' + "".join(
                f'<image id="{i}" name="p0{i}.png" width="{size[0]}" height="{size[1]}">{content if i else ""}</image>'
                for i in range(2)) + "</annotations>")


@pytest.mark.parametrize("case", CVAT)
def test_cvat(tmp_path, import_refused, case):
    content, told = CVAT[case]
    write_images(tmp_path / "d", 2)
    (tmp_path / "d" / "a.xml").write_text(cvat_text(content))
    import_refused("--input", tmp_path / "d" / "a.xml", told=(told, "a.xml"))


BOMB = ('<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("bcdefghi", "abcdefgh", strict=True)) + "]>")
XML = {
    "entities": (cvat_text("&i;", BOMB), "DOCTYPE"),
    "a file": (cvat_text("&x;", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "DOCTYPE"),
    "deep": ("<a>" * 10 ** 5, "over 64 levels"), "cut off": (cvat_text("")[:-5], "is no XML"),
    "empty": ("", "is no XML"),
    "binary": ("\x00\x01", "is no XML"), "another root": ("<html/>", "is no annotation of images"),
    "a video": ("<annotations><track/></annotations>", "CVAT for images 1.1"),
    "no image": ("<annotations/>", "no annotated"),
    "an unknown encoding": ('<?xml version="1.0" encoding="x-y"?><annotations/>', "is no XML"),
    "an unknown entity": (cvat_text("&nothing;"), "is no XML"),
    "another size": (cvat_text('<box label="a" xtl="1" ytl="2" xbr="9" ybr="9"/>', size=(9, 9)),
    "was made for an image of"),
    "a size of words": (cvat_text('<box label="a" xtl="1" ytl="2" xbr="9" ybr="9"/>', size=("a", 9)), "width"),
}


@pytest.mark.parametrize("case", XML)
def test_xml(tmp_path, import_refused, case):
    content, told = XML[case]
    write_images(tmp_path / "d", 2)
    (tmp_path / "d" / "a.xml").write_text(content)
    import_refused("--input", tmp_path / "d" / "a.xml", told=(told, "a.xml"))


# Lines of a YOLO file, and the words of the refusal.
YOLO = {
    "a box": ("0 0.5 0.5 0.1 0.1", "is a box"), "two points": ("0 0.1 0.1", "has 1 points"),
    "words": ("a b c", "no class number"),
    "odd": ("0 .1 .1 .2 .2 .3 .3 .4", "odd number"), "NaN": ("0 .1 .1 .2 .2 nan .3", "no number"),
    "pixels": ("0 10 10 20 10 20 20", "not between 0 and 1"),
    "negative": ("0 .1 .1 .2 -.2 .3 .3", "-0.2 is not between"),
    "another class": ("7 .1 .1 .2 .2 .3 .1", "'class 7'"), "binary": ("\x00\x01", "no class number"),
}


@pytest.mark.parametrize("case", YOLO)
def test_yolo(tmp_path, import_refused, case):
    content, told = YOLO[case]
    write_images(tmp_path / "images", 2)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "p00.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    (tmp_path / "labels" / "p01.txt").write_text(content)
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    import_refused("--input", tmp_path, told=(told,))


def test_masks(tmp_path, import_refused, rng):
    write_images(tmp_path / "i", 2)
    folder = ("--input", tmp_path / "m", "--images", tmp_path / "i")
    good = np.zeros((*SIZE, 3), np.uint8)
    good[5:] = 9, 8, 7
    write_image(tmp_path / "m" / "p00.png", good)
    import_refused(*folder[:2], told=("give the folder of their images with --images",))
    for pixels, told in ((rng.integers(0, 256, (*SIZE, 3), np.uint8), "colours, so it was stored with losses"),
                         (good[:-3], "has 56x37 pixels, but its image has 56x40"),
                         (good[..., 0], "one after the other"),
                         (good.astype(np.uint16) * 256, "must hold 8-bit colours")):
        write_image(tmp_path / "m" / "p01.png", pixels)
        import_refused(*folder, told=(told, "p01.png"))
    write_image(tmp_path / "m" / "p01.png", good)
    for table, told in (("a:1,2", ":1"), ("a:1,2,3\nb:1,2,300", ":2"), ("a:1,2,3\na:1,2,4", "occurs twice"),
                        ("a:1,2,3\nb:1,2,3", "occurs twice"), ("a:0,0,0\nb:9,9,9", "'(7, 8, 9)'")):
        (tmp_path / "t.txt").write_text("name,r,g,b\n" + table if told == "'(7, 8, 9)'" else table + "\n")
        if table == "a:1,2":        # the only line: it may be a heading, so that the table is empty
            (tmp_path / "t.txt").write_text("a:0,0,0\n" + table)
            told = ":2"
        import_refused(*folder, "--colors", tmp_path / "t.txt", told=(told,))
    (tmp_path / "m" / "p01.png").write_bytes(b"\xff\xd8\xff" + bytes(99))
    import_refused(*folder, told=("p01.png", "JPEG"))


def test_labels_of_no_class_are_listed_but_not_at_length(tmp_path, import_refused):
    for i, path in enumerate(write_images(tmp_path / "d", 2)):
        labelme(path.with_suffix(".json"), [{"label": f"{i}{k:03d}{'x' * 90}", "points": SQUARE} for k in range(300)])
    message = import_refused("--input", tmp_path / "d", "--classes", "car", "cat",
                             told=("600 labels are in no class: '", "and 597 more", "'car', 'cat'"))
    assert len(message) < 800
    import_refused("--input", tmp_path / "d", told=("601 classes", "2 to 254"))


def test_one_class_or_one_image_is_too_little(tmp_path, import_refused):
    for path in write_images(tmp_path / "d", 1):
        labelme(path.with_suffix(".json"), [{"label": "a", "points": SQUARE}])
    import_refused("--input", tmp_path / "d", "--ignore", "background", told=("1 classes ('a')",))
    import_refused("--input", tmp_path / "d", "--ignore", "b", told=("no label is called 'b'; there are 'a'",))
    import_refused("--input", tmp_path / "d", told=("1 different images were annotated",))


def test_folders_that_cannot_be_read(tmp_path, import_refused):
    (tmp_path / "d").mkdir()
    import_refused("--input", tmp_path / "d", told=("holds no annotations",))
    import_refused("--input", tmp_path / "none", told=("none",))
    import_refused("--input", tmp_path / "task.zip", told=("task.zip: is an archive; unpack it",))
    write_images(tmp_path / "d", 1)
    labelme(tmp_path / "d" / "p00.json", [])
    import_refused("--input", tmp_path / "d", told=("not one shape",))
    import_refused("--input", tmp_path / "d", "--images", tmp_path / "none", told=("no such folder of images",))


def test_the_output_is_never_the_input(tmp_path, monkeypatch):
    write_images(tmp_path / "d", 2)
    for i in range(2):
        labelme(tmp_path / "d" / f"p0{i}.json", [{"label": "a", "points": SQUARE}])
    before = files_below(tmp_path)
    for output in (tmp_path / "d", tmp_path):
        monkeypatch.setattr("sys.argv", ["x", "--input", str(tmp_path / "d"), "--output", str(output), "--overwrite"])
        check_refused(import_labels.main, "choose another --output")
    assert files_below(tmp_path) == before


def test_broken_images_are_left_out_on_request(tmp_path):
    images = write_images(tmp_path / "d", 7)
    for path in images:
        labelme(path.with_suffix(".json"), [{"label": "a", "points": SQUARE}])
    (tmp_path / "d" / "p00.json").write_text("{")
    labelme(tmp_path / "d" / "p01.json", [{"label": "a", "points": SQUARE[:1]}])
    images[2].write_bytes(b"")
    images[3].unlink()
    words = ("--input", tmp_path / "d", "--output", tmp_path / "out")
    done = run_program("import-labels", *words, "--on_error", "skip")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 4
    assert all(any(f"p0{i}." in line for line in lines) for i in range(4)), lines
    assert f"{tmp_path / 'out'}: 3 images" in done.stdout
    done = run_program("import-labels", *words, "--overwrite")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")


ODD = [None, True, -1, 0, 3, 10 ** 30, 0.5, -1e308, float("nan"), "", "x", "\0", "..", "p01.png", [], [1], [[]], {},
       {"a": 1}, [None] * 9]


def places(tree, path=()):
    """Paths to all values of a JSON tree."""
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def read_and_paint(kind, source, images):
    """Does what an import does before it writes; only a UserError of one line may come of it, which is returned."""
    try:
        collection = read_collection(kind, source, Problems())
        _, ids = choose_ids(collection, [], [], "background", str(source))
        for annotation in collection.annotations:
            size = read_size(images.find(annotation.image, annotation.source, annotation.near), annotation.size, "f")
            label, _ = annotation.paint(*size, ids, 0)
            assert (label.shape, label.dtype) == (size, np.uint8)
    except UserError as error:
        message = str(error)
    else:
        return ""
    assert message
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_every_value_of_a_json_file_may_be_anything(tmp_path, kind):
    write_images(tmp_path, 2)
    images, source = ImageFolder(tmp_path), tmp_path / "p00.json"
    if kind == "labelme":
        labelme(source, [{"label": "a", "points": SQUARE},
                         {"label": "b", "points": SQUARE[:2], "shape_type": "circle"}])
    else:
        source.write_text(json.dumps({
            "images": [{"id": 1, "file_name": "p00.png", "height": HEIGHT, "width": WIDTH}],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
            "annotations": [polygon(*FLAT), rle([40, 2200]), rle(compress([40, 2200]))]}))
    assert read_and_paint(kind, source, images) == ""
    good, refused = source.read_text(), 0
    for number, path in enumerate(path for path in places(json.loads(good)) if path):
        for value in ODD[number % 3::3]:        # a third for each place, so that the test stays short
            tree = parent = json.loads(good)
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            source.write_text(json.dumps(tree))
            refused += read_and_paint(kind, source, images) != ""
    assert refused > 100


def test_every_attribute_of_an_xml_file_may_be_anything(tmp_path):
    write_images(tmp_path, 2)
    images, source = ImageFolder(tmp_path), tmp_path / "a.xml"
    good = cvat_text('<box label="a" xtl="1" ytl="2" xbr="9" ybr="9" rotation="10" z_order="1"/>'
                     '<mask label="a" rle="3, 6" left="0" top="0" width="3" height="3"/>'
                     '<polygon label="a" points="1,2;3,4;5,9"/>'
                     '<ellipse label="a" cx="9" cy="9" rx="3" ry="2"/>')
    parts, refused = re.split('(="[^"]*")', good), 0
    for i in range(3, len(parts), 2):       # the first is the version of XML
        for value in ("", "x", "-1", "nan", "1e308", "9" * 400, "1,2", "1;2,3", "0", "../p01.png", "&amp;", "²"):
            source.write_text("".join([*parts[:i], f'="{value}"', *parts[i + 1:]]))
            refused += read_and_paint("cvat", source, images) != ""
    assert refused > 150
