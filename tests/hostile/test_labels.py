"""Labels: every bad file is refused in one line, by its header where that tells; the good ones keep their values."""
import io
import struct

import numpy as np
import pytest
from PIL import Image

from mindseg.data import decode
from mindseg.data.decode import decode_instances, decode_label, decode_label_values, encode_label, limit_pixels
from mindseg.data.labels import train_id_lut
from tests.support.data import make_camvid, random_label
from tests.support.hostile import check_program_refuses, check_refused, run_program
from tests.support.images import bmp, chunk, encode, pillow, png, webp

IDS = random_label(np.random.default_rng(0), 45, 61, [0, 1, 2])
COLOUR = np.random.default_rng(1).integers(0, 256, (45, 61, 3), np.uint8)
GREY = encode(".png", IDS)
ROWS = bytes(61 + 1) * 45       # of zeros
PLTE = chunk(b"PLTE", bytes(range(9)))


def palette(bits: int = 8, **options: object) -> bytes:
    picture = Image.fromarray(IDS, "P")
    picture.putpalette(list(range(3 * 2 ** bits)) if bits < 8 else [9] * 768)
    stream = io.BytesIO()
    picture.save(stream, "PNG", bits=bits, **options)
    return stream.getvalue()


PALETTE = palette()
FAST = encode_label(IDS)
GOOD = {
    "grey": GREY, "fast": FAST, **{f"palette of {bits} bits": palette(bits) for bits in (2, 4, 8)},
    "grey with transparency": png(61, 45, 8, 0, b"".join(b"\0" + row.tobytes() for row in IDS),
                                  chunk(b"tRNS", struct.pack(">H", 1))),
    "palette with transparency": palette(transparency=1),
    **{f"{kind}, {what} behind": data + tail for kind, data in (("grey", GREY), ("palette", PALETTE), ("fast", FAST))
       for what, tail in (("zeros", bytes(70_000)), ("text", b"<html>" * 2000), ("a png", encode(".png", COLOUR)))},
}

REFUSED = {
    "empty": (b"", "empty"), "text": (b"not found", "no image file"), "signature": (GREY[:8], "cut off"),
    **{f"{kind} cut to {share}": (data[:int(len(data) * share)], "cut off")
       for kind, data in (("grey", GREY), ("palette", PALETTE), ("fast", FAST)) for share in (0.1, 0.5, 0.99)},
    "grey bomb": (png(2 ** 15, 2 ** 14, 8, 0), "above the limit of 268435456 pixels"),
    "palette bomb": (png(2 ** 15, 2 ** 14, 8, 3, before=PLTE), "above the limit of 268435456 pixels"),
    "1-bit palette bomb": (png(2 ** 20, 2 ** 20, 1, 3, before=PLTE), "above the limit"),
    "palette of huge sides": (png(2 ** 31 - 1, 2 ** 31 - 1, 8, 3, before=PLTE), "above the limit"),
    "palette of one long row": (png(2 ** 27, 1, 8, 3, before=PLTE), "above the limit"),
    "0 wide": (png(0, 5, 8, 0), "size of 0x5"), "0 high": (png(5, 0, 8, 3), "size of 5x0"),
    "16-bit": (encode(".png", IDS.astype(np.uint16)), "grey, 16-bit"),
    "1-bit": (pillow(IDS, "1", "PNG"), "1-bit grey"), "4-bit": (png(4, 4, 4, 0, bytes(12)), "4-bit grey"),
    "colour": (encode(".png", COLOUR), "colour, 8-bit"),
    "colour with alpha": (encode(".png", np.dstack([COLOUR, IDS])), "colour with alpha, 8-bit"),
    "grey with alpha": (pillow(IDS, "LA", "PNG"), "grey with alpha, 8-bit"),
    "16-bit palette": (png(4, 4, 16, 3, before=PLTE), "palette, 16-bit"),
    "palette without colours": (png(61, 45, 8, 3, ROWS), "damaged"),
    "palette with damaged colours": (PALETTE.replace(bytes([9] * 9), bytes([9] * 8 + [8]), 1), "damaged"),
    "jpeg": (encode(".jpg", IDS), "label is JPEG"), "webp": (encode(".webp", COLOUR), "label is WebP"),
    "bmp": (encode(".bmp", IDS), "label is BMP"), "tiff": (encode(".tiff", IDS), "label is TIFF"),
    "pgm": (encode(".pgm", IDS), "label is PNM"), "gif": (pillow(IDS, "P", "GIF"), "label is GIF"),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "label is JPEG 2000"),
    "sun raster": (b"\x59\xa6\x6a\x95" + bytes(40), "label is Sun raster"),
    "bmp bomb": (bmp(2 ** 20, 2 ** 20), "label is BMP"),
    "webp bomb": (webp(b"VP8X", bytes(4) + b"\xff" * 6), "label is WebP"),
}

