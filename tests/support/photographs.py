"""Photographs as people have them, with the pixels that every reader must make of them."""
import io
import struct
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from tests.support.images import chunk, encode, exif, pillow, png, tiff, turned, with_exif

HEIGHT, WIDTH = 37, 53
LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 101)


def photographs() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """Content, BGR pixels as a viewer shows them, and how far a pixel may be from them, by file name."""
    files = {}
    for make in (_turned, _pngs, _jpegs, _webps_and_bmps, _tiffs, _tiffs_of_pillow):
        for name, content, truth, tolerance in make(np.random.default_rng(5)):
            assert name not in files
            files[name] = content, np.ascontiguousarray(truth), tolerance
    return files


Case = tuple[str, bytes, np.ndarray, int]


def _noise(rng: np.random.Generator, channels: int, dtype: type = np.uint8) -> np.ndarray:
    return rng.integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, channels), dtype)


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., :1], 3, axis=2)


def _turned(rng: np.random.Generator) -> Iterator[Case]:
    """All orientations of all formats that know them."""
    image, deep = _noise(rng, 3), _noise(rng, 3, np.uint16)
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    stored = {"png": encode(".png", image), "jpg": encode(".jpg", smooth), "webp": encode(".webp", image, *LOSSLESS),
              "lossy.webp": encode(".webp", smooth, cv2.IMWRITE_WEBP_QUALITY, 80)}
    for orientation in range(1, 9):
        order = "<>"[orientation % 2]
        for kind, content in stored.items():
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            yield (f"turned{orientation}.{kind}", with_exif(content, exif(orientation, order), WIDTH, HEIGHT),
                   turned(pixels, orientation), 0)
        tag = {274: (3, [orientation])}
        rgb = image[..., ::-1]
        for name, content, truth in (
                ("strips", tiff(rgb, order=order, tags=tag), image),
                ("tiles", tiff(rgb, order=order, tile=(32, 64), tags=tag), image),
                ("deep", tiff(deep[..., ::-1], order=order, tags=tag), _rounded(deep)),
                ("grey", tiff(rgb[..., 0], order=order, tags=tag), _grey(rgb))):
            yield f"turned{orientation}_{name}.tif", content, turned(truth, orientation), 0
    for number in (0, 9):
        yield f"turned{number}.png", with_exif(stored["png"], exif(number), WIDTH, HEIGHT), image, 0


