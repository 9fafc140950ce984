"""Hostile checkpoints: refused in one line by the reader and by every program, or read to the same arrays."""
import os
import shutil
import sys

import cv2
import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor

import mindseg
from mindseg.checkpoint import Progress, newest_checkpoint, read_checkpoint, save_checkpoint
from mindseg.commands import evaluate, predict
from mindseg.commands import train as training
from mindseg.commands.train import Start
from mindseg.config import dump_config, load_config
from mindseg.models import build_network
from mindseg.runtime import Runtime
from tests.support import ROOT
from tests.support.checkpoints import array, edit, record, text, with_checksum
from tests.support.data import make_camvid
from tests.support.hostile import (
    check_program_refuses,
    check_refused,
    files_below,
    mutation_count,
    read_if_sound,
    run_program,
)

CONFIG = ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml"
W = np.arange(6, dtype=np.float32).reshape(2, 3)
OURS = (array("epoch", np.array(1)), array("step", np.array(2)), array("eval_step", np.array(2)),
        array("w", W), text("best_miou", "0.5"), text("config", ""))
TENSOR_WITHOUT_TYPE = b"\x0a\x09\x0a\x01w\x12\x04\x1a\x02ab"
TENSOR_WITHOUT_CONTENT = b"\x0a\x0e\x0a\x01w\x12\x09\x12\x07Float32"
MAP_TENSOR = b"\x0a\x05\x0a\x01w\x1a\x00"
WITHOUT_NAME = b"\x0a\x02\x12\x00"


def ours(name, changed):
    """A checkpoint of ours in which one record is another."""
    names = ["epoch", "step", "eval_step", "w", "best_miou", "config"]
    return with_checksum(*(changed if name == own else rec for own, rec in zip(names, OURS, strict=True)))


