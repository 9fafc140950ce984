"""The same samples for any number of workers, ranks and restarts, from folders and from MindRecord."""
import gc
import hashlib
import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mindseg.data import jpeg
from mindseg.data.datasets import CITYSCAPES, VOC, list_samples
from mindseg.data.labels import IGNORE
from mindseg.data.loader import create_loader
from mindseg.data.mindrecord import Packing, build_records
from mindseg.data.pipeline import Pipeline
from mindseg.data.sources import FolderSource, choose_lut
from mindseg.data.transforms import TrainTransform
from mindseg.errors import DataError
from tests.support.data import (
    collect,
    config,
    make_camvid,
    make_cityscapes,
    random_image,
    random_label,
    train_loader,
    write_image,
    write_palette,
)

CUT_ROWS = jpeg.cut_rows


def pack(root, output, split="train", base="camvid", **packing):
    """Packs a split of a toy data set; returns the output."""
    cfg = config(base, root)
    samples = list_samples(cfg.data, split)
    info = create_loader(cfg, "train" if split == "train" else "eval").info
    build_records(samples, output, info, choose_lut(info, FolderSource(samples)), Packing(**packing), {})
    return output


def test_batches(tmp_path, rng):
    names = make_camvid(tmp_path, rng, 10)
    loader = train_loader("camvid", tmp_path)
    assert (loader.num_samples, loader.steps_per_epoch) == (10, 3)
    batches = list(loader.epoch(0))
    for batch in batches:
        assert batch["image"].shape == (4, 32, 48, 3)
        assert batch["label"].shape == (4, 32, 48)
        assert batch["image"].dtype == batch["label"].dtype == np.uint8
        assert set(np.unique(batch["label"])) <= {*range(11), IGNORE}
    seen = [name for batch in batches for name in batch["names"]]
    assert set(seen) == set(names)                  # every sample once, then two more to fill the last batch
    assert len(seen) == 12
    assert set(seen[:10]) == set(names)


def test_epochs_differ_and_seeds_differ(tmp_path, rng):
    make_camvid(tmp_path, rng, 8)
    first, second = collect(train_loader("camvid", tmp_path), 0), collect(train_loader("camvid", tmp_path), 1)
    assert [r[0] for r in first] != [r[0] for r in second]
    assert set(first).isdisjoint(second)            # other crops, too
    assert collect(train_loader("camvid", tmp_path), 0) == first
    assert set(collect(train_loader("camvid", tmp_path, "runtime.seed=2"), 0)).isdisjoint(first)


def test_same_stream_for_any_number_of_workers(tmp_path, rng):
    make_camvid(tmp_path, rng, 40)
    options = ("data.photometric=true", "data.blur_prob=0.5", "data.cat_max_ratio=0.75")
    streams = [collect(train_loader("camvid", tmp_path, f"data.num_workers={n}", f"data.prefetch={p}", *options), 0, 1)
               for n, p in ((1, 1), (2, 4), (4, 2))]
    assert len(streams[0]) >= 64
    assert streams[0] == streams[1] == streams[2]


def test_opencv_starts_no_threads_in_any_worker(tmp_path, rng, monkeypatch):
    make_camvid(tmp_path, rng, 8)
    found, transform = [], TrainTransform.__call__

    def note(self, *args):
        found.append(cv2.getNumThreads())
        return transform(self, *args)

    monkeypatch.setattr(TrainTransform, "__call__", note)
    cv2.setNumThreads(4)
    collect(train_loader("camvid", tmp_path, "data.num_workers=2"), 0)
    assert len(found) >= 8
    assert set(found) == {1}


def test_same_stream_in_another_process(tmp_path, rng):
    make_camvid(tmp_path, rng, 6)
    program = ("import sys, hashlib\n"
               "from pathlib import Path\n"
               "from tests.support.data import collect, train_loader\n"
               "rows = collect(train_loader('camvid', Path(sys.argv[1])), 3)\n"
               "print(hashlib.sha256(repr(rows).encode()).hexdigest())")
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True,
                           check=True)
    rows = collect(train_loader("camvid", tmp_path), 3)
    assert child.stdout.split()[-1] == hashlib.sha256(repr(rows).encode()).hexdigest()


