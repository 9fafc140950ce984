"""Hostile input of the C++ runner: manifests, images, bins and lists through its readers, then through the program."""
import io
import os
import socket
import struct
import subprocess
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mindseg.data.decode import decode_image
from mindseg.errors import UserError
from mindseg.files import read_bytes
from mindseg.manifest import load_manifest
from tests.support import ROOT
from tests.support.hostile import TIMEOUT, check_program_refuses, files_below, mutation_count, run_program
from tests.support.photographs import bad_tiffs, odd_tiffs, photographs
from tests.support.runner import RUN_FILES, TinyModel, build_folder, make_images, read_summary

PIXELS = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (31, 45, 3), dtype=np.uint8), (0, 0), 2)
MANIFESTS = ROOT / "tests" / "manifests"


def verdicts(kind, paths):
    """Says of each file whether the runner's reader accepts it.

    Args:
        kind: ``M`` manifest, ``N`` list of names, ``B`` bin, ``I`` image, ``R`` image that is read by rows.
        paths: Files; all are read by one process, which must survive them.

    Returns:
        ``accepted`` or the message of the refusal by path.
    """
    done = subprocess.run([build_folder() / "test" / "check_inputs", kind, *paths], capture_output=True,
                          timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
    assert len(lines) == len(paths), done.stdout
    return dict(zip(paths, lines, strict=True))


def check_all_refused(kind, folder, table):
    """Writes a table of files by name and asserts that each one is refused in one line with its name."""
    folder.mkdir()
    for name, content in table.items():
        (folder / name).write_bytes(content)
    for path, line in verdicts(kind, sorted(folder.iterdir())).items():
        assert line.startswith(str(path)), (path, line)
        assert len(line) < 1000


def png(rows, bits, colour, data=None, end=True, first=b"IHDR"):
    """Makes a PNG of 45 columns and ``rows`` rows, whose content need not fit its header."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", 45, rows, bits, colour, 0, 0, 0)
    body = zlib.compress(bytes(31 * (1 + 45 * 3))) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(first, header) + chunk(b"IDAT", body) + (chunk(b"IEND", b"") if end else b"")


def encode(suffix, pixels=PIXELS, *options):
    done, data = cv2.imencode(suffix, pixels, list(options))
    assert done
    return data.tobytes()


def pillow(kind, image=None, **options):
    stream = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(stream, kind, **options)
    return stream.getvalue()


def good_images():
    """Files that training reads too, by name."""
    thumbnail = Image.Exif()
    thumbnail[0x0112] = 6
    table = {"plain.png": encode(".png"), "palette.png": pillow("PNG", Image.fromarray(PIXELS).quantize(16)),
             "plain.jpg": encode(".jpg"), "progressive.jpg": pillow("JPEG", progressive=True),
             "exif.jpg": pillow("JPEG", exif=thumbnail),
             "restarts.jpg": encode(".jpg", PIXELS, cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
             "lossy.webp": encode(".webp", PIXELS, cv2.IMWRITE_WEBP_QUALITY, 80),
             "lossless.webp": encode(".webp", PIXELS, cv2.IMWRITE_WEBP_QUALITY, 101), "plain.bmp": encode(".bmp"),
             "photograph.with.another.suffix.bmp": encode(".png"), "plain.tif": encode(".tiff"),
             "grey.png": encode(".png", PIXELS[..., 0]), "grey.jpg": encode(".jpg", PIXELS[..., 0]),
             "grey.bmp": pillow("BMP", Image.fromarray(PIXELS[..., 0])),
             "alpha.png": encode(".png", np.dstack([PIXELS, PIXELS[..., :1]])),
             "alpha.webp": pillow("WEBP", Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]))),
             "deep.png": encode(".png", PIXELS.astype(np.uint16)),
             "cmyk.jpg": pillow("JPEG", Image.fromarray(PIXELS).convert("CMYK")),
             **{name: data for name, (data, _) in odd_tiffs().items()}}
    rows = bytearray(table["plain.bmp"])
    rows[22:26] = struct.pack("<i", -31)
    table["downwards.bmp"] = bytes(rows)
    return table | {f"trailing_{name}": data + b"\xff\xd9 IEND" * 2000 for name, data in table.items()}


def bad_images():
    """Files that no reader of ours accepts, by name."""
    good = good_images()
    webp, bmp, jpeg = bytearray(good["lossless.webp"]), bytearray(good["plain.bmp"]), bytearray(good["plain.jpg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at:at + 4] = b"\xff\xff\xff\xff"
    bmp[18:26] = struct.pack("<ii", 1 << 20, 1 << 20)
    empty_bmp = bytearray(good["plain.bmp"])
    empty_bmp[18:26] = bytes(8)
    packed = bytearray(good["plain.bmp"])
    packed[30] = 1
    webp[12:30] = b"VP8X" + struct.pack("<II", 10, 0) + b"\xff" * 6
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    table = {"empty.png": b"", "byte.png": b"\x89", "text.png": b"no image", "signature.png": b"\x89PNG\r\n\x1a\n",
             "claims.png": png(1 << 30, 8, 2), "no_rows.png": png(0, 8, 2), "half_the_rows.png": png(62, 8, 2),
             "no_end.png": png(31, 8, 2, end=False), "no_header.png": png(31, 8, 2, first=b"tEXt"),
             "noise.png": png(31, 8, 2, b"noise"), "unknown_kind.png": png(31, 8, 7),
             "claims.jpg": bytes(jpeg), "claims.bmp": bytes(bmp), "claims.webp": bytes(webp),
             "no_pixels.bmp": bytes(empty_bmp), "packed.bmp": bytes(packed),
             **{f"{name}.tif": data for name, (data, _) in bad_tiffs().items()},
             "animation.webp": pillow("WEBP", frames[0], save_all=True, append_images=frames[1:]),
             "gif.png": pillow("GIF"), "pnm.png": encode(".ppm"),
             "sun.png": encode(".ras"), "jpeg2000.png": encode(".jp2", np.tile(PIXELS, (3, 3, 1))),
             "hdr.png": encode(".hdr", PIXELS.astype(np.float32)),
             "scan_only.jpg": b"\xff\xd8\xff\xda\0\2\xff\xd9", "end_only.jpg": b"\xff\xd8\xff\xd9"}
    for name in ("plain.png", "plain.jpg", "progressive.jpg", "lossless.webp", "plain.bmp"):
        for keep in (0.3, 0.9):
            table[f"{keep}_{name}"] = good[name][:int(len(good[name]) * keep)]
        table[f"one_less_{name}"] = good[name][:-1]
    return table


def test_good_images_are_accepted(tmp_path):
    for name, content in good_images().items():
        (tmp_path / name).write_bytes(content)
    assert set(verdicts("I", sorted(tmp_path.iterdir())).values()) == {"accepted"}


@pytest.mark.parametrize("kind", ["I", "R"])
def test_bad_images(tmp_path, kind):
    check_all_refused(kind, tmp_path / "images", bad_images())


def manifest_text(folder):
    return TinyModel(folder, seed=2).yaml_path.read_bytes()


def bad_manifests(good):
    """Texts that are no manifest, by name; ``good`` is one."""
    def changed(old, new):
        assert old in good
        return good.replace(old, new)
    bomb = b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(12))
    return {"empty.yaml": b"", "nul.yaml": good + b"\0", "binary.yaml": bytes(range(256)),
            "bomb.yaml": good + b"a: &a x\n" + bomb, "brackets.yaml": b"a: " + b"[" * 3000,
            "braces.yaml": b"{" * 100000, "commas.yaml": b"M\n" + b"," * 100, "comma.yaml": b"\n," * 9,
            "utf16.yaml": good.decode().encode("utf-16"),
            "digits.yaml": changed(b"num_classes: 5", b"num_classes: " + b"5" * 5000),
            "exponent.yaml": changed(b"value_range: 255", b"value_range: 1e99999"),
            "escape.yaml": changed(b"name: tiny", b'name: "\\UFFFFFFFF"'), "merge.yaml": b"<<: *none\n" + good,
            "directive.yaml": b"%YAML 99999999999999999999.1\n---\n" + good, "large.yaml": good + b"#" * (1 << 20),
            "python.yaml": changed(b"name: tiny", b"name: !!python/object/apply:os.system ['true']"),
            "self.yaml": good + b"a: &a {b: *a}", "dashes.yaml": b"- " * 50000,
            "not_a_number.yaml": changed(b"- 123.675", b"- .nan"),
            "absolute.yaml": changed(b"file: tiny.onnx", b"file: /etc/passwd"),
            "above.yaml": changed(b"file: tiny.onnx", b"file: ../../tiny.onnx"),
            "line.yaml": changed(b"file: tiny.onnx", b'file: "tiny\\n.onnx"')}


def test_bad_manifests(tmp_path):
    check_all_refused("M", tmp_path / "manifests", bad_manifests(manifest_text(tmp_path / "model")))


def test_what_is_no_plain_file(tmp_path):
    """Neither waits for a pipe nor reads a device for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("gone")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        paths = [tmp_path / name for name in ("pipe", "folder", "loop", "nothing", "socket")]
        for kind in "MNBI":
            for path, line in verdicts(kind, [*paths, "/dev/zero", "/dev/null"]).items():
                assert str(path) in line, (kind, path, line)


def test_bad_bins(tmp_path):
    """The driver's input takes 24x40 pixels of three float32: 11520 bytes."""
    check_all_refused("B", tmp_path / "bins", {"empty.bin": b"", "short.bin": bytes(11519), "long.bin": bytes(11521),
                                               "double.bin": bytes(2 * 11520)})
    (tmp_path / "whole.bin").write_bytes(b"\xff" * 11520)      # NaN is as good as any number here
    assert verdicts("B", [tmp_path / "whole.bin"]) == {tmp_path / "whole.bin": "accepted"}


def test_bad_lists(tmp_path):
    names = [b"..", b".", b"../a", b"/etc/passwd", b"a/b", b"a\\b", b"C:a", b".hidden", b"a\0b", b"a\tb", b"a\x7f",
             b"\x1b[31m", b"x" * 221, b"a\rb"]
    check_all_refused("N", tmp_path / "lists", {f"{i}.txt": b"good\n" + name + b"\n" for i, name in enumerate(names)})
    (tmp_path / "good.txt").write_bytes(b"a b\r\n\n\xff\xfe\nx.y\na..\xe8\n")
    assert verdicts("N", [tmp_path / "good.txt"]) == {tmp_path / "good.txt": "accepted"}


def mutated(content, rng):
    """Changes, removes, doubles or cuts off some bytes, half of the time near the beginning."""
    data, marks = bytearray(content), [b"%c" % mark for mark in b" \n:-[]{}\"'#&*!?0e."]
    for _ in range(rng.integers(0, 4)):
        at = int(rng.integers(0, max(1, min(len(data), 64 if rng.random() < 0.5 else len(data)))))
        pieces = (rng.bytes(1), b"", bytes(data[at:at + 9]) * 2, marks[int(rng.integers(0, len(marks)))])
        data[at:at + (9 if rng.random() < 0.3 else 1)] = pieces[int(rng.integers(0, 4))]
        if rng.random() < 0.1:
            del data[at:]
    return bytes(data)


def check_python_agrees(kind, folder, corpus, read, rng, mutated=mutated):
    """Asserts that both languages give one verdict on each file of a corpus and on mutations of them."""
    count = mutation_count(300, 30000)
    folder.mkdir()
    for start in range(0, len(corpus) + count, 500):
        contents = [corpus[i] if i < len(corpus) else mutated(corpus[i % len(corpus)], rng)
                    for i in range(start, min(start + 500, len(corpus) + count))]
        paths = [folder / str(start + i) for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        for path, line in verdicts(kind, paths).items():
            try:
                read(path)
                python = "accepted"
            except UserError as error:
                python = str(error)
            # An image that does not fit the driver's input is a good image.
            runner = "accepted" if "larger than the model's" in line else line
            assert (python == "accepted") == (runner == "accepted"), f"{path}\n{python}\n{runner}"
            path.unlink()


def test_python_agrees_on_images(tmp_path, rng):
    corpus = [*good_images().values(), *bad_images().values()]
    check_python_agrees("I", tmp_path / "images", corpus, lambda path: decode_image(read_bytes(path), str(path)), rng)


def mutated_directory(content, rng):
    """Changes numbers of a TIFF's header or of the directory at its end, or of EXIF data at either end of a file.

    Not of compressed pixels: whether damage there is found depends on how the TIFF library was built.
    """
    data = bytearray(content)
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    if data[:2] in (b"II", b"MM"):
        begin, end = 16 if big else 8, struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    else:
        begin, end = 90, len(data) - 30
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, begin) if rng.random() < 0.4 else rng.integers(end, len(data)))
        numbers = (int(rng.integers(0, 256)), 0, 255, data[at] ^ 1 << int(rng.integers(0, 8)), int(rng.integers(0, 9)))
        data[at] = numbers[int(rng.integers(0, 5))]
    return bytes(data)