REFUSED = {
    "empty file": b"",
    "random bytes": bytes(np.random.default_rng(1).integers(0, 256, 4000, np.uint8)),
    "zeros": bytes(4000),
    "text": b"<html>404 Not Found</html>" * 20,
    "zip": b"PK\x03\x04" + bytes(200),
    "only a checksum, of other bytes": b"crc_num" + bytes(9) + b"\x01",
    "checksum wrong": with_checksum(array("w", W))[:-1] + b"\x00",
    "checksum beyond 32 bits": with_checksum(array("w", W))[:-10] + b"\xff" * 10,
    "cut in a record": array("w", W)[:-5],
    "cut in a length": b"\x0a\xff",
    "cut before the checksum": b"".join(OURS),
    "cut after the counts": b"".join(OURS[:4]),
    "shape larger than the content": with_checksum(record("w", "Float32", [2, 4], W.tobytes())),
    "shape smaller than the content": with_checksum(record("w", "Float32", [2, 2], W.tobytes())),
    "content empty": with_checksum(record("w", "Float32", [2, 3], b"")),
    "content of a number empty": with_checksum(record("w", "Float32", [], b"")),
    "content of an old number empty": with_checksum(record("w", "Float32", [0], b"")),
    "content not whole values": with_checksum(record("w", "Float32", [2, 3], W.tobytes()[:-1])),
    "negative shape": with_checksum(record("w", "Float32", [-2, -3], W.tobytes())),
    "negative and empty shape": with_checksum(record("w", "Float32", [-1, 0], b"")),
    "huge shape": with_checksum(record("w", "Float32", [2**62, 2**62], W.tobytes())),
    "huge shape without values": with_checksum(record("w", "Float32", [2**62, 2**62, 0], b"")),
    "shape that overflows to the size": with_checksum(record("w", "Float32", [2**32, 2**32, 6], W.tobytes())),
    "forty dimensions": with_checksum(record("w", "Float32", [1] * 40, bytes(4))),
    "unknown type": with_checksum(record("w", "Complex64", [3], W.tobytes())),
    "empty type": with_checksum(record("w", "", [6], W.tobytes())),
    "long type": with_checksum(record("w", "F" * 9999, [6], W.tobytes())),
    "long name": with_checksum(record("w" * 9999, "Float32", [6], W.tobytes())),
    "name twice": with_checksum(array("w", W), array("v", W), array("w", W)),
    "name twice in a row": with_checksum(array("w", W), array("w", W)),
    "second part of another shape": with_checksum(array("w", W), record("w", "Float32", [6], W.tobytes())),
    "no type": with_checksum(TENSOR_WITHOUT_TYPE),
    "no content": with_checksum(TENSOR_WITHOUT_CONTENT),
    "map tensor": with_checksum(MAP_TENSOR),
    "no name": with_checksum(WITHOUT_NAME),
    "name that is no UTF-8": with_checksum(array("w", W).replace(b"\x01w", b"\x01\xff")),
    "text that is no UTF-32": with_checksum(record("config", "str", [0], b"\xff\xff\xff\xff")),
    "text of odd length": with_checksum(record("config", "str", [0], b"abc")),
    "declared size of a record": b"\x0a\xff\xff\xff\xff\x0f" + bytes(50),
    "declared size of 2**63": b"\x0a" + b"\xff" * 9 + b"\x01" + bytes(50),
    "a number without end": b"\x0a" + b"\xff" * 50,
    "unknown field": with_checksum(b"\x7a\x02ab"),
    "group": with_checksum(b"\x0b\x0c"),
}
TRAINING_STATE = {
    "text as step": ours("step", text("step", "many")),
    "text as epoch": ours("epoch", text("epoch", "1")),
    "fraction as step": ours("step", array("step", np.array(1.5))),
    "several steps": ours("step", array("step", np.array([1, 2]))),
    "negative step": ours("step", array("step", np.array(-5))),
    "text as score": ours("best_miou", text("best_miou", "good")),
    "score that is NaN": ours("best_miou", text("best_miou", "nan")),
    "several scores": ours("best_miou", array("best_miou", np.array([0.5, 0.5]))),
    "number as configuration": ours("config", array("config", np.array(3))),
    "time that is infinite": with_checksum(*OURS, text("saved_at", "inf")),
    "temperature of nothing": with_checksum(*OURS, text("temperature", "0")),
    "temperature that is NaN": with_checksum(*OURS, text("temperature", "nan")),
    "temperature below all": with_checksum(*OURS, text("temperature", "1e-40")),
    "text as number of samples": with_checksum(*OURS, text("samples", "5")),
}