DAMAGED = {
    "grey without pixels": png(61, 45, 8, 0), "palette without pixels": png(61, 45, 8, 3, before=PLTE),
    "grey of too few rows": png(61, 45, 8, 0, ROWS[:1000]),
    "palette of too few rows": png(61, 45, 8, 3, ROWS[:1000], PLTE),
    "wrong filter": png(61, 45, 8, 0, (b"\x09" + bytes(61)) * 45),
}


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("case", GOOD)
def test_whole_labels(case):
    np.testing.assert_array_equal(decode_label(as_array(GOOD[case]), "x", train_id_lut(3)), IDS)


@pytest.mark.parametrize("case", REFUSED)
def test_labels_refused_by_their_header(case, monkeypatch):
    """Nothing is decoded, so that a bomb costs no memory."""
    monkeypatch.setattr(decode.cv2, "imdecode", None)
    data, words = REFUSED[case]
    check_refused(lambda: decode_label_values(as_array(data), "a/b.png"), "a/b.png", words)


@pytest.mark.parametrize("case", DAMAGED)
def test_labels_refused_by_the_decoder(case):
    check_refused(lambda: decode_label_values(as_array(DAMAGED[case]), "a/b.png"), "a/b.png", "label ")


@pytest.mark.parametrize(("colour", "before"), [(0, b""), (3, PLTE)], ids=["grey", "palette"])
def test_large_labels_of_both_kinds_are_alike(colour, before, monkeypatch, recwarn):
    """182 megapixels, above the limit that Pillow has of its own; its warnings begin at half of that."""
    monkeypatch.setattr(decode, "_limits", dict(decode._limits))
    row = b"\0" + bytes([0, 1, 2, 0] * 3375)
    data = as_array(png(13500, 13500, 8, colour, row * 13500, before))
    limit_pixels(13500 ** 2)
    values = decode_label_values(data, "x")
    assert values.shape == (13500, 13500)
    assert (values == np.tile(np.array([0, 1, 2, 0], np.uint8), 3375)).all()
    assert not recwarn.list
    limit_pixels(13500 ** 2 - 1)
    check_refused(lambda: decode_label_values(data, "x"), "x: label of 13500x13500", "runtime.max_pixels")


@pytest.mark.parametrize("data", [GREY, PALETTE, FAST], ids=["grey", "palette", "fast"])
def test_flipped_bytes(data):
    """Whatever comes out, it is a label with the header's size or one line."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        mutated = as_array(data).copy()
        mutated[rng.integers(0, mutated.size if rng.random() < 0.5 else 60, 2)] = rng.integers(0, 256, 2)
        try:
            assert decode_label_values(mutated, "x").ndim == 2
        except Exception:
            check_refused(lambda mutated=mutated: decode_label_values(mutated, "x"), "x: ")


def test_instance_maps():
    ids = (IDS.astype(np.uint16) * 26001)
    np.testing.assert_array_equal(decode_instances(as_array(encode(".png", ids)), "x"), ids)
    for data, words in ((encode(".png", COLOUR), "instance map is colour"), (encode(".tiff", ids), "is TIFF"),
                        (png(2 ** 20, 2 ** 20, 16, 0), "above the limit"), (encode(".png", ids)[:-9], "cut off")):
        check_refused(lambda data=data: decode_instances(as_array(data), "a/b.png"), "a/b.png", words)


def test_a_program_refuses_a_label_above_its_limit(tmp_path, rng):
    make_camvid(tmp_path, rng, 2)
    done = run_program("class-weights", "--config", "configs/_base_/camvid.yaml", "--set", f"data.root={tmp_path}",
                       "--set", "runtime.max_pixels=3071")
    check_program_refuses(done, tmp_path / "trainannot", "64x48", "limit of 3071 pixels")
