"""Packing: what is stored, what is refused, and what is left behind when it goes wrong."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import mindspore.dataset as ds

from mindseg.data.datasets import dataset_info, list_samples
from mindseg.data.mindrecord import Packing, build_records
from mindseg.data.sources import RecordSource
from mindseg.errors import DataError, UserError
from tests.support.data import BASE, collect, config, make_camvid, make_cityscapes, train_loader

TOOL = "pack"


def pack(root, output, split="train", **packing):
    data = config("camvid", root).data
    info, samples = dataset_info(data), list_samples(data, split)
    return build_records(samples, output, info, info.label_lut(), Packing(**packing), {"split": split})


def read_back(path):
    rows = ds.MindDataset(str(path), columns_list=["file_name", "data", "label"], shuffle=False)
    return {str(r["file_name"]): (bytes(np.frombuffer(r["data"], np.uint8)), bytes(np.frombuffer(r["label"], np.uint8)))
            for r in rows.create_dict_iterator(num_epochs=1, output_numpy=True)}


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def test_png_keeps_the_bytes_and_describes_them(tmp_path, rng):
    names = make_camvid(tmp_path / "d", rng, 7)
    result = pack(tmp_path / "d", tmp_path / "o" / "x.mindrecord", num_shards=3)
    assert left_behind(tmp_path / "o") == [f"x.mindrecord{s}" for s in
                                           (".json", "0", "0.db", "1", "1.db", "2", "2.db")]
    stored = read_back(tmp_path / "o" / "x.mindrecord0")
    assert sorted(stored) == names
    counts = np.zeros(256, int)
    for name, (data, label) in stored.items():
        assert data == (tmp_path / "d" / "train" / f"{name}.png").read_bytes()
        assert label == (tmp_path / "d" / "trainannot" / f"{name}.png").read_bytes()
        counts += np.bincount(cv2.imdecode(np.frombuffer(label, np.uint8), -1).ravel(), minlength=256)
    described = json.loads((tmp_path / "o" / "x.mindrecord.json").read_text(encoding="utf-8"))
    assert described == result
    assert described["class_pixels"] == counts[:11].tolist()
    assert described["ignored_pixels"] == counts[11]
    assert (described["samples"], described["codec"], described["split"]) == (7, "png", "train")
    assert described["sizes"] == {"64x48": 7}


def test_codecs(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 4)
    for codec, tolerance in (("webp", 0), ("jpeg", 4)):
        result = pack(tmp_path / "d", tmp_path / codec, codec=codec, fast_labels=True)
        assert result["lossless"] == (codec == "webp")
        for name, (data, label) in read_back(tmp_path / codec).items():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), -1).astype(int)
            truth = cv2.imread(str(tmp_path / "d" / "train" / f"{name}.png"))
            assert np.abs(image - truth).mean() <= tolerance
            assert np.array_equal(cv2.imdecode(np.frombuffer(label, np.uint8), -1),
                                  cv2.imread(str(tmp_path / "d" / "trainannot" / f"{name}.png"), -1))


def test_jpeg_sources_are_not_compressed_twice(tmp_path, rng):
    make_camvid(tmp_path, rng, 2)
    for path in sorted((tmp_path / "train").iterdir()):
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
    pack(tmp_path, tmp_path / "x", codec="jpeg")
    for name, (data, _) in read_back(tmp_path / "x").items():
        assert data == (tmp_path / "train" / f"{name}.jpg").read_bytes()


def test_fingerprint_follows_the_content_alone(tmp_path, rng):
    make_camvid(tmp_path, rng, 5)
    a = pack(tmp_path, tmp_path / "a")["source_sha256"]
    assert pack(tmp_path, tmp_path / "b", num_shards=2, shuffle_seed=3, codec="webp")["source_sha256"] == a
    image = tmp_path / "train" / "f001.png"
    cv2.imwrite(str(image), 255 - cv2.imread(str(image)))
    assert pack(tmp_path, tmp_path / "c")["source_sha256"] != a


def test_output_already_there(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 4)
    out = tmp_path / "o" / "x"
    pack(tmp_path / "d", out, num_shards=3)
    other = tmp_path / "o" / "x9"                  # another set whose name looks like a shard
    pack(tmp_path / "d", other)
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    for kwargs in ({}, {"num_shards": 5}):
        with pytest.raises(UserError, match=r"exists already.*--overwrite"):
            pack(tmp_path / "d", out, **kwargs)
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before
    pack(tmp_path / "d", out, overwrite=True)
    assert left_behind(tmp_path / "o") == ["x", "x.db", "x.json", "x9", "x9.db", "x9.json"]
    assert len(RecordSource(out)) == len(RecordSource(other)) == 4


def test_a_broken_sample_ends_the_build_and_leaves_nothing(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 30)
    label = cv2.imread(str(tmp_path / "d" / "trainannot" / "f020.png"), -1)
    label[5, 5] = 200
    cv2.imwrite(str(tmp_path / "d" / "trainannot" / "f020.png"), label)
    (tmp_path / "o").mkdir()
    with pytest.raises(DataError, match=r"f020\.png: label value 200"):
        pack(tmp_path / "d", tmp_path / "o" / "x")
    assert left_behind(tmp_path / "o") == []


def test_overwriting_with_a_broken_sample_keeps_the_old_set(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 4)
    pack(tmp_path / "d", tmp_path / "x")
    old = read_back(tmp_path / "x")
    (tmp_path / "d" / "train" / "f001.png").write_bytes(b"")
    with pytest.raises(DataError, match="f001"):
        pack(tmp_path / "d", tmp_path / "x", overwrite=True)
    assert read_back(tmp_path / "x") == old


@pytest.mark.parametrize(("damage", "words"), [
    (lambda f: f.unlink(), "no such MindRecord"),
    (lambda f: f.with_name(f.name + ".db").unlink(), "its index .* is missing"),
    (lambda f: f.write_bytes(b""), "not a whole MindRecord"),
    (lambda f: f.write_bytes(f.read_bytes()[:1000]), "not a whole MindRecord"),
    (lambda f: os.truncate(f, f.stat().st_size // 2), "not a whole MindRecord"),
    (lambda f: f.with_name(f.name + ".db").write_bytes(b"garbage" * 99), "not a whole MindRecord"),
    (lambda f: shutil.copy(f.with_name("b.db"), f.with_name(f.name + ".db")), "x"),
    (lambda f: f.with_name(f.name + ".json").write_text("{", encoding="utf-8"), "not a description"),
    (lambda f: f.with_name(f.name + ".json").write_text('{"names": ["a"]}', encoding="utf-8"), "describes 1 samples"),
])
def test_unreadable_records(tmp_path, rng, damage, words):
    make_camvid(tmp_path / "d", rng, 40)
    pack(tmp_path / "d", tmp_path / "x")
    make_camvid(tmp_path / "e", rng, 3)
    pack(tmp_path / "e", tmp_path / "b")
    damage(tmp_path / "x")
    with pytest.raises(DataError, match=words) as caught:
        collect(train_loader("camvid", tmp_path / "d", f"data.mindrecord={tmp_path / 'x'}"), 0)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_foreign_record_without_label_column(tmp_path):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "x"))
    writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}}, "no labels")
    writer.write_raw_data([{"file_name": "a", "data": b"123"}])
    writer.commit()
    with pytest.raises(DataError, match="columns file_name, data, label"):
        RecordSource(tmp_path / "x")


def test_missing_shard(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 8)
    pack(tmp_path / "d", tmp_path / "x", num_shards=2)
    (tmp_path / "x1").unlink()
    with pytest.raises(DataError, match="not a whole MindRecord"):
        RecordSource(tmp_path / "x")


def test_command_line(tmp_path, rng, run_cli):
    make_cityscapes(tmp_path / "d", rng)
    words = (TOOL, "--dataset", "cityscapes", "--root", tmp_path / "d", "--split", "train",
             "--output", tmp_path / "out put" / "t.mindrecord", "--num_shards", 2, "--shuffle", "--codec", "webp")
    done = run_cli(*words)
    assert done.returncode == 0, done.stderr
    assert "6 samples (6 of 128x64), 2 shard(s), codec webp" in done.stdout
    assert "packing" in done.stderr
    stream = collect(train_loader("cityscapes", tmp_path / "d",
                                  f"data.mindrecord={tmp_path / 'out put' / 't.mindrecord'}"), 0)
    assert stream == collect(train_loader("cityscapes", tmp_path / "d"), 0)
    again = run_cli(*words)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_interrupted_build_leaves_nothing_that_looks_finished(tmp_path, rng, number):
    make_camvid(tmp_path / "d", rng, 1, size=(360, 480))
    for part in ("train", "trainannot"):        # half a minute of work, so that the signal comes in time
        for i in range(1, 2000):
            (tmp_path / "d" / part / f"f{i:04d}.png").hardlink_to(tmp_path / "d" / part / "f000.png")
    out = tmp_path / "o"
    child = subprocess.Popen([sys.executable, "-m", "mindseg", TOOL, "--config", str(BASE / "camvid.yaml"), "--root",
                              str(tmp_path / "d"), "--output", str(out / "x"), "--codec", "webp"],
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not any(p.stat().st_size for p in out.glob(".x.building-*/x")):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    child.send_signal(number)
    message = child.communicate()[1]
    assert child.returncode == (130 if number == signal.SIGINT else -number), message
    assert "Traceback" not in message
    if number == signal.SIGINT:
        assert left_behind(out) == []
    assert all(name.startswith(".x.building-") for name in left_behind(out))
    with pytest.raises(DataError, match="no such MindRecord"):
        RecordSource(out / "x")


@pytest.mark.slow
def test_disk_full(tmp_path, rng, run_cli, small_disk):
    """On a file system of 20 MB, with 29 MB of noise to pack."""
    small, folder = small_disk(20), tmp_path / "d"
    for part in ("train", "trainannot"):
        (folder / part).mkdir(parents=True)
    for i in range(12):
        cv2.imwrite(str(folder / "train" / f"{i}.png"), rng.integers(0, 256, (800, 1000, 3), np.uint8))
        cv2.imwrite(str(folder / "trainannot" / f"{i}.png"), np.zeros((800, 1000), np.uint8))
    done = run_cli(TOOL, "--config", BASE / "camvid.yaml", "--root", folder, "--output", small / "x")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert left_behind(small) == []