@pytest.mark.parametrize("name", REFUSED | TRAINING_STATE)
def test_the_reader_refuses(name, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes((REFUSED | TRAINING_STATE)[name])
    check_refused(lambda: read_checkpoint(path), path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    (tmp_path / "dangling.ckpt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.ckpt")
    for path in list(tmp_path.iterdir()):
        check_refused(lambda path=path: read_checkpoint(path), path)


ACCEPTED = {
    "of MindSpore, without a checksum": b"".join([array("w", W)]),
    "in two parts": with_checksum(*(record("w", "Float32", [2, 3], part.tobytes()) for part in W)),
    "number as older versions write it": with_checksum(array("w", W), record("n", "Int32", [0], b"\x07\0\0\0")),
    "unpacked and packed shape": with_checksum(
        array("w", W).replace(b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03")),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_reader_accepts(name, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(ACCEPTED[name])
    arrays, extras = read_checkpoint(path)
    np.testing.assert_array_equal(arrays["w"], W)
    assert arrays.get("n", 7) == 7
    assert extras == {}


def test_every_type_is_read_as_mindspore_reads_it(tmp_path, rng):
    path = tmp_path / "types.ckpt"
    values = {kind: rng.normal(size=(3, 2)).astype(kind) for kind in ("float16", "float32", "float64")}
    values |= {kind: rng.integers(0, 100, (2, 2, 2)).astype(kind)
               for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")}
    values |= {"bool": np.array([True, False]), "number": np.array(7)}
    content = [{"name": name, "data": Tensor(value)} for name, value in values.items()]
    content.append({"name": "bfloat16", "data": Tensor(values["float32"], ms.bfloat16)})
    ms.save_checkpoint(content, str(path), crc_check=True)
    theirs = {name: value.asnumpy() for name, value in ms.load_checkpoint(str(path)).items()}
    arrays, _ = read_checkpoint(path)
    assert list(arrays) == list(theirs)
    for name, value in theirs.items():
        expected = value.astype(np.float32) if name == "bfloat16" else value
        assert (arrays[name].dtype, arrays[name].shape) == (expected.dtype, expected.shape)
        assert arrays[name].tobytes() == expected.tobytes()


NETWORKS = {"fast_scnn/fast_scnn_camvid": [], "enet/enet_camvid": [], "bisenetv2/bisenetv2_camvid": [],
            "fcn8s/fcn8s_camvid": ["model.fc_channels=16"]}


@pytest.mark.parametrize("config", NETWORKS)
def test_a_network_is_read_as_mindspore_reads_it(config, tmp_path):
    cfg = load_config(ROOT / "configs" / f"{config}.yaml", NETWORKS[config])
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, list(build_network(cfg).get_parameters()), Progress(1, 2, 0.5, 2), cfg)
    theirs = ms.load_checkpoint(str(path))
    arrays, extras = read_checkpoint(path)
    assert list(arrays) == [name for name in theirs if name not in extras]
    for name, value in arrays.items():
        own = theirs[name].asnumpy()
        assert (value.dtype, value.shape, value.tobytes()) == (own.dtype, own.shape, own.tobytes())
    assert extras["config"] == theirs["config"]


@pytest.fixture
def small(tmp_path, rng):
    """A checkpoint of ours with three parameters."""
    path = tmp_path / "small.ckpt"
    parameters = [Parameter(Tensor(rng.normal(size=shape).astype(np.float32)), name=f"p{len(shape)}")
                  for shape in ((4, 3, 3, 3), (5,), ())]
    save_checkpoint(path, parameters, Progress(1, 2, 0.5, 2), load_config(CONFIG))
    return path


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four of them changed, left out, put in, or a piece of them copied elsewhere."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not changed:
            break
        at = int(rng.integers(0, len(changed)))
        kind = rng.integers(0, 4)
        if kind == 0:
            changed[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
        elif kind == 1:
            del changed[at:at + int(rng.integers(1, 40))]
        elif kind == 2:
            changed[at:at] = bytes(rng.integers(0, 256, int(rng.integers(1, 12)), np.uint8))
        else:
            other = int(rng.integers(0, len(changed)))
            changed[at:at + 16] = changed[other:other + 16]
    return bytes(changed)


@pytest.mark.parametrize("fitting", [False, True], ids=["as it is", "with a checksum that fits"])
def test_mutations_are_refused_or_change_nothing(small, fitting, rng):
    """With a fitting checksum a mutation may change values, but only within what the file declares."""
    data, (expected, _) = small.read_bytes(), read_checkpoint(small)
    records = data[:-17]
    # Half of the mutations hit the first 600 bytes, which hold lengths, names and shapes.
    refused, count = 0, mutation_count(300, 150000)
    for i in range(count):
        head = 600 if i % 2 else len(records)
        new = mutated(records[:head], rng) + records[head:]
        small.write_bytes(with_checksum(new) if fitting else new + data[-17:])
        found = read_if_sound(read_checkpoint, small)
        if found is None:
            refused += 1
        elif not fitting:
            assert {name: value.tobytes() for name, value in found[0].items()} == {
                name: value.tobytes() for name, value in expected.items()}
    assert refused > count * (0.33 if fitting else 0.8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of a whole network."""
    cfg = load_config(CONFIG)
    path = tmp_path_factory.mktemp("whole") / "best.ckpt"
    save_checkpoint(path, list(build_network(cfg).get_parameters()), Progress(1, 2, 0.5, 2), cfg)
    return path


def find(records, name):
    return next(value.tensor for value in records if value.tag == name)


def change_shape(records):
    find(records, "classifier.conv.weight").dims[0] += 1


def empty_content(records):
    find(records, "classifier.conv.weight").tensor_content = b""


def not_a_number(records):
    values = np.frombuffer(find(records, "classifier.conv.bias").tensor_content, np.float32).copy()
    values[0] = np.nan
    find(records, "classifier.conv.bias").tensor_content = values.tobytes()


def infinite(records):
    values = np.frombuffer(find(records, "classifier.conv.bias").tensor_content, np.float32).copy()
    values[-1] = -np.inf
    find(records, "classifier.conv.bias").tensor_content = values.tobytes()


def text_as_step(records):
    step = find(records, "step")
    step.tensor_type, step.tensor_content = "str", "many".encode("utf-32-le")
    step.dims[:] = [0]


KINDS = {"shape": lambda path: edit(path, change_shape), "content": lambda path: edit(path, empty_content),
         "NaN": lambda path: edit(path, not_a_number), "infinite": lambda path: edit(path, infinite),
         "text": lambda path: edit(path, text_as_step), "no checksum": lambda path: path.read_bytes()[:-17],
         "cut": lambda path: path.read_bytes()[:-2000], "random": lambda path: REFUSED["random bytes"]}


@pytest.fixture(params=KINDS)
def hostile(request, whole, tmp_path):
    """A run folder whose checkpoint is hostile in one way."""
    run = tmp_path / "run"
    (run / "ckpt").mkdir(parents=True)
    dump_config(load_config(CONFIG), run / "config.yaml")
    path = run / "ckpt" / "best.ckpt"
    path.write_bytes(KINDS[request.param](whole))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    make_camvid(folder, rng, 4)
    cv2.imwrite(str(folder / "photo.png"), rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    return folder


def call(monkeypatch, program, *words):
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
    monkeypatch.setattr(program, "setup_runtime", lambda cfg: Runtime("CPU", 0), raising=True)
    return program.main()


def test_programs_refuse(hostile, data, tmp_path, monkeypatch):
    settings = ["--config", CONFIG, "--set", f"data.root={data}"]
    out = tmp_path / "out"
    check_refused(lambda: call(monkeypatch, evaluate, *settings, "--ckpt_path", hostile, "--output", tmp_path / "eval"),
                  hostile)
    assert set(files_below(tmp_path / "eval")) <= {".mindseg-files"}     # its record of the files that it writes
    check_refused(lambda: call(monkeypatch, predict, "--config", CONFIG, "--ckpt_path", hostile, "--input",
                               data / "photo.png", "--output", out), hostile)
    check_refused(lambda: mindseg.load(hostile, "CPU"), hostile)
    check_refused(lambda: newest_checkpoint([hostile]), hostile)
    assert not out.exists()
    before = files_below(hostile.parents[1])
    cfg = load_config(CONFIG, [f"data.root={data}", "data.crop_size=[64, 64]", "train.run_eval=false"])
    check_refused(lambda: training.train(cfg, hostile.parents[1], Runtime("CPU", 0), Start(hostile, resumed=True)),
                  hostile)
    after = files_below(hostile.parents[1])
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} <= {"train.log", "rank0.log"}


def test_a_process_ends_without_a_signal(whole, data, tmp_path):
    path = tmp_path / "run" / "ckpt" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(edit(whole, empty_content))
    shutil.copy(CONFIG, tmp_path / "run" / "config.yaml")
    done = run_program("predict", "--ckpt_path", path, "--input", data / "photo.png", "--output", tmp_path / "out")
    check_program_refuses(done, path, "classifier.conv.weight")
    assert not (tmp_path / "out").exists()
