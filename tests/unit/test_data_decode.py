"""Every kind of bad file gives one clear line; good ones give exactly their pixels."""
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mindseg.data import jpeg
from mindseg.data.datasets import CITYSCAPES, VOC
from mindseg.data.decode import decode_image, decode_image_rows, decode_label, encode_label
from mindseg.data.labels import has_unmapped, label_lut, train_id_lut
from mindseg.errors import DataError
from tests.support.data import random_image, random_label, write_palette
from tests.support.images import exif, turned, with_exif

LUT = train_id_lut(3)


def encode(suffix: str, pixels: np.ndarray, *options: int) -> np.ndarray:
    return cv2.imencode(suffix, pixels, list(options))[1].ravel()


def pillow(pixels: np.ndarray, mode: str, **options) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG", **options)
    return np.frombuffer(stream.getvalue(), np.uint8)


@pytest.mark.parametrize(("suffix", "options", "tolerance"), [
    (".png", (), 0), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101), 0), (".jpg", (cv2.IMWRITE_JPEG_QUALITY, 98), 4)])
def test_good_images(rng, suffix, options, tolerance):
    image = random_image(rng, 33, 47)
    out = decode_image(encode(suffix, image, *options), "x")
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - image).mean() <= tolerance


def test_images_without_a_known_range(rng):
    image = random_image(rng, 16, 16)[..., 0].astype(np.float32)
    with pytest.raises(DataError, match=r"a/b\.tif: image is of floating-point .* no known range, 32-bit"):
        decode_image(encode(".tiff", image), "a/b.tif")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.999])
def test_cut_off_images(rng, suffix, keep):
    data = encode(suffix, rng.integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"^x: .*(empty|cut off)"):
        decode_image(data[:int(len(data) * keep)], "x")


def test_damaged_and_foreign_bytes(rng):
    data = encode(".png", rng.integers(0, 256, (64, 64, 3), np.uint8)).copy()
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match="damaged"):
        decode_image(data, "x")
    with pytest.raises(DataError, match="no image file"):
        decode_image(np.frombuffer(b"<html>not found</html>", np.uint8), "x")


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_thumbnails_end_mark_is_not_the_images(rng, progressive):
    """A camera's file holds a small JPEG of its own in the EXIF segment; what counts is the end behind the pixels."""
    image = rng.integers(0, 256, (64, 96, 3), np.uint8)
    options = (cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    data = encode(".jpg", image, *options)
    content = b"Exif\0\0" + encode(".jpg", cv2.resize(image, (24, 16)), cv2.IMWRITE_JPEG_QUALITY, 50).tobytes()
    exif = np.frombuffer(b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content, np.uint8)
    whole = np.concatenate([data[:2], exif, data[2:]])
    trailer = np.zeros(70_000, np.uint8)        # phones append films and depth maps
    for fine in (whole, np.concatenate([whole, trailer]), np.concatenate([whole[:2], [np.uint8(255)], whole[2:]])):
        np.testing.assert_array_equal(decode_image(fine, "x"), decode_image(data, "x"))
    for keep in (len(whole) - 2, len(whole) // 2, len(exif) + 200, len(exif) + 2, len(exif) - 5):
        with pytest.raises(DataError, match=r"^x: the file is cut off"):
            decode_image(whole[:keep], "x")
        with pytest.raises(DataError, match=r"^x: the file is cut off"):
            decode_image_rows(whole[:keep], "x", 0, 8)


def packed_jpeg(image: np.ndarray, interval: int | None = None, *options: int) -> np.ndarray:
    """A JPEG as MindRecords hold it, or with another restart interval."""
    interval = jpeg.restart_interval(image.shape[1]) if interval is None else interval
    return encode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_RST_INTERVAL, interval, *options)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (160, 47), (301, 64)])
def test_rows_of_a_jpeg_are_those_of_the_whole(rng, height, width):
    data = packed_jpeg(rng.integers(0, 256, (height, width, 3), np.uint8))      # noise: chroma differs in every pixel
    whole = decode_image(data, "x")
    for _ in range(60):
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False))
        rows, size = decode_image_rows(data, "x", int(top), int(bottom))
        assert size == (height, width)
        assert np.array_equal(rows, whole[top:bottom])
        part, start, _ = jpeg.cut_rows(data, int(top), int(bottom))
        decoded = decode_image(part, "x").shape[0]
        assert start <= top
        assert decoded <= bottom - top + 4 * 16       # at most two rows of blocks more on either side


