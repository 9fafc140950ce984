"""Lists of samples and folders of files: bad lines are refused with file and line, and nothing waits or hangs."""
import os
from pathlib import Path

import numpy as np
import pytest

from mindseg.commands import build_trainaug
from mindseg.data.datasets import list_samples
from mindseg.data.samples import check_name, read_lines
from tests.support.data import make_camvid, random_image, random_label, write_image
from tests.support.hostile import check_program_refuses, check_refused, files_below, run_program

CONFIG = ("--config", "configs/_base_/camvid.yaml")
PAIR = "train/f000.png,trainannot/f000.png\n"


@pytest.fixture
def root(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 2)
    return tmp_path / "d"


def data(root: Path, **more: object) -> dict:
    return {"name": "list", "root": str(root), "class_names": list("abcdefghijk"), "train_list": str(root / "l.txt"),
            **more}


# Content of a list, and the words of the refusal.
REFUSED = {
    "empty": (b"", "holds no samples"), "comments": (b"# a\n\n# b\n", "holds no samples"),
    "latin-1": ("train/\xe4.png,b.png\n".encode("latin-1"), "cannot read"), "utf-16": (PAIR.encode("utf-16"), "cannot"),
    "utf-32": (PAIR.encode("utf-32"), "cannot read"), "binary": (bytes(range(256)), "cannot read"),
    "surrogates": (b"\xed\xa0\x80,b\n", "cannot read"),
    "NUL in a name": (f"{PAIR}train/f\0.png,b.png\n".encode(), ":2: "), "NULs": (bytes(5000), ":1: "),
    "long line": (b"a" * 10 ** 7, ":1: "), "long names": (b"%s,%s\n" % (b"a" * 4000, b"b" * 4000), ":1: no such file"),
    "deep names": (b"%s,%s\n" % (b"a/" * 2400, b"b/" * 2400), ":1: no such file"),
    "three fields": (b"a,b,c\n", ":1: 'a,b,c' is not of the form"), "one field": (b"a.png\n", ":1: 'a.png' is not"),
    "many fields": (b"," * 9000, ":1: "), "a folder": (b"train,trainannot\n", ":1: no such file"),
    "the parent": (b"..,..\n", ":1: no such file"), "a pipe": (b"pipe.png,trainannot/f000.png\n", ":1: no such file"),
    "a device": (b"/dev/zero,/dev/zero\n", ":1: no such file"), "a loop": (b"loop.png,loop.png\n", ":1: no such file"),
    "a missing label": (b"train/f000.png,nothing.png\n", ":1: no such file"),
    "twice": ((PAIR * 2).encode(), "more than once"),
    "a name of a dot": (b"..png,trainannot/f000.png\n", ":1: the name '.' cannot be used"),
    "a name of two dots": (b"...png,trainannot/f000.png\n", ":1: the name '..' cannot be used"),
    "a drive": (b"C:x.png,trainannot/f000.png\n", ":1: the name 'C:x' cannot be used"),
    "a backslash": (b"..\\x.png,trainannot/f000.png\n", ":1: the name '..\\\\x' cannot be used"),
    "a control character": (b"a\x1bb.png,trainannot/f000.png\n", ":1: the name 'a\\x1bb' cannot be used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_lists(root, case):
    content, words = REFUSED[case]
    (root / "l.txt").write_bytes(content)
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe.png")
    for name in ("..png", "...png", "C:x.png", "..\\x.png", "a\x1bb.png"):
        (root / name).write_bytes(b"")
    check_refused(lambda: list_samples(data(root), "train"), words, *(["l.txt"] if case != "twice" else []))


@pytest.mark.parametrize("content", [PAIR, f"\ufeff{PAIR}", PAIR.replace("\n", "\r\n"), PAIR.replace(",", "\t"),
                                     f"# c\n\n {PAIR}", PAIR[:-1], f"./{PAIR}"])
def test_lists_that_are_read(root, content):
    (root / "l.txt").write_bytes(content.encode())
    sample, = list_samples(data(root), "train")
    assert (sample.name, sample.image) == ("f000", root / "train" / "f000.png")


def test_a_list_may_name_images_anywhere_and_results_stay_inside(root, tmp_path):
    """Absolute paths and ``..`` are read; the names of the samples have no part of them."""
    (tmp_path / "elsewhere").mkdir()
    (root / "train" / "f000.png").rename(tmp_path / "elsewhere" / "f001.png")
    (root / "l.txt").write_text(f"{tmp_path}/elsewhere/f001.png,../d/trainannot/f000.png\n"
                                "train/f001.png,trainannot/f001.png\n", encoding="utf-8")
    names = [sample.name for sample in list_samples(data(root), "train")]
    assert len(set(names)) == 2
    for name in names:
        assert (tmp_path / f"{name}.png").parent == tmp_path


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: path.symlink_to(path), lambda path: None],
                         ids=["folder", "pipe", "device", "loop", "missing"])