def test_python_agrees_on_directories(tmp_path, rng):
    """TIFFs and images with EXIF data whose directories are damaged."""
    corpus = [content for name, (content, _, _) in photographs().items() if "tif" in name or "turned6" in name]
    check_python_agrees("I", tmp_path / "images", corpus, lambda path: decode_image(read_bytes(path), str(path)), rng,
                        mutated_directory)


def test_python_agrees_on_manifests(tmp_path, rng):
    good = manifest_text(tmp_path / "model")
    corpus = [good, *bad_manifests(good).values(), *(path.read_bytes() for path in sorted(MANIFESTS.rglob("*.yaml")))]
    check_python_agrees("M", tmp_path / "manifests", corpus, load_manifest, rng)


def run(model, source, output):
    return run_program(build_folder() / "out" / "segment", "run", "--manifest", model.yaml_path, "--input", source,
                       "--output", output)


@pytest.mark.parametrize("name", ["bomb.yaml", "brackets.yaml", "above.yaml", "pipe"])
def test_program_refuses_a_manifest(tmp_path, name):
    model = TinyModel(tmp_path / "model", seed=3)
    make_images(tmp_path / "images", 1, seed=4)
    table = bad_manifests(model.yaml_path.read_bytes())
    model.yaml_path.unlink()
    if name == "pipe":
        os.mkfifo(model.yaml_path)
    else:
        model.yaml_path.write_bytes(table[name])
    before = files_below(tmp_path)
    check_program_refuses(run(model, tmp_path / "images", tmp_path / "out"), model.yaml_path)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("content", [b"../../stolen\n", None], ids=["name", "pipe"])