def test_rows_of_other_files_are_decoded_whole(rng):
    image = random_image(rng, 70, 90)
    lone_mark = np.append(packed_jpeg(image)[:-2], np.array([0xFF, 0xD0, 0xFF, 0xD9], np.uint8))
    for data in (encode(".png", image), encode(".jpg", image), packed_jpeg(image, 5), lone_mark,
                 packed_jpeg(image, None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
                 encode(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 101)):
        assert jpeg.cut_rows(data, 20, 40) is None
        rows, size = decode_image_rows(data, "x", 20, 40)
        assert size == (70, 90)
        assert np.array_equal(rows, decode_image(data, "x")[20:40])
    # Without subsampling rows of blocks are 8 high and their blocks 8 wide.
    fine = packed_jpeg(image, 12, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    assert jpeg.cut_rows(fine, 20, 40)[1] == 8
    assert np.array_equal(decode_image_rows(fine, "x", 20, 40)[0], decode_image(fine, "x")[20:40])


def test_rows_of_bad_jpegs(rng):
    data = packed_jpeg(random_image(rng, 128, 128))
    for keep in (0.0, 0.02, 0.2, 0.5, 0.999):
        with pytest.raises(DataError, match=r"^x: .*(empty|cut off)"):
            decode_image_rows(data[:int(len(data) * keep)], "x", 30, 60)


def test_rows_of_a_turned_jpeg(rng):
    """A run of rows of the picture is none of the file, which is decoded whole."""
    data = packed_jpeg(rng.integers(0, 256, (160, 47, 3), np.uint8))
    whole = decode_image(data, "x")
    for orientation in (1, 6):
        tagged = np.frombuffer(with_exif(data.tobytes(), exif(orientation), 47, 160), np.uint8)
        rows, size = decode_image_rows(tagged, "x", 7, 33)
        picture = turned(whole, orientation)
        assert size == picture.shape[:2]
        assert np.array_equal(rows, picture[7:33])


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, 0.99])
def test_cut_off_labels(rng, tmp_path, keep):
    ids = rng.integers(0, 3, (64, 64), np.uint8)
    for data in (encode(".png", ids), np.fromfile(write_palette(tmp_path / "p.png", ids), np.uint8)):
        with pytest.raises(DataError, match=r"^x: .*(empty|cut off)"):
            decode_label(data[:int(len(data) * keep)], "x", LUT)


def test_damaged_palette_label(rng, tmp_path):
    data = np.fromfile(write_palette(tmp_path / "p.png", rng.integers(0, 3, (64, 64), np.uint8)), np.uint8)
    whole = data.copy()
    for place in rng.integers(33, data.size - 12, 20):      # behind the header, before the end mark
        data[place] ^= np.uint8(1 << rng.integers(8))
        with pytest.raises(DataError, match="damaged"):
            decode_label(data, "x", LUT)
        data[place] = whole[place]
    decode_label(data, "x", LUT)


def test_labels_that_are_none(rng):
    image = random_image(rng, 16, 16)
    for data, words in ((encode(".png", image), "colour, 8-bit"),
                        (encode(".png", np.dstack([image, image[..., 0]])), "colour with alpha, 8-bit"),
                        (encode(".png", image[..., 0].astype(np.uint16)), "grey, 16-bit"),
                        (encode(".jpg", image), "JPEG"),
                        (pillow(image, "1"), "1-bit grey")):
        with pytest.raises(DataError, match=rf"x: label is {words}"):
            decode_label(data, "x", LUT)


@pytest.mark.parametrize(("suffix", "name"), [(".jpg", "JPEG"), (".bmp", "BMP"), (".tiff", "TIFF")])
def test_grey_labels_that_are_no_png_are_refused_though_their_values_are_legal(suffix, name):
    ids = np.full((32, 32), 1, np.uint8)
    assert np.array_equal(cv2.imdecode(encode(suffix, ids), cv2.IMREAD_UNCHANGED), ids)
    with pytest.raises(DataError, match=rf"x: label is {name}.*PNG"):
        decode_label(encode(suffix, ids), "x", LUT)


def test_bad_value_names_file_value_and_share():
    ids = np.zeros((10, 20), np.uint8)
    ids[0, :3] = 77
    ids[1, :7] = 99
    with pytest.raises(DataError) as caught:
        decode_label(encode(".png", ids), "some/file.png", LUT)
    text = str(caught.value)
    assert text.startswith("some/file.png: label value 99 on 3.5 % of the pixels and 1 more such value")
    assert "allowed are 0..2, 255" in text
    assert "\n" not in text


def test_palette_indices_are_the_label(rng, tmp_path):
    ids = random_label(rng, 40, 56, [*range(21), 255])
    data = np.fromfile(write_palette(tmp_path / "p.png", ids), np.uint8)
    assert np.array_equal(decode_label(data, "x", VOC.label_lut()), ids)
    # With few colours Pillow packs 1, 2 or 4 bits a pixel.
    for bits in (1, 2, 4):
        few = random_label(rng, 41, 57, list(range(2 ** bits))[:3])
        picture_ = Image.fromarray(few, "P")
        picture_.putpalette([0] * 3 * 2 ** bits)
        stream = io.BytesIO()
        picture_.save(stream, "PNG", bits=bits)
        assert np.array_equal(decode_label(np.frombuffer(stream.getvalue(), np.uint8), "x", LUT), few)


def test_fast_labels_are_ordinary_pngs(rng):
    ids = random_label(rng, 45, 61, list(range(0, 256, 5)))
    data = encode_label(ids)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), ids)
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), ids)


@pytest.mark.parametrize("lut", [LUT, CITYSCAPES.label_lut(), label_lut({0: 0, 9: 1, 255: 255}),
                                 label_lut({i: 0 for i in range(256)}), label_lut({5: 0})])
def test_has_unmapped_for_every_single_value(lut):
    for value in range(256):
        legal = np.flatnonzero(lut != 254)[0]
        values = np.full((4, 4), legal, np.uint8)
        values[2, 1] = value
        assert has_unmapped(values, lut) == (lut[value] == 254)