def _pngs(rng: np.random.Generator) -> Iterator[Case]:
    image, deep = _noise(rng, 4), _noise(rng, 4, np.uint16)
    yield "grey.png", encode(".png", image[..., 0]), _grey(image), 0
    yield "grey16.png", encode(".png", deep[..., 0]), _rounded(_grey(deep)), 0
    yield "colour16.png", encode(".png", deep[..., :3]), _rounded(deep[..., :3]), 0
    yield "alpha.png", encode(".png", image), image[..., :3], 0
    yield "alpha16.png", encode(".png", deep), _rounded(deep[..., :3]), 0
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    yield "every16.png", encode(".png", every), _rounded(_grey(every[..., None])), 0
    for bits in (1, 2, 4):
        values = rng.integers(0, 2 ** bits, (HEIGHT, 8), np.uint8)
        digits = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(digits.reshape(HEIGHT, -1), axis=1)
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        truth = _grey((values * (255 // (2 ** bits - 1))).astype(np.uint8)[..., None])
        yield f"grey{bits}.png", png(8, HEIGHT, bits, 0, rows), truth, 0
    for dtype, bits in ((np.uint8, 8), (np.uint16, 16)):
        pair = _noise(rng, 2, dtype)
        rows = b"".join(b"\0" + row.astype(pair.dtype.newbyteorder(">")).tobytes() for row in pair)
        truth = _grey(pair) if bits == 8 else _rounded(_grey(pair))
        yield f"grey_alpha{bits}.png", png(WIDTH, HEIGHT, bits, 4, rows), truth, 0
    rows = b"".join(b"\0" + row.tobytes() for row in image[..., 2::-1])
    transparent = image[0, 0, 2::-1].astype(">u2").tobytes()
    yield "colour_trns.png", png(WIDTH, HEIGHT, 8, 2, rows, chunk(b"tRNS", transparent)), image[..., :3], 0
    rows = b"".join(b"\0" + row.tobytes() for row in image[..., 0])
    yield "grey_trns.png", png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"tRNS", b"\0\7")), _grey(image), 0
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    for name, extra in (("", b""), ("_trns", chunk(b"tRNS", bytes(range(256))))):
        before = chunk(b"PLTE", palette.tobytes()) + extra
        yield f"palette{name}.png", png(WIDTH, HEIGHT, 8, 3, rows, before), palette[image[..., 0]][..., ::-1], 0


def _jpegs(rng: np.random.Generator) -> Iterator[Case]:
    smooth = cv2.GaussianBlur(_noise(rng, 3), (0, 0), 4)
    ink = cv2.GaussianBlur(_noise(rng, 4), (0, 0), 4)
    yield "grey.jpg", encode(".jpg", smooth[..., 0], cv2.IMWRITE_JPEG_QUALITY, 100), _grey(smooth), 2
    paper = (255 - ink[..., :3].astype(int)) * (255 - ink[..., 3:].astype(int)) // 255
    stream = io.BytesIO()
    Image.merge("CMYK", [Image.fromarray(channel) for channel in np.moveaxis(ink, 2, 0).copy()]).save(
        stream, "JPEG", quality=100)
    yield "cmyk.jpg", stream.getvalue(), paper[..., ::-1], 4


def _webps_and_bmps(rng: np.random.Generator) -> Iterator[Case]:
    image = _noise(rng, 4)
    image[..., 3] |= 1          # where it is 0 the encoder may change the colours
    yield "alpha.webp", encode(".webp", image, *LOSSLESS), image[..., :3], 0
    yield ("alpha_turned.webp", with_exif(encode(".webp", image, *LOSSLESS), exif(6), WIDTH, HEIGHT),
           turned(image[..., :3], 6), 0)
    yield "grey.bmp", pillow(image[..., 0], "L", "BMP"), _grey(image), 0
    yield "alpha.bmp", encode(".bmp", image), image[..., :3], 0


def _tiffs(rng: np.random.Generator) -> Iterator[Case]:
    image, deep = _noise(rng, 4), _noise(rng, 4, np.uint16)     # RGBA
    bgr, deep_bgr = image[..., 2::-1], _rounded(deep[..., 2::-1])
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    colours = {320: (3, (palette.T.astype(int) * 257).ravel().tolist())}
    coloured = palette[image[..., 0]][..., ::-1]
    for number, (order, big) in enumerate((order, big) for order in "<>" for big in (False, True)):
        for tile in (None, (32, 64)):
            where = {"order": order, "big": big, "tile": tile, "compression": 8 if number % 2 else 1}
            for name, content, truth in (
                    ("grey", tiff(image[..., 0], **where), _grey(image)),
                    ("grey16", tiff(deep[..., 0], **where), _rounded(_grey(deep))),
                    ("colour", tiff(image[..., :3], **where), bgr),
                    ("colour16", tiff(deep[..., :3], **where), deep_bgr),
                    ("alpha", tiff(image, **where, tags={338: (3, [2])}), bgr),
                    ("alpha16", tiff(deep, **where, tags={338: (3, [2])}), deep_bgr),
                    ("palette", tiff(image[..., 0], 3, **where, tags=colours), coloured)):
                yield f"{name}_{number}{'_tiles' if tile else ''}.tif", content, truth, 0
    for kind in (0, 1):     # of the fourth channel: unspecified, already multiplied
        yield f"alpha_kind{kind}.tif", tiff(image, tags={338: (3, [kind])}), bgr, 0
    yield "alpha_unnamed.tif", tiff(image), bgr, 0
    yield "grey_alpha.tif", tiff(image[..., :2], tags={338: (3, [2])}), _grey(image), 0
    yield "white_is_zero.tif", tiff(image[..., 0], 0), 255 - _grey(image), 0
    yield "white_is_zero16.tif", tiff(deep[..., 0], 0), _rounded(65535 - _grey(deep)), 0
    yield "black_and_white.tif", tiff(image[..., 0] > 99), _grey(np.where(image > 99, 255, 0).astype(np.uint8)), 0
    yield "white_and_black.tif", tiff(image[..., 0] > 99, 0), _grey(np.where(image > 99, 0, 255).astype(np.uint8)), 0
    yield "planes.tif", tiff(image[..., :3], planes=2), bgr, 0
    yield "planes16.tif", tiff(deep[..., :3], planes=2), deep_bgr, 0
    yield "one_strip.tif", tiff(image[..., :3], rows=2 ** 31), bgr, 0
    paper = (255 - image[..., :3].astype(int)) * (255 - image[..., 3:].astype(int)) // 255
    yield "cmyk.tif", tiff(image, 5), paper[..., ::-1], 1
    thumbnail = {254: (4, [1]), 330: (4, [8]), 34665: (4, [8]), 700: (1, list(b"<x/>"))}
    yield "further_tags.tif", tiff(image[..., :3], tags=thumbnail), bgr, 0


def _tiffs_of_pillow(rng: np.random.Generator) -> Iterator[Case]:
    image = cv2.GaussianBlur(_noise(rng, 3), (0, 0), 4)
    bgr = image[..., ::-1]
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"):
        tolerance = 12 if compression == "jpeg" else 0
        yield f"{compression}.tif", pillow(image, "RGB", "TIFF", compression=compression), bgr, tolerance
        yield (f"{compression}_grey.tif", pillow(image[..., 0], "L", "TIFF", compression=compression), _grey(image),
               tolerance)
    lines = np.where(image[..., 0] > 127, 255, 0).astype(np.uint8)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield (f"{compression}.tif", pillow(lines, "1", "TIFF", compression=compression), _grey(lines[..., None]), 0)


def odd_tiffs() -> dict[str, tuple[bytes, np.ndarray]]:
    """TIFFs with oddities that do no harm, and their BGR pixels, by name."""
    image = _noise(np.random.default_rng(6), 3)
    plain = tiff(image)
    loop = plain[:-4] + plain[4:8]          # the directory that follows is the same one again
    files = {"next directory is this one": loop, "next directory lies behind the end": plain[:-4] + b"\xff" * 4,
             "bytes behind": plain + bytes(70_000), "an odd length": plain + b"\0",
             "sub-directory is this one": tiff(image, tags={330: (4, [struct.unpack("<I", plain[4:8])[0]])}),
             "an unknown tag": tiff(image, tags={65000: (3, [1, 2, 3])}),
             "an unknown orientation": tiff(image, tags={274: (3, [0])}),
             "too many strips": tiff(image, rows=HEIGHT, tags={273: (4, [8, 8, 8])})}
    return {name: (content, image[..., ::-1]) for name, content in files.items()}


def bad_tiffs() -> dict[str, tuple[bytes, str]]:
    """TIFFs that are refused by their header, and words of the refusal, by name."""
    image = _noise(np.random.default_rng(7), 3)
    grey = np.ascontiguousarray(image[..., 0])
    plain, strips = tiff(image), -(-HEIGHT // 10)
    entries = struct.unpack("<I", plain[4:8])[0]

    def changed(tag: int, kind: int, *numbers: int, pixels: np.ndarray = image, **options: object) -> bytes:
        return tiff(pixels, **options, tags={tag: (kind, list(numbers))})

    damaged = {
        "header alone": plain[:8], "cut": plain[:len(plain) // 2], "cut in the directory": plain[:-20],
        "no directory": plain[:4] + bytes(4) + plain[8:],
        "directory behind the end": plain[:4] + b"\xff" * 4 + plain[8:],
        "BigTIFF directory behind the end": b"II+\0\x08\0\0\0" + b"\xff" * 8 + plain,
        "BigTIFF of short numbers": b"II+\0\x04\0\0\0" + bytes(60),
        "no entries": b"II*\0\x08\0\0\0" + bytes(10_000_000),
        "65535 entries": plain[:entries] + b"\xff\xff" + bytes(10_000_000),
        "BigTIFF of 2**64 entries": b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + b"\xff" * 10_000_000,
        "no channels": changed(277, 3, 0), "bits of one channel only": changed(258, 3, 8),
        "strips behind the end": changed(273, 4, *[len(plain) + 2000] * strips),
        "strips far behind the end": changed(273, 16, *[2 ** 64 - 8] * strips, big=True),
        "short strips": changed(279, 4, *[10] * strips), "empty strips": changed(279, 4, *[0] * strips, compression=8),
        "endless strips": changed(279, 4, *[2 ** 32 - 1] * strips), "few strips": changed(273, 4, 8, 8),
        "no rows in a strip": changed(278, 4, 0), "one row in a strip": changed(278, 4, 1),
        "places of strips behind the end": plain.replace(struct.pack("<HHI", 273, 4, strips),
                                                         struct.pack("<HHI", 273, 4, 2 ** 30)),
        "tiles of no width": changed(322, 4, 0, tile=(32, 64)), "huge tiles": changed(322, 4, 2 ** 31, tile=(32, 64)),
        "tiles without places": tiff(image, tags={322: (4, [64]), 323: (4, [32])})}
    large = {"wide": changed(256, 4, 2 ** 32 - 1), "many pixels": tiff(image, tags={256: (4, [2 ** 20]),
                                                                                  257: (4, [2 ** 20])}),
             "endless": changed(256, 16, 2 ** 63 - 1, big=True)}
    numbers = image.astype(np.float32)
    wrong = {
        "floating-point": (changed(339, 3, 3, 3, 3, pixels=numbers), "which have no known range, 32-bit"),
        "signed": (changed(339, 3, 2, 2, 2), "signed integers, 8-bit"),
        "complex": (changed(339, 3, 6, 6, 6), "unknown format"), "32 bits": (tiff(numbers), "a colour TIFF, 32-bit"),
        "12 bits": (changed(258, 3, 12, pixels=grey, compression=8), "a grey TIFF, 12-bit"),
        "different bits": (changed(258, 3, 8, 8, 16), "channels of different bits"),
        "five channels": (tiff(np.dstack([image, grey, grey])), "5 channels"),
        "CIELab": (tiff(image, 8), "photometric interpretation 8"),
        "old JPEG": (tiff(image, compression=6), "compressed by method 6"),
        "Zstandard": (tiff(image, compression=50000), "compressed by method 50000"),
        "FAX of 8 bits": (tiff(grey, compression=4), "compressed by method 4"),
        "palette of 4 bits": (changed(258, 3, 4, pixels=grey, photometric=3), "a palette TIFF, 4-bit"),
        "alpha of 16 bits": (tiff(_noise(np.random.default_rng(8), 2, np.uint16)), "a grey with alpha TIFF, 16-bit"),
        "small tiles": (tiff(grey, tile=(16, 16)), "tiles of 256 bytes")}
    return ({name: (content, "cut off") for name, content in damaged.items()}
            | {name: (content, "above the limit") for name, content in large.items()}
            | {"no width": (changed(256, 4, 0), "size of 0x37")} | wrong)
