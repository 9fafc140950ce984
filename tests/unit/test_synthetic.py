"""The synthetic data sets: encoding, layout, reproducibility, and the command that makes them."""
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mindseg.data.datasets import CITYSCAPES, VOC, list_samples
from mindseg.errors import DataError
from tools.synthetic import (
    CITIES,
    VERSION,
    make_street,
    make_voc,
    street_name,
    voc_name,
    write_street,
    write_voc,
    write_voc_lists,
)
from tools.synthetic.canvas import Label

INSTANCE_IDS = range(24, 34)


def digest(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("size", [(64, 128), (90, 160), (200, 130)])
def test_street_encoding(rng, size):
    street = make_street(int(rng.integers(1 << 30)), "train", int(rng.integers(100)), *size)
    assert street.image.shape == (*size, 3)
    assert street.image.dtype == street.label_ids.dtype == np.uint8
    assert street.instance_ids.dtype == np.uint16
    assert street.label_ids.max() <= 33
    things = street.instance_ids >= 1000
    assert things.any()
    np.testing.assert_array_equal(street.instance_ids[things] // 1000, street.label_ids[things])
    np.testing.assert_array_equal(street.instance_ids[~things], street.label_ids[~things])
    assert set(np.unique(street.label_ids[things])) <= set(INSTANCE_IDS)


def test_street_is_a_function_of_seed_split_index():
    def image(*key):
        return make_street(*key, 64, 128).image

    first = image(3, "train", 5)
    np.testing.assert_array_equal(first, image(3, "train", 5))
    for other in ((4, "train", 5), (3, "val", 5), (3, "train", 6)):
        assert (image(*other) != first).mean() > 0.5, other


def test_few_streets_hold_every_class(rng):
    seed = int(rng.integers(1 << 30))
    ids = np.concatenate([make_street(seed, "val", i, 128, 256).label_ids.ravel() for i in range(6)])
    counts = np.bincount(ids, minlength=34)
    missing = [CITYSCAPES.classes[k] for k, label in enumerate(CITYSCAPES.train_to_id) if counts[label] == 0]
    assert not missing, f"seed {seed}"
    void = set(range(34)) - set(CITYSCAPES.train_to_id)
    assert len([label for label in void if counts[label]]) >= 4
    street, sky = counts[7] / ids.size, counts[23] / ids.size
    assert 0.1 < street < 0.5
    assert 0.02 < sky < 0.4


def test_streets_make_sense_and_can_be_told_apart(rng):
    """Sky is above the road; a classifier of colour and row alone is better than chance but far from perfect."""
    streets = [make_street(1, "train", i, 96, 192) for i in range(6)]
    rows = np.broadcast_to(np.arange(96)[:, None], (96, 192))
    for street in streets:
        assert rows[street.label_ids == 23].mean() < rows[street.label_ids == 7].mean() - 20
    features = np.concatenate([np.concatenate([s.image.reshape(-1, 3), rows.reshape(-1, 1)], 1) for s in streets])
    labels = np.concatenate([s.label_ids.ravel() for s in streets])
    train, test = rng.permutation(len(labels))[:4000].reshape(2, 2000)
    distance = ((features[test][:, None].astype(int) - features[train][None]) ** 2).sum(-1)
    accuracy = (labels[train][distance.argmin(1)] == labels[test]).mean()
    assert 0.45 < accuracy < 0.95


def test_label_ids_are_the_official_ones():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    official = {label.id: label.name for label in labels}
    for label in Label:
        assert label.name.lower().replace("_", " ") in official[label]
    assert [label.id for label in labels if label.hasInstances and label.id >= 0] == list(INSTANCE_IDS)


def test_street_files(tmp_path):
    for split, index in (("train", 9), ("val", 0), ("test", 1)):
        write_street(tmp_path, 0, split, index, 64, 128)
    name = street_name("train", 9)
    city = name.split("_")[0]
    assert name == f"{CITIES['train'][1]}_000001_000019"
    street = make_street(0, "train", 9, 64, 128)
    labels = tmp_path / "gtFine" / "train" / city
    image = cv2.imread(str(tmp_path / "leftImg8bit" / "train" / city / f"{name}_leftImg8bit.png"))
    np.testing.assert_array_equal(image[..., ::-1], street.image)
    ids = cv2.imread(str(labels / f"{name}_gtFine_labelIds.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ids, street.label_ids)
    instances = cv2.imread(str(labels / f"{name}_gtFine_instanceIds.png"), cv2.IMREAD_UNCHANGED)
    assert instances.dtype == np.uint16
    np.testing.assert_array_equal(instances, street.instance_ids)
    test_ids = next((tmp_path / "gtFine" / "test").rglob("*_labelIds.png"))
    assert set(np.unique(cv2.imread(str(test_ids), cv2.IMREAD_UNCHANGED))) <= {1, 2, 3}
    samples = list_samples({"name": "cityscapes", "root": str(tmp_path)}, "train")
    assert [sample.name for sample in samples] == [name]


def test_splits_share_no_city():
    assert not set(CITIES["train"]) & set(CITIES["val"])
    assert not set(CITIES["val"]) & set(CITIES["test"])


def test_voc_encoding(rng):
    seed = int(rng.integers(1 << 30))
    pictures = [make_voc(seed, "train", i, 96, 128) for i in range(7)]
    counts = sum(np.bincount(class_ids.ravel(), minlength=256) for _, class_ids, _ in pictures)
    assert all(counts[:21] > 0), f"seed {seed}: {counts[:21]}"
    assert counts[255] > 0
    assert counts[21:255].sum() == 0
    assert len({image.shape for image, _, _ in pictures}) > 1
    for image, class_ids, object_ids in pictures:
        assert image.shape == (*class_ids.shape, 3)
        assert object_ids.shape == class_ids.shape
        assert image.dtype == class_ids.dtype == object_ids.dtype == np.uint8
        np.testing.assert_array_equal(class_ids == 0, object_ids == 0)
        np.testing.assert_array_equal(class_ids == 255, object_ids == 255)
        for number in np.unique(object_ids[object_ids != 255]):
            assert len(np.unique(class_ids[object_ids == number])) == 1


def test_voc_files(tmp_path):
    counts = {"train": 2, "val": 1, "test": 1}
    for split, count in counts.items():
        for index in range(count):
            write_voc(tmp_path, 0, split, index, 64, 128)
    write_voc_lists(tmp_path, counts)
    lists = tmp_path / "ImageSets" / "Segmentation"
    assert (lists / "trainval.txt").read_text().split() == ["2012_000000", "2012_000001", "2012_100000"]
    with Image.open(tmp_path / "SegmentationClass" / f"{voc_name('val', 0)}.png") as label:
        assert label.mode == "P"
        np.testing.assert_array_equal(np.asarray(label), make_voc(0, "val", 0, 64, 128)[1])
        palette = np.array(label.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette[:21], VOC.palette)
    assert palette[255].tolist() == [224, 224, 192]
    assert not (tmp_path / "SegmentationClass" / f"{voc_name('test', 0)}.png").exists()
    samples = list_samples({"name": "voc", "root": str(tmp_path)}, "train")
    assert [sample.name for sample in samples] == ["2012_000000", "2012_000001"]


def test_size_limits():
    with pytest.raises(DataError, match="63x128"):
        make_street(0, "train", 0, 63, 128)
    with pytest.raises(DataError, match="5000"):
        make_voc(0, "train", 0, 100, 5000)


class TestTool:
    """``tools/make_synthetic.py`` as a user runs it."""

    ARGS = ("--num", 2, "--num_val", 1, "--num_test", 0, "--height", 64, "--width", 128)

    @pytest.mark.parametrize("dataset", ["cityscapes", "voc"])
    def test_same_seed_same_bytes(self, run_cli, tmp_path, dataset):
        for name, workers in (("one", 1), ("two", 2)):
            done = run_cli("tools/make_synthetic.py", "--dataset", dataset, "--output", tmp_path / "a b" / name,
                           *self.ARGS, "--workers", workers)
            assert done.returncode == 0, done.stderr
        first = digest(tmp_path / "a b" / "one")
        assert first == digest(tmp_path / "a b" / "two")
        assert len(first) == (3 * 3 + 1 if dataset == "cityscapes" else 3 * 3 + 4 + 1)
        settings = json.loads((tmp_path / "a b" / "one" / "synthetic.json").read_text())
        assert (settings["train"], settings["version"]) == (2, VERSION)
        assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == ["one", "two"]

    def test_never_touches_other_data(self, run_cli, tmp_path):
        out = tmp_path / "mine"
        out.mkdir()
        (out / "thesis.txt").write_text("x")
        for extra in ((), ("--overwrite",)):
            done = run_cli("tools/make_synthetic.py", "--output", out, *self.ARGS, *extra)
            assert done.returncode == 1
            assert done.stderr.startswith("error: ")
            assert str(out) in done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert [path.name for path in out.iterdir()] == ["thesis.txt"]
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_overwrite_replaces_its_own(self, run_cli, tmp_path):
        out = tmp_path / "set"
        for seed, extra in ((0, ()), (1, ("--overwrite",))):
            done = run_cli("tools/make_synthetic.py", "--output", out, *self.ARGS, "--seed", seed, *extra)
            assert done.returncode == 0, done.stderr
        assert json.loads((out / "synthetic.json").read_text())["seed"] == 1
        assert [path.name for path in tmp_path.iterdir()] == ["set"]

    def test_keep_makes_only_what_is_missing_and_no_file_of_the_user_goes(self, run_cli, tmp_path):
        out = tmp_path / "set"
        assert run_cli("tools/make_synthetic.py", "--output", out, *self.ARGS, "--keep").returncode == 0
        before = (out / "synthetic.json").stat().st_mtime_ns
        assert "kept" in run_cli("tools/make_synthetic.py", "--output", out, *self.ARGS, "--keep").stdout
        assert (out / "synthetic.json").stat().st_mtime_ns == before
        (out / "thesis.txt").write_text("x")
        done = run_cli("tools/make_synthetic.py", "--output", out, *self.ARGS, "--seed", 5, "--keep")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "thesis.txt" in done.stderr
        assert (out / "thesis.txt").read_text() == "x"

    @pytest.mark.parametrize(("words", "names"), [(("--height", 32, "--width", 64), "32x64"), (("--num", -1), "--num"),
                                                  (("--seed", -5), "-5")])
    def test_bad_input_is_one_line(self, run_cli, tmp_path, words, names):
        done = run_cli("tools/make_synthetic.py", "--output", tmp_path / "x", *words)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert names in done.stderr
        assert not any(tmp_path.iterdir())