def test_program_refuses_a_list(tmp_path, content):
    model = TinyModel(tmp_path / "model", seed=5)
    (tmp_path / "bins").mkdir()
    if content is None:
        os.mkfifo(tmp_path / "bins" / "files.txt")
    else:
        (tmp_path / "bins" / "files.txt").write_bytes(content)
    before = files_below(tmp_path)
    check_program_refuses(run(model, tmp_path / "bins", tmp_path / "out"), tmp_path / "bins" / "files.txt")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("suffix", ["png", "bin"])
def test_program_goes_on_after_a_bad_input(tmp_path, suffix):
    """One good input among bad ones of each kind: they are named one a line, and only it has a result."""
    model = TinyModel(tmp_path / "model", seed=6)
    source, output = tmp_path / "input", tmp_path / "out"
    if suffix == "png":
        make_images(source, 1, seed=7)
        table = {name: bad_images()[name] for name in ("claims.png", "jpeg2000.png", "one_less_plain.jpg", "empty.png")}
    else:
        source.mkdir()
        model.tensor(np.zeros((24, 40, 3), np.uint8)).tofile(source / "img_000.bin")
        table = {"empty.bin": b"", "long.bin": bytes(11524)}
    for name, content in table.items():
        (source / name).write_bytes(content)
    before = files_below(tmp_path)
    done = run(model, source, output)
    assert done.returncode == 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert sorted(line.split(": ")[1] for line in lines) == sorted(str(source / name) for name in table)
    assert read_summary(output)["failures"] == len(table)
    assert {path.name for path in output.iterdir()} == RUN_FILES | {"img_000.png"}
    assert {name: content for name, content in files_below(tmp_path).items() if not name.startswith("out")} == before
