"""Photographs: every bad file is refused in one line, by its header where that tells, and the good ones are read."""
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from mindseg.data import decode
from mindseg.data.decode import decode_image, decode_image_rows, limit_pixels
from mindseg.files import read_bytes
from tests.support.data import make_camvid, random_image
from tests.support.hostile import check_program_refuses, check_refused, mutation_count, run_program
from tests.support.images import bmp, chunk, encode, pillow, png, tiff, webp, with_jpeg_size
from tests.support.photographs import bad_tiffs, odd_tiffs

IMAGE = random_image(np.random.default_rng(0), 48, 64)
NOISE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
RGB = np.ascontiguousarray(IMAGE[..., ::-1])
GREY = np.ascontiguousarray(IMAGE[..., 0])
PNG, JPEG, BMP = encode(".png", IMAGE), encode(".jpg", IMAGE), encode(".bmp", IMAGE)
WEBP = encode(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 101)
TIFF = tiff(RGB)
PROGRESSIVE = encode(".jpg", NOISE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = encode(".jpg", NOISE, cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
SCAN = JPEG.index(b"\xff\xda")
ANIMATION = webp(b"VP8X", bytes([2, 0, 0, 0]) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little"))
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)

# Whole files with anything behind them: bytes, and the file that has the same pixels.
GOOD = {
    "png": (PNG, PNG), "jpeg": (JPEG, JPEG), "bmp": (BMP, PNG), "webp": (WEBP, PNG),
    "tiff": (TIFF, PNG), "progressive jpeg": (PROGRESSIVE, PROGRESSIVE),
    "jpeg with restarts": (RESTARTS, RESTARTS), "palette png": (pillow(RGB, "P", "PNG"),) * 2,
    "bmp upside down": (bmp(64, -48, pixels=IMAGE.tobytes()), PNG),
    **{f"{kind}, {what} behind": (data + tail, data)
       for kind, data in (("png", PNG), ("jpeg", JPEG), ("progressive", PROGRESSIVE), ("webp", WEBP), ("bmp", BMP),
                          ("tiff", TIFF))
       for what, tail in (("zeros", bytes(70_000)), ("text", b"<html>" * 2000), ("a jpeg", JPEG))},
    "jpeg, comment between": (JPEG[:2] + b"\xff\xfe\0\6\xff\xd9\xff\xd9" + JPEG[2:], JPEG),
}

# Bytes that must not be decoded, and words of the refusal.
REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"<html>not found</html>", "no image file"),
    "one byte": (b"\x89", "no image file"),
    "zeros": (bytes(1000), "no image file"),
    **{f"{kind} cut to {share}": (data[:int(len(data) * share)], "cut off")
       for kind, data in (("png", PNG), ("jpeg", JPEG), ("progressive", PROGRESSIVE), ("webp", WEBP), ("bmp", BMP),
                          ("tiff", TIFF))
       for share in (0.1, 0.5, 0.99)},
    "png signature": (PNG[:8], "cut off"), "jpeg start": (JPEG[:4], "cut off"), "bmp start": (BMP[:6], "cut off"),
    "webp start": (WEBP[:16], "cut off"),
    "jpeg cut, zeros behind": (JPEG[:-200] + bytes(5000), "cut off"),
    "jpeg cut, a jpeg behind": (JPEG[:-200] + JPEG, "cut off"),
    "progressive cut, a jpeg behind": (PROGRESSIVE[:len(PROGRESSIVE) // 2] + JPEG, "cut off"),
    "jpeg header alone": (JPEG[:SCAN] + b"\xff\xd9", "cut off"),
    "jpeg of marks alone": (b"\xff\xd8\xff" + b"\xff" * 50_000, "cut off"),
    "png cut, IEND behind": (PNG[:len(PNG) // 2] + chunk(b"IEND", b""), "cut off"),
    "png without IHDR first": (PNG[:8] + chunk(b"tEXt", b"a\0b") + PNG[8:], "damaged"),
    "png with a long chunk": (PNG[:33] + b"\xff\xff\xff\xffIDAT" + PNG[41:], "cut off"),
    "png of no chunks": (PNG[:33] + bytes(12) * 1000, "cut off"),
    "png bomb": (png(2 ** 20, 2 ** 20), "above the limit of 268435456 pixels"),
    "png of huge sides": (png(2 ** 31 - 1, 2 ** 31 - 1), "above the limit"),
    "png of one long row": (png(2 ** 27, 1), "above the limit"),
    "jpeg bomb": (with_jpeg_size(JPEG, 65535, 65535), "above the limit"),
    "progressive bomb": (with_jpeg_size(PROGRESSIVE, 65500, 65500), "above the limit"),
    "bmp bomb": (bmp(2 ** 20, 2 ** 20), "above the limit"),
    "bmp of negative sides": (bmp(-5, 5), "size of -5x5"),
    "bmp of the lowest height": (bmp(64, -2 ** 31), "above the limit"),
    "webp bomb": (webp(b"VP8X", bytes(4) + b"\xff" * 6), "above the limit"),
    "png 0 wide": (png(0, 5), "size of 0x5"), "png 0 high": (png(5, 0), "size of 5x0"),
    "jpeg 0 high": (with_jpeg_size(JPEG, 64, 0), "size of 64x0"), "bmp 0 wide": (bmp(0, 5), "size of 0x5"),
    "png of unknown colours": (png(4, 4, 8, 7), "unknown, 8-bit"),
    "jpeg of 2 channels": (with_jpeg_size(JPEG, 64, 48, 2), "of 2 channels"),
    "webp animation": (ANIMATION, "an animation"),
    "bmp packed": (bmp(64, 48, 8, 1, bytes(9000)), "image is packed"),
    "gif": (pillow(RGB, "P", "GIF"), "image is GIF"),
    **{f"tiff, {name}": (data, words) for name, (data, words) in bad_tiffs().items()},
    "ppm": (encode(".ppm", IMAGE), "image is PNM"), "pfm": (encode(".pfm", IMAGE.astype(np.float32)), "image is PNM"),
    "jpeg 2000": (JP2, "image is JPEG 2000"), "jpeg 2000 stream": (b"\xff\x4f\xff\x51" + bytes(40), "JPEG 2000"),
    "sun raster": (b"\x59\xa6\x6a\x95" + bytes(40), "image is Sun raster"),
    "hdr": (b"#?RADIANCE\n" + bytes(40), "image is HDR"), "openexr": (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR"),
    "avif": (b"\0\0\0\x1cftypavif" + bytes(40), "image is AVIF"), "heic": (b"\0\0\0\x1cftypheic", "image is HEIF"),
    "jpeg xl": (b"\xff\x0a" + bytes(40), "image is JPEG XL"),
}

# Files whose fault only the decoder finds.
DAMAGED = {
    "png without pixels": png(64, 48), "png of too few rows": png(64, 48, rows=bytes(193 * 20)),
    "png with a wrong checksum": PNG[:len(PNG) // 2] + bytes([PNG[len(PNG) // 2] ^ 1]) + PNG[len(PNG) // 2 + 1:],
    "palette without colours": png(4, 4, 8, 3, bytes(5 * 4)),
    "webp of zeros": webp(b"VP8L", b"\x2f" + struct.pack("<I", 63 | 47 << 14) + bytes(50)),
    "tiff of noise": tiff(GREY.astype(np.uint16), tags={259: (3, [8])}),
    "jpeg of another size": with_jpeg_size(JPEG, 64, 48, 3).replace(b"\xff\xc0", b"\xff\xc3", 1),
}


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("case", GOOD)
def test_whole_images(case):
    data, same = GOOD[case]
    truth = cv2.imdecode(as_array(same), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    np.testing.assert_array_equal(decode_image(as_array(data), "x"), truth)
    rows, size = decode_image_rows(as_array(data), "x", 17, 31)
    assert size == truth.shape[:2]
    np.testing.assert_array_equal(rows, truth[17:31])


def test_odd_tiffs():
    for name, (data, truth) in odd_tiffs().items():
        np.testing.assert_array_equal(decode_image(as_array(data), "x"), truth, name)


@pytest.mark.parametrize("case", REFUSED)
def test_images_refused_by_their_header(case, monkeypatch):
    """Nothing is decoded, so that a bomb costs no memory."""
    monkeypatch.setattr(decode.cv2, "imdecode", None)
    data, words = REFUSED[case]
    check_refused(lambda: decode_image(as_array(data), "a/b.png"), "a/b.png", words)
    check_refused(lambda: decode_image_rows(as_array(data), "a/b.png", 0, 8), "a/b.png", words)


@pytest.mark.parametrize("case", DAMAGED)
def test_images_refused_by_the_decoder(case):
    check_refused(lambda: decode_image(as_array(DAMAGED[case]), "a/b.png"), "a/b.png", "image ")


@pytest.mark.parametrize("data", [PNG, JPEG, PROGRESSIVE, WEBP, BMP, TIFF],
                         ids=["png", "jpeg", "progressive", "webp", "bmp", "tiff"])
def test_flipped_bytes(data, rng):
    """Whatever comes out, it is an image of the header's size or one line."""
    for _ in range(mutation_count(200, 600000)):
        mutated = as_array(data).copy()
        mutated[rng.integers(0, mutated.size if rng.random() < 0.5 else 60, 2)] = rng.integers(0, 256, 2)
        try:
            assert decode_image(mutated, "x").shape[2] == 3
        except Exception:
            check_refused(lambda mutated=mutated: decode_image(mutated, "x"), "x: ")


def test_the_limit_of_pixels(monkeypatch):
    monkeypatch.setattr(decode, "_limits", dict(decode._limits))
    for data in (PNG, JPEG, WEBP, BMP, TIFF):
        limit_pixels(64 * 48)
        assert decode_image(as_array(data), "x").shape == (48, 64, 3)
        limit_pixels(64 * 48 - 1)
        check_refused(lambda data=data: decode_image(as_array(data), "x"), "64x48", "limit of 3071 pixels",
                      "runtime.max_pixels")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: path.symlink_to(path), lambda path: None],
                         ids=["folder", "pipe", "device", "loop", "missing"])
def test_paths_that_are_no_files(tmp_path, make):
    path = tmp_path / "x.png"
    make(path)
    check_refused(lambda: read_bytes(path), path, "cannot be read")


def test_a_program_refuses_a_bomb_and_leaves_nothing(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 2)
    bomb = tmp_path / "d" / "train" / "f001.png"
    bomb.write_bytes(png(2 ** 20, 2 ** 20))
    done = run_program("pack", "--config", "configs/_base_/camvid.yaml", "--root", tmp_path / "d", "--output",
                       tmp_path / "o" / "x")
    check_program_refuses(done, bomb, "above the limit")
    assert list((tmp_path / "o").iterdir()) == []
