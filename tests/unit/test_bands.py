"""Images read by rows: the pixels of the whole file, each piece once, and files that lie."""
import struct

import cv2
import numpy as np
import pytest

from mindseg.data import bands
from mindseg.data.bands import TiffRows, WholeImage, open_bands
from mindseg.data.decode import decode_image, limit_pixels, pixel_limit
from mindseg.errors import DataError
from mindseg.files import FileBytes
from tests.support.images import encode, exif, pillow, tiff, with_exif
from tests.support.photographs import photographs

TIFFS = {name: case for name, case in photographs().items() if case[0][:2] in (b"II", b"MM")}


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces are decoded a few rows at a time."""
    monkeypatch.setattr(bands, "_ROWS_TOGETHER", 8)


def write(path, data):
    path.write_bytes(data)
    return path


def read(path, step, overlap=0):
    """The image by windows of ``step + overlap`` rows, and the class that read it."""
    with open_bands(path) as image:
        parts = []
        for top in range(0, image.size[0], step):
            rows = image.rows(top, min(top + step + overlap, image.size[0]))
            parts.append(rows[:step])
        return np.concatenate(parts), type(image)


def test_every_tiff_of_the_corpus_by_rows(tmp_path, small_pieces):
    by_rows = 0
    for number, (name, (data, expected, tolerance)) in enumerate(TIFFS.items()):
        path = write(tmp_path / f"{number}.tif", data)
        found, kind = read(path, 7, 5)
        assert np.abs(found.astype(int) - expected).max() <= tolerance, name
        np.testing.assert_array_equal(found, decode_image(np.frombuffer(data, np.uint8), name), name)
        by_rows += kind is TiffRows
    assert by_rows > len(TIFFS) / 2         # the others have to be turned


@pytest.mark.parametrize("make", [
    lambda image: tiff(image, tile=(32, 64)), lambda image: tiff(image, tile=(32, 48), compression=8, big=True),
    lambda image: tiff(image, tile=(32, 32), order=">", planes=2), lambda image: tiff(image, rows=2 ** 31),
    lambda image: tiff(image, rows=17, compression=8, order=">"),
    lambda image: tiff(image, rows=13, planes=2, big=True),
    lambda image: pillow(image, "RGB", "TIFF", compression="tiff_lzw", strip_size=1500),
    lambda image: pillow(image, "RGB", "TIFF", compression="jpeg", strip_size=4000)])
def test_larger_tiffs_by_rows(tmp_path, rng, small_pieces, make):
    image = cv2.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (173, 131), interpolation=cv2.INTER_CUBIC)
    data = make(image)
    path = write(tmp_path / "a.tif", data)
    expected = decode_image(np.frombuffer(data, np.uint8), "a")
    for step, overlap in ((131, 0), (32, 0), (50, 40), (1, 1)):
        found, kind = read(path, step, overlap)
        assert kind is TiffRows
        np.testing.assert_array_equal(found, expected)


def test_the_file_is_never_read_whole(tmp_path, rng, monkeypatch, small_pieces):
    image = rng.integers(0, 256, (512, 96, 3), np.uint8)
    path = write(tmp_path / "a.tif", tiff(image, tile=(16, 32), compression=8))
    reads = []
    original = FileBytes.__getitem__
    monkeypatch.setattr(FileBytes, "__getitem__", lambda self, part: reads.append(original(self, part)) or reads[-1])
    with open_bands(path) as opened:
        np.testing.assert_array_equal(opened.rows(0, 40)[..., ::-1], image[:40])
        assert sum(map(len, reads)) < path.stat().st_size / 4
        for top in range(0, 512, 32):
            opened.rows(top, min(512, top + 48))
            assert sum(len(pixels) for _, pixels in opened._blocks) <= 48 + 2 * 16
    assert sum(map(len, reads)) < 1.3 * path.stat().st_size
    assert max(map(len, reads)) < path.stat().st_size / 50


def test_other_formats_and_turned_tiffs_are_decoded_whole(tmp_path, rng):
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    for name, data in (("a.png", encode(".png", image)), ("b.bmp", encode(".bmp", image)),
                       ("c.tif", tiff(image[..., ::-1], tags={274: (3, [3])})),
                       ("d.jpg", with_exif(encode(".jpg", image), exif(6), 60, 40))):
        found, kind = read(write(tmp_path / name, data), 16, 8)
        assert kind is WholeImage
        np.testing.assert_array_equal(found, decode_image(np.frombuffer(data, np.uint8), name))


def test_the_pixel_limit_is_that_of_the_rows(tmp_path, rng):
    image = rng.integers(0, 256, (200, 50, 3), np.uint8)
    path, before = write(tmp_path / "a.tif", tiff(image, tile=(16, 64))), pixel_limit()
    limit_pixels(50 * 64)
    try:
        np.testing.assert_array_equal(read(path, 64)[0][..., ::-1], image)
        with pytest.raises(DataError, match=r"a.tif: a row of tiles has 65x50 pixels.*--tile") as info:
            read(path, 65)
        assert "\n" not in str(info.value)
        np.testing.assert_array_equal(read(write(tmp_path / "a.png", encode(".png", image)), 65)[0], image)
    finally:
        limit_pixels(before)


def with_entry(data, tag, number, order="<"):
    """The TIFF with another number in the entry of a tag."""
    at, = struct.unpack_from(order + "I", data, 4)
    count, = struct.unpack_from(order + "H", data, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, place)[0] == tag:
            return data[:place] + struct.pack(order + "HHII", tag, 4, 1, number) + data[place + 12:]
    raise AssertionError(tag)


@pytest.fixture(scope="module")
def plain():
    return tiff(np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8), tile=(32, 32), compression=8)


@pytest.mark.parametrize(("tag", "number", "words"), [
    (256, 2 ** 31, "above the limit"), (257, 2 ** 31, "above the limit"), (257, 2 ** 32 - 1, "above the limit"),
    (256, 2 ** 20, "cut off"), (257, 2 ** 20, "cut off"), (256, 0, "claims a size"), (322, 0, "cut off"),
    (323, 2 ** 31, "cut off"), (322, 16, "cut off"), (322, 2 ** 20, "cut off"), (325, 2 ** 31, "cut off"),
    (259, 1, "cut off"), (259, 34712, "compressed by"), (277, 4, "damaged in its header"), (258, 8, "damaged")])
def test_tiffs_that_lie_are_refused_in_one_line(tmp_path, plain, tag, number, words):
    path = write(tmp_path / "a.tif", with_entry(plain, tag, number))
    with pytest.raises(DataError, match=words) as info:
        read(path, 32)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 400


@pytest.mark.parametrize(("tag", "number"), [(322, 64), (322, 2 ** 16), (323, 96)])
def test_tiles_that_hold_less_than_they_claim_are_decoded_as_in_the_whole_file(tmp_path, plain, tag, number):
    """OpenCV fills them with black."""
    data = with_entry(plain, tag, number)
    np.testing.assert_array_equal(read(write(tmp_path / "a.tif", data), 32)[0],
                                  decode_image(np.frombuffer(data, np.uint8), "a"))


def test_a_length_that_claims_the_whole_file_costs_no_memory(tmp_path, rng, monkeypatch):
    """Each of 64 tiles claims to be as long as the file, 2 MB of junk; a copy of that for each would be 128 MB."""
    image = rng.integers(0, 256, (128, 128, 3), np.uint8)
    data = bytearray(tiff(image, tile=(16, 16), compression=8) + bytes(2 ** 21))
    at, = struct.unpack_from("<I", data, 4)
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag, _, count, value = struct.unpack_from("<HHII", data, place)
        if tag == 325:
            struct.pack_into(f"<{count}I", data, value, *[2 ** 21] * count)
    sizes = []
    monkeypatch.setattr(bands.tiff, "cut_rows",
                        lambda *args, make=bands.tiff.cut_rows: sizes.append(made := make(*args)) or made)
    np.testing.assert_array_equal(read(write(tmp_path / "a.tif", bytes(data)), 32)[0][..., ::-1], image)
    assert max(map(len, sizes)) < 2 ** 19


def test_every_cut_of_a_tiff_is_refused(tmp_path, plain):
    for end in [*range(0, 64, 5), *range(64, len(plain) - 4, 701), len(plain) - 5]:
        with pytest.raises(DataError) as info:
            read(write(tmp_path / "a.tif", plain[:end]), 32)
        assert str(info.value).startswith(str(tmp_path))


def test_random_damage_ends_in_pixels_or_one_line(tmp_path, plain):
    rng = np.random.default_rng(5)
    for _ in range(150):
        data = bytearray(plain)
        for place in rng.integers(len(data) - 400 if rng.random() < 0.7 else 0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            found, message = read(write(tmp_path / "a.tif", bytes(data)), 32)[0], ""
        except DataError as error:
            found, message = np.zeros((1, 1, 3)), str(error)
        assert found.shape[2] == 3
        assert "\n" not in message


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path, rng):
    image = rng.integers(0, 256, (512, 64, 3), np.uint8)
    path = write(tmp_path / "a.tif", tiff(image, tile=(32, 32), compression=8))
    with open_bands(path) as opened:
        opened.rows(0, 32)
        with open(path, "r+b") as stream:
            stream.truncate(1000)
        with pytest.raises(DataError):
            opened.rows(300, 400)