@pytest.mark.parametrize("size", [2, 4])
def test_union_of_ranks_is_the_stream_of_one(tmp_path, rng, size):
    make_camvid(tmp_path, rng, 10)
    whole = collect(train_loader("camvid", tmp_path), 0, 1)
    parts = [collect(train_loader("camvid", tmp_path, rank=r, size=size), 0, 1) for r in range(size)]
    each = 4 // size
    joined = [row for step in range(len(parts[0]) // each) for part in parts for row in part[step * each:][:each]]
    assert joined == whole


def test_resumed_stream_is_the_uninterrupted_one(tmp_path, rng):
    make_camvid(tmp_path, rng, 10)
    whole = collect(train_loader("camvid", tmp_path), 0, 1, 2, 3, 4)
    resumed = train_loader("camvid", tmp_path)
    assert collect(resumed, 3, 4) == whole[36:]
    # In the middle of an epoch, after a run that stopped there.
    stopped = train_loader("camvid", tmp_path)
    iterator = stopped.epoch(1)
    next(iterator)
    assert collect(stopped, 1, start_step=1) == whole[16:24]
    assert collect(train_loader("camvid", tmp_path), 1, start_step=2) == whole[20:24]
    assert collect(stopped, 1, start_step=3) == []
    assert collect(stopped, 0) == whole[:12]


def test_small_sets_and_repeats(tmp_path, rng):
    names = make_camvid(tmp_path, rng, 3)
    loader = train_loader("camvid", tmp_path, batch_size=8)
    rows = collect(loader, 0)
    assert len(rows) == 8
    assert len(set(rows)) == 8                     # a sample that comes again is augmented anew
    twice = train_loader("camvid", tmp_path, "data.repeat=4", batch_size=2)
    assert twice.steps_per_epoch == 6
    assert sorted(r[0] for r in collect(twice, 0)) == sorted(names * 4)


def test_record_equals_folder(tmp_path, rng):
    """One file, four shards in random order, and lossless WebP give the stream of the folders."""
    make_camvid(tmp_path / "d", rng, 9)
    root = tmp_path / "d"
    truth = collect(train_loader("camvid", root, "data.repeat=2"), 0, 1)
    for name, packing in (("one", {}), ("four", {"num_shards": 4, "shuffle_seed": 5}),
                          ("webp", {"codec": "webp", "fast_labels": True})):
        output = pack(root, tmp_path / f"{name}.mindrecord", **packing)
        assert collect(train_loader("camvid", root, f"data.mindrecord={output}", "data.repeat=2"), 0, 1) == truth


def test_jpeg_rows_give_the_stream_of_whole_images(tmp_path, rng, monkeypatch):
    make_camvid(tmp_path / "d", rng, 6, size=(200, 300))
    output = pack(tmp_path / "d", tmp_path / "x.mindrecord", codec="jpeg")
    cuts = []

    def stream(cut_rows, *more):
        monkeypatch.setattr(jpeg, "cut_rows", lambda *args: cuts.append(cut_rows(*args)) or cuts[-1])
        return collect(train_loader("camvid", tmp_path / "d", f"data.mindrecord={output}", *more), 0, 1)

    rows = stream(CUT_ROWS)
    assert None not in cuts
    assert rows == stream(CUT_ROWS, "data.num_workers=1")
    assert rows == stream(lambda *args: None)


def test_record_moved_and_without_description(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 5)
    output = pack(tmp_path / "d", tmp_path / "x.mindrecord", num_shards=2)
    truth = collect(train_loader("camvid", tmp_path / "d"), 0)
    moved = tmp_path / "else where"
    moved.mkdir()
    for file in tmp_path.glob("x.mindrecord*"):
        file.rename(moved / file.name)
    loader = train_loader("camvid", tmp_path / "d", f"data.mindrecord={moved / output.name}")
    assert collect(loader, 0) == truth
    (moved / "x.mindrecord.json").unlink()
    assert {r[0] for r in collect(train_loader("camvid", tmp_path / "d", f"data.mindrecord={moved / output.name}"), 0)
            } == {r[0] for r in truth}


@pytest.mark.parametrize("packed", [False, True])
def test_label_ids_and_train_ids_give_the_same_batches(tmp_path, rng, packed):
    make_cityscapes(tmp_path / "d", rng, kinds=("labelIds", "labelTrainIds"))
    streams = []
    for kind in ("labelIds", "labelTrainIds"):
        root = tmp_path / kind
        for label in (tmp_path / "d" / "gtFine").rglob(f"*{kind}.png"):
            # The name of the other kind: the values alone must tell.
            place = root / label.relative_to(tmp_path / "d")
            write_image(place.with_name(place.name.replace(kind, "labelIds")), cv2.imread(str(label), -1))
        (root / "leftImg8bit").symlink_to(tmp_path / "d" / "leftImg8bit")
        more = [f"data.mindrecord={pack(root, tmp_path / f'{kind}.mr', base='cityscapes')}"] if packed else []
        streams.append(collect(train_loader("cityscapes", root, *more), 0))
    assert streams[0] == streams[1]
    values = {v for row in streams[0] for v in np.unique(np.frombuffer(row[2], np.uint8))}
    assert values <= {0, 1, 2, 8, 10, 13, 18, IGNORE}
    assert {0, 13, IGNORE} <= values


def test_voc_palette_and_border(tmp_path, rng):
    root = tmp_path / "VOC2012"
    truth = {}
    for name in ("a", "b"):
        ids = random_label(rng, 40, 56, [0, 7, 20])
        ids[::8] = 255
        write_image(root / "JPEGImages" / f"{name}.jpg", random_image(rng, 40, 56))
        write_palette(root / "SegmentationClass" / f"{name}.png", ids)
        truth[name] = ids
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n", encoding="utf-8")
    loader = create_loader(config("voc", root), "eval")
    assert loader.info is VOC
    for batch in loader.samples():
        assert np.array_equal(batch["label"][0], truth[batch["names"][0]])


def test_evaluation_sees_every_image_once_as_it_is(tmp_path, rng):
    sizes = [(48, 64), (48, 64), (40, 72), (48, 64), (48, 64), (48, 64), (48, 64)]
    for i, size in enumerate(sizes):
        write_image(tmp_path / "val" / f"{i}.png", random_image(rng, *size))
        write_image(tmp_path / "valannot" / f"{i}.png", random_label(rng, *size, list(range(12))))
    cfg = config("camvid", tmp_path)
    loader = create_loader(cfg, "eval", batch_size=3)
    batches = list(loader.samples())
    assert [b["names"] for b in batches] == [["0", "1"], ["2"], ["3", "4", "5"], ["6"]]
    for batch in batches:
        for name, image, label in zip(batch["names"], batch["image"], batch["label"], strict=True):
            assert np.array_equal(image[..., ::-1], cv2.imread(str(tmp_path / "val" / f"{name}.png")))
            raw = cv2.imread(str(tmp_path / "valannot" / f"{name}.png"), -1)
            assert np.array_equal(label, np.where(raw == 11, IGNORE, raw))
    for size in (1, 2, 3, 9):
        names = [n for r in range(size) for b in create_loader(cfg, "eval", r, size).samples() for n in b["names"]]
        assert sorted(names) == [str(i) for i in range(7)]
    bgr = create_loader(config("camvid", tmp_path, "data.color_order=BGR"), "eval", batch_size=3)
    assert np.array_equal(next(iter(bgr.samples()))["image"], batches[0]["image"][..., ::-1])
    assert [b["names"] for b in loader.samples()] == [b["names"] for b in batches]      # and again


def test_bad_label_value_never_reaches_training(tmp_path, rng):
    make_camvid(tmp_path, rng, 6)
    ids = random_label(rng, 48, 64, list(range(11)))
    ids[0, :31] = 12                               # 31 of 3072 pixels
    write_image(tmp_path / "trainannot" / "f004.png", ids)
    loader = train_loader("camvid", tmp_path, batch_size=1)
    seen = []
    with pytest.raises(DataError) as caught:
        seen.extend(batch["names"][0] for batch in loader.epoch(0))
    assert "f004" not in seen
    text = str(caught.value)
    assert "trainannot/f004.png: label value 12 on 1.01 % of the pixels" in text
    assert "\n" not in text
    # The error comes when the turn of the sample comes, not earlier: the order is that of the intact set.
    order = [t[2] for t in loader.sample_indices(0)]
    assert seen == [f"f{i:03d}" for i in order[:order.index(4)]]
    with pytest.raises(DataError, match="f004"):   # and again, the loader has not lost its place
        list(loader.epoch(0))


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "no image file": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "unreadable": lambda path: path.unlink(),
    "same size": lambda path: write_image(path, cv2.imread(str(path), -1)[:-1]),
    "16-bit": lambda path: write_image(path, cv2.imread(str(path), -1).astype(np.uint16)),
}


@pytest.mark.parametrize(("folder", "words"), [(folder, words) for folder in ("train", "trainannot") for words in BROKEN
                                               if (folder, words) != ("train", "16-bit")])
def test_broken_files_are_named(tmp_path, rng, folder, words):
    make_camvid(tmp_path, rng, 4)
    loader = train_loader("camvid", tmp_path)
    BROKEN[words](tmp_path / folder / "f002.png")
    with pytest.raises(DataError, match=rf"f002\.png: [^\n]*{words}[^\n]*$"):
        list(loader.epoch(0))


def test_skipped_samples_are_counted_and_replaced(tmp_path, rng, caplog):
    make_camvid(tmp_path, rng, 8)
    whole = collect(train_loader("camvid", tmp_path), 0, 1)
    (tmp_path / "train" / "f003.png").write_bytes(b"")
    skip = "data.on_error=skip"
    loader = train_loader("camvid", tmp_path, skip)
    log = logging.getLogger("mindseg.data")
    log.addHandler(caplog.handler)      # the run's logger may have been cut off from the root by other tests
    log.propagate = False
    try:
        rows = collect(loader, 0, 1)
    finally:
        log.removeHandler(caplog.handler)
        log.propagate = True
    assert list(loader.skipped) == [3]
    assert "f003.png" in loader.skipped[3]
    assert caplog.text.count("f003.png") == 1
    for epoch in (1, 2):
        assert caplog.text.count(f"epoch {epoch}: 1 of 8 samples skipped so far") == 1
    # Only the broken sample's places differ, and they hold other samples, the same ones every time.
    for ours, intact in zip(rows, whole, strict=True):
        assert ours[0] != "f003"
        assert (ours == intact) == (intact[0] != "f003")
    assert collect(train_loader("camvid", tmp_path, skip, "data.num_workers=1"), 0, 1) == rows
    parts = [collect(train_loader("camvid", tmp_path, skip, rank=r, size=2), 0) for r in range(2)]
    assert [row for step in range(2) for part in parts for row in part[2 * step:2 * step + 2]] == rows[:8]
    assert collect(train_loader("camvid", tmp_path, skip), 1, start_step=1) == rows[12:]


def test_skipping_in_evaluation_leaves_out(tmp_path, rng):
    make_camvid(tmp_path, rng, 5, "val")
    (tmp_path / "valannot" / "f001.png").write_bytes(b"123")
    loader = create_loader(config("camvid", tmp_path, "data.on_error=skip"), "eval", batch_size=2)
    assert [b["names"] for b in loader.samples()] == [["f000", "f002"], ["f003", "f004"]]
    assert list(loader.skipped) == [1]
    with pytest.raises(DataError, match="f001"):
        list(create_loader(config("camvid", tmp_path), "eval").samples())


def test_everything_broken_ends_even_when_skipping(tmp_path, rng):
    make_camvid(tmp_path, rng, 3)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="broken too"):
        list(train_loader("camvid", tmp_path, "data.on_error=skip").epoch(0))