def test_lists_that_are_no_files(root, make):
    make(root / "l.txt")
    check_refused(lambda: list_samples(data(root), "train"), root / "l.txt")
    check_refused(lambda: read_lines(root / "l.txt"), root / "l.txt")
    check_refused(lambda: list_samples(data(root, train_list=None), "l"), root)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".", "..", "C:x", "a\\b", "a\nb", "a\0b", "\udcff",
                                  "x" * 1001])
def test_names_of_samples_that_are_refused(name):
    check_refused(lambda: check_name(name, "source"), "source", "name")


@pytest.mark.parametrize("name", ["a", "a b", "..a", "a..b", "-a", "=a", "ä€", "ab:c", "x" * 1000])
def test_names_of_samples_that_are_used(name):
    check_name(name, "source")


@pytest.mark.parametrize("name", [b"\xff.png", b"a\nb.png", b"a\\b.png"])
def test_names_of_files_in_folders(root, name):
    for part in ("train", "trainannot"):
        os.link(root / part / "f000.png", os.path.join(os.fsencode(root / part), name))
    message = check_refused(lambda: list_samples(data(root, train_list=None), "train"), "name")
    message.encode()        # can be printed anywhere


def make_voc(folder: Path, extra: str) -> tuple[Path, Path]:
    """VOC with one image in each list, and SBD with the id ``extra``."""
    rng = np.random.default_rng(0)
    voc, sbd = folder / "voc", folder / "sbd"
    for split, name in (("train", "a"), ("val", "b")):
        write_image(voc / "JPEGImages" / f"{name}.jpg", random_image(rng, 16, 16))
        write_image(voc / "SegmentationClass" / f"{name}.png", random_label(rng, 16, 16, [0]))
        (voc / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{name}\n", encoding="utf-8")
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text(f"{extra}\n", encoding="utf-8")
    (sbd / "val.txt").write_text("", encoding="utf-8")
    return voc, sbd


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "C:x", "a\\b", "a\x1bb"])
def test_ids_of_sbd(tmp_path, name):
    voc, sbd = make_voc(tmp_path, name)
    before = files_below(tmp_path)
    check_refused(lambda: build_trainaug.build(voc, sbd, tmp_path / "o.txt", tmp_path / "labels"), "train.txt:1",
                  "name")
    assert files_below(tmp_path) == before


def test_sbd_replaces_no_label_of_the_user(tmp_path, monkeypatch):
    voc, sbd = make_voc(tmp_path, "c")
    write_image(sbd / "img" / "c.jpg", np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(build_trainaug, "read_mat", lambda path: np.zeros((4, 4), np.uint8))
    own = tmp_path / "labels" / "c.png"
    own.parent.mkdir()
    own.write_bytes(b"mine")

    def build(**options):
        return build_trainaug.build(voc, sbd, tmp_path / "o.txt", tmp_path / "labels", **options)

    check_refused(build, own, "--overwrite")
    assert own.read_bytes() == b"mine"
    assert not (tmp_path / "o.txt").exists()
    assert build(overwrite=True) == (1, 1, 0)
    assert build() == (1, 1, 0)     # what it wrote itself it may replace


def test_labels_of_sbd_that_are_pipes(tmp_path):
    os.mkfifo(tmp_path / "x.mat")
    check_refused(lambda: build_trainaug.read_mat(tmp_path / "x.mat"), tmp_path / "x.mat")


def test_a_program_refuses_a_list(root, tmp_path):
    (root / "l.txt").write_bytes(REFUSED["a name of two dots"][0])
    (root / "...png").write_bytes(b"")
    before = files_below(tmp_path)
    done = run_program("pack", *CONFIG, "--root", root, "--list", root / "l.txt", "--output", tmp_path / "o" / "x")
    check_program_refuses(done, "l.txt:1", "'..'")
    assert files_below(tmp_path) == before


def test_check_dataset_prints_names_that_are_not_utf_8(root):
    """Its errors stand on stdout, which a name must not end."""
    for part in ("train", "trainannot"):
        os.link(root / part / "f000.png", os.path.join(os.fsencode(root / part), b"\xff.png"))
    done = run_program("check-dataset", *CONFIG, "--set", f"data.root={root}", "--split", "train")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "not UTF-8" in done.stdout
