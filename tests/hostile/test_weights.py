"""Hostile weight files of other programs: refused in one line, without running what they hold or filling the memory."""
import io
import json
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from mindseg.commands import convert_weights
from mindseg.commands import train as training
from mindseg.commands.train import Start
from mindseg.config import load_config
from mindseg.models.weights import read_weights
from mindseg.runtime import Runtime
from tests.hostile.test_checkpoint import REFUSED as CHECKPOINTS
from tests.hostile.test_checkpoint import mutated
from tests.support import ROOT
from tests.support.checkpoints import array, with_checksum
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
NAN = np.array([1.0, np.nan], np.float32)


class Touch:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def npz(compression=zipfile.ZIP_STORED, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def npy(values: np.ndarray, **changes: str) -> bytes:
    """A .npy file; ``changes`` replace texts of its header by texts of the same length."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    content = stream.getvalue()
    for old, new in changes.values():
        assert old in content
        content = content.replace(old, new.ljust(len(old)))
    return content


def bomb() -> bytes:
    """300 MB of zeros in 300 kB."""
    return npz(zipfile.ZIP_DEFLATED, w=npy(np.zeros(75_000_000, np.float32)))


def safetensors(header: object, data: bytes = W.tobytes(), length: int | None = None) -> bytes:
    words = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(words) if length is None else length) + words + data


def entry(**changes: object) -> dict:
    return {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes}


def twice() -> bytes:
    """A thousand arrays over the same bytes."""
    return safetensors({f"w{i}": entry()["w"] for i in range(1000)})


NPZ = {
    "empty": b"",
    "text": b"not an archive",
    "cut": npz(w=npy(W))[:-30],
    "checksum of a member": npz(w=npy(W)).replace(W.tobytes(), W.tobytes()[::-1]),
    "no members": npz(),
    "pickled object": npz(w=npy(np.array([Touch()], object))),
    "pickle alone": pickle.dumps({"w": Touch()}),
    "member that is no array": npz(w=b"text"),
    "cut member": npz(w=npy(W)[:-3]),
    "huge shape": npz(w=npy(W, shape=(b"(2, 3), }" + b" " * 20, b"(2000000000, 2000000000), }"))),
    "negative shape": npz(w=npy(W, shape=(b"(2, 3), }" + b" " * 20, b"(-2, -3), }"))),
    "code in the header": npz(w=npy(W, shape=(b"(2, 3), }" + b" " * 30, b"__import__('os').abort(), }"))),
    "bomb": bomb(),
    "NaN": npz(w=npy(NAN)),
    "names as arrays": npz(w=npy(np.array(["a", "b"]))),
}
SAFETENSORS = {
    "empty": b"",
    "text": b"not weights at all",
    "three bytes": b"abc",
    "header longer than the file": safetensors(entry(), length=10_000),
    "header of 2**63 bytes": safetensors(entry(), length=2**63),
    "no JSON": safetensors(b"{'w': 1}"),
    "no UTF-8": safetensors(b"\xff\xfe{}"),
    "deep JSON": safetensors(b"[" * 100_000),
    "long number": safetensors(b'{"w": ' + b"9" * 10_000 + b"}"),
    "list": safetensors([1, 2]),
    "no arrays": safetensors({}),
    "entry that is a number": safetensors({"w": 3}),
    "no shape": safetensors({"w": {"dtype": "F32", "data_offsets": [0, 24]}}),
    "no place": safetensors({"w": {"dtype": "F32", "shape": [2, 3]}}),
    "place of three numbers": safetensors(entry(data_offsets=[0, 12, 24])),
    "place beyond the end": safetensors(entry(data_offsets=[8, 32])),
    "place far beyond the end": safetensors(entry(shape=[2**40], data_offsets=[0, 2**42])),
    "place backwards": safetensors(entry(data_offsets=[24, 0])),
    "negative place": safetensors(entry(data_offsets=[-24, 0])),
    "place in fractions": safetensors(entry(data_offsets=[0.0, 24.0])),
    "shape too large": safetensors(entry(shape=[2, 4])),
    "shape too small": safetensors(entry(shape=[2, 2])),
    "negative shape": safetensors(entry(shape=[-2, -3])),
    "shape of texts": safetensors(entry(shape=["2", "3"])),
    "shape of truths": safetensors(entry(shape=[True, 6])),
    "huge shape": safetensors(entry(shape=[2**62, 2**62])),
    "shape that is a number": safetensors(entry(shape=6)),
    "unknown type": safetensors(entry(dtype="F8_E4M3")),
    "type that is a list": safetensors(entry(dtype=["F32"])),
    "content cut": safetensors(entry())[:-1],
    "content missing": safetensors(entry(), b""),
    "arrays over each other": twice(),
    "NaN": safetensors(entry(shape=[2], data_offsets=[0, 8]), NAN.tobytes()),
    "infinite half": safetensors(entry(dtype="BF16", shape=[1], data_offsets=[0, 2]), b"\x80\x7f"),
}
CKPT = CHECKPOINTS | {"NaN": with_checksum(array("w", NAN))}
FILES = {(suffix, name): data for suffix, table in (("npz", NPZ), ("safetensors", SAFETENSORS), ("ckpt", CKPT))
         for name, data in table.items()}


@pytest.mark.parametrize("key", FILES, ids=lambda key: f"{key[0]}: {key[1]}")
def test_the_reader_refuses(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights.{key[0]}"
    path.write_bytes(FILES[key])
    check_refused(lambda: read_weights(path), path)
    assert list(tmp_path.iterdir()) == [path]       # nothing in the file was executed


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "ckpt", "pth"])
def test_what_is_no_file_is_refused(suffix, tmp_path):
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
    (tmp_path / f"dangling.{suffix}").symlink_to("nowhere")
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    for path in list(tmp_path.iterdir()):
        check_refused(lambda path=path: read_weights(path), path, "no such file")


@pytest.mark.parametrize(("suffix", "data"), [
    ("npz", npz(w=npy(W))), ("npz", npz(zipfile.ZIP_DEFLATED, w=npy(W))), ("safetensors", safetensors(entry())),
    ("safetensors", safetensors({"__metadata__": {"format": "pt"}, **entry()})), ("ckpt", array("w", W))],
    ids=["stored", "packed", "safetensors", "with metadata", "ckpt"])
def test_the_reader_accepts(suffix, data, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(data)
    (tmp_path / f"link.{suffix}").symlink_to(path)
    for place in (path, tmp_path / f"link.{suffix}"):
        state = read_weights(place)
        assert list(state) == ["w"]
        np.testing.assert_array_equal(state["w"], W)


def test_bfloat16_is_read_as_the_float32_of_its_value(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(entry(dtype="BF16", shape=[3], data_offsets=[0, 6]), b"\xc0\x3f\x10\x40\x40\xc0"))
    np.testing.assert_array_equal(read_weights(path)["w"], np.array([1.5, 2.25, -3], np.float32))


def test_safetensors_are_read_as_their_own_library_reads_them(tmp_path, rng):
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    kinds = ("bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64")
    state = {kind: rng.integers(0, 2, (3, 2)).astype(kind) for kind in kinds}
    library.save_file(state, path, metadata={"format": "np"})
    found = read_weights(path)
    assert set(found) == set(state)
    for name, value in library.load_file(path).items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(("suffix", "data"), [("npz", npz(a=npy(W), b=npy(W + 1))),
                                              ("safetensors", safetensors(entry()))], ids=["npz", "safetensors"])
def test_mutations_end_in_arrays_or_one_line(suffix, data, tmp_path, rng):
    path = tmp_path / f"weights.{suffix}"
    refused, count = 0, mutation_count(150, 60000)
    for _ in range(count):
        path.write_bytes(mutated(data, rng))
        refused += read_if_sound(read_weights, path) is None
    assert refused > count / 3


KINDS = {"NaN.npz": NPZ["NaN"], "object.npz": NPZ["pickled object"], "bomb.npz": NPZ["bomb"],
         "beyond.safetensors": SAFETENSORS["place beyond the end"], "empty.ckpt": CKPT["content empty"]}


@pytest.mark.parametrize("name", KINDS)
def test_programs_refuse(name, tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_camvid(tmp_path / "data", rng, 4)
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    monkeypatch.setattr(sys, "argv", ["convert-weights", "--model", "fast_scnn", "--source", str(path), "--output",
                                      str(tmp_path / "out.ckpt")])
    check_refused(convert_weights.main, path)
    cfg = load_config(CONFIG, [f"data.root={tmp_path / 'data'}", "data.crop_size=[64, 64]", "train.run_eval=false"])
    check_refused(lambda: training.train(cfg, tmp_path / "run", Runtime("CPU", 0), Start(path)), path)
    assert not list((tmp_path / "run" / "ckpt").iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"data", "run", name}


def test_a_process_ends_without_a_signal(tmp_path):
    path = tmp_path / "bomb.npz"
    path.write_bytes(NPZ["bomb"])
    before = files_below(tmp_path)
    done = run_program("convert-weights", "--model", "fast_scnn", "--source", path, "--output", tmp_path / "out.ckpt",
                       cwd=tmp_path)
    check_program_refuses(done, path, "packed")
    assert files_below(tmp_path) == before