def test_a_fault_of_ours_is_not_skipped(tmp_path, rng, monkeypatch):
    make_camvid(tmp_path, rng, 4)
    loader = train_loader("camvid", tmp_path, "data.on_error=skip")
    monkeypatch.setattr(TrainTransform, "__call__", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(loader.epoch(0))


def test_finished_pipelines_are_released(tmp_path, rng):
    """MindSpore's objects are invisible to Python's collector: a circle through them would keep every epoch."""
    make_camvid(tmp_path, rng, 6)
    make_camvid(tmp_path, rng, 6, "val")

    def alive() -> int:
        gc.collect()
        return sum(type(o) is Pipeline for o in gc.get_objects())

    before = alive()
    loader, evaluation = train_loader("camvid", tmp_path), create_loader(config("camvid", tmp_path), "eval")
    collect(loader, *range(6))
    for _ in range(4):
        assert len(list(evaluation.samples())) == 6
    next(evaluation.samples())
    next(loader.epoch(9))
    assert alive() <= before + 2
    del loader, evaluation
    assert alive() == before


def test_split_without_labels_is_refused(tmp_path, rng):
    write_image(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", random_image(rng, 8, 8))
    with pytest.raises(DataError, match="has no label"):
        create_loader(config("cityscapes", tmp_path, "data.eval_split=test"), "eval")


def test_mixed_cityscapes_encodings_are_refused(tmp_path, rng):
    """One file of train ids among label ids: its 255 is no label id."""
    make_cityscapes(tmp_path, rng)
    label = sorted((tmp_path / "gtFine").rglob("*.png"))[3]
    write_image(label, CITYSCAPES.id_to_train[cv2.imread(str(label), -1)])
    with pytest.raises(DataError, match=rf"{label.name}: label value 255"):
        list(train_loader("cityscapes", tmp_path).epoch(0))


GROWING = "data.crop_schedule=[{until: 0.3, crop_size: [32, 32]}, {until: 0.5, crop_size: [32, 40]}]"


def test_crops_grow_where_an_epoch_begins(tmp_path, rng):
    """10 epochs: 3, 2 and 5 of each size; the last ones are as without a schedule."""
    make_camvid(tmp_path, rng, 8)
    plain = ["train.epochs=10", "data.scale_range=[1, 1]"]
    loader = train_loader("camvid", tmp_path, GROWING, *plain)
    sizes = [batch["label"].shape[1:] for epoch in range(10) for batch in loader.epoch(epoch)]
    assert sizes == 6 * [(32, 32)] + 4 * [(32, 40)] + 10 * [(32, 48)]
    usual = train_loader("camvid", tmp_path, *plain)
    assert usual.steps_per_epoch == loader.steps_per_epoch
    assert collect(loader, 5, 9) == collect(usual, 5, 9)
    assert collect(loader, 0) == collect(train_loader("camvid", tmp_path, *plain, "data.crop_size=[32, 32]"), 0)
    # 19 steps are 10 epochs of 2, too.
    assert collect(train_loader("camvid", tmp_path, GROWING, *plain, "train.steps=19"), 2, 3) == collect(loader, 2, 3)


def test_growing_crops_are_the_same_for_any_start_workers_and_ranks(tmp_path, rng):
    make_camvid(tmp_path, rng, 8)
    whole = collect(train_loader("camvid", tmp_path, GROWING, "train.epochs=10"), 2, 3, 5)
    loader = train_loader("camvid", tmp_path, GROWING, "train.epochs=10", "data.num_workers=1")
    assert collect(loader, 2, start_step=1) + collect(loader, 3, 5) == whole[4:]
    ranks = [train_loader("camvid", tmp_path, GROWING, "train.epochs=10", rank=rank, size=2) for rank in range(2)]
    rows = [collect(rank, 2, 3, 5) for rank in ranks]
    assert [row for step in range(6) for rank in rows for row in rank[2 * step:2 * step + 2]] == whole
