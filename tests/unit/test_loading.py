"""``mindseg.load``: what it opens, what it answers, and what it says about everything else."""
from dataclasses import replace

import cv2
import numpy as np
import pytest

import mindseg
from mindseg.data.decode import decode_image
from mindseg.drawing import overlay
from mindseg.errors import DataError, UserError
from mindseg.files import file_sha256, read_bytes
from mindseg.inference.loading import Segmentation, Segmenter, best_checkpoint
from mindseg.manifest import ModelFile, save_manifest
from tests.support import ROOT
from tests.support.data import random_image, write_image
from tests.support.deploy import make_manifest
from tests.support.images import encode, exif, turned, with_exif
from tests.support.predictors import FunctionPredictor, info_of

WEIGHTS = next((ROOT / "weights").glob("fast_scnn_camvid-*.ckpt"))


def red_above_blue(images, size):
    """Class 1 where the first channel is larger than the last."""
    return (images[..., 0] > images[..., 2]).astype(np.uint8)


@pytest.fixture
def segment():
    return Segmenter(FunctionPredictor(red_above_blue, info_of(2)))


def test_files_arrays_and_lists(segment, tmp_path, rng):
    bgr = random_image(rng, 40, 56)
    path = write_image(tmp_path / "photo.png", bgr)
    rgb = bgr[..., ::-1].copy()
    expected = (rgb[..., 0] > rgb[..., 2]).astype(np.uint8)
    for result in (segment(path), segment(str(path)), segment(rgb), *segment([path, rgb])):
        np.testing.assert_array_equal(result.ids, expected)
        np.testing.assert_array_equal(result.image, rgb)
        assert result.classes == segment.classes == ("class0", "class1")


def test_confidence_comes_on_request(segment, rng):
    rgb = np.ascontiguousarray(random_image(rng, 40, 56))
    assert segment(rgb).confidence is None
    for result in (segment(rgb, confidence=True), *segment([rgb], confidence=True)):
        np.testing.assert_array_equal(result.ids, segment(rgb).ids)
        np.testing.assert_array_equal(result.confidence, rgb[..., 0])


@pytest.mark.parametrize("kind", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_files_are_turned_by_their_exif_orientation(segment, tmp_path, rng, orientation, kind):
    """Image and classes lie as a viewer shows the photograph, not as it is stored."""
    content = encode(kind, random_image(rng, 40, 56))
    path = tmp_path / f"photo{kind}"
    path.write_bytes(with_exif(content, exif(orientation), 56, 40))
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    rgb = turned(stored, orientation)[..., ::-1]
    result = segment(path)
    np.testing.assert_array_equal(result.image, rgb)
    np.testing.assert_array_equal(result.ids, (rgb[..., 0] > rgb[..., 2]).astype(np.uint8))


def test_models_of_both_colour_orders_see_the_same_photograph(rng):
    rgb = np.ascontiguousarray(random_image(rng, 40, 56))
    other = Segmenter(FunctionPredictor(lambda images, size: red_above_blue(images[..., ::-1], size), info_of(2),
                                        color_order="BGR"))
    np.testing.assert_array_equal(other(rgb).ids, (rgb[..., 0] > rgb[..., 2]).astype(np.uint8))


def test_overlay_and_save(segment, tmp_path, rng):
    result = segment(random_image(rng, 40, 56))
    np.testing.assert_array_equal(result.overlay(0.3), overlay(result.image, result.ids, result.info.palette, 0.3))
    np.testing.assert_array_equal(result.overlay(0), result.image)
    result.save(tmp_path / "new" / "overlay.png")
    saved = cv2.imread(str(tmp_path / "new" / "overlay.png"))[..., ::-1]
    np.testing.assert_array_equal(saved, result.overlay())
    with pytest.raises(UserError, match=r"overlay\.jpg: .*\.png"):
        result.save(tmp_path / "overlay.jpg")


@pytest.mark.parametrize(("shape", "dtype"), [((40, 56), np.uint8), ((40, 56, 4), np.uint8), ((40, 56, 3), np.float32)])
def test_arrays_of_another_kind_are_refused(segment, shape, dtype):
    with pytest.raises(DataError, match=r"uint8 \(H, W, 3\), RGB"):
        segment(np.zeros(shape, dtype))


def test_files_that_are_no_images_are_named(segment, tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    for name in ("a.jpg", "missing.jpg"):
        with pytest.raises(DataError, match=name):
            segment(tmp_path / name)


def test_a_published_checkpoint_brings_its_configuration(tmp_path):
    segment = mindseg.load(WEIGHTS, device="CPU")
    assert len(segment.classes) == 11
    assert "pedestrian" in segment.classes
    image = decode_image(read_bytes(ROOT / "docs" / "images" / "streets.jpg"), "streets.jpg")[:96, :128, ::-1].copy()
    result = segment(image)
    assert isinstance(result, Segmentation)
    assert result.ids.shape == (96, 128)
    assert result.ids.max() < 11
    # A second model in the same process, and the image as a camera stores it that was held upright.
    path = tmp_path / "photo.png"
    path.write_bytes(with_exif(encode(".png", turned(image, 8)[..., ::-1]), exif(6), 96, 128))
    again = mindseg.load(WEIGHTS)(path)
    np.testing.assert_array_equal(again.image, image)
    np.testing.assert_array_equal(again.ids, result.ids)


def test_a_run_folder_gives_its_best_checkpoint(tmp_path):
    (tmp_path / "ckpt").mkdir()
    with pytest.raises(UserError, match=r"holds neither deploy\.yaml nor ckpt/best\.ckpt"):
        mindseg.load(tmp_path)
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "ckpt" / name).touch()
        assert best_checkpoint(tmp_path) == tmp_path / "ckpt" / name
    assert best_checkpoint(tmp_path / "ckpt") == tmp_path / "ckpt" / "best.ckpt"


def test_a_checkpoint_without_configuration_says_so(tmp_path):
    import mindspore as ms

    ms.save_checkpoint([{"name": "a", "data": ms.Tensor(np.zeros(2, np.float32))}], str(tmp_path / "a.ckpt"),
                       crc_check=True)
    with pytest.raises(UserError, match=r"a\.ckpt: carries no configuration; .*config="):
        mindseg.load(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="parameters of this network are not in the checkpoint"):
        mindseg.load(tmp_path / "a.ckpt", config="fast_scnn_camvid")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.ckpt: no such file or folder"):
        mindseg.load(tmp_path / "none.ckpt")


def test_a_folder_with_om_models_only_names_the_runner(tmp_path):
    manifest = make_manifest(tmp_path)
    (tmp_path / "net.om").write_bytes(b"om")
    om = ModelFile("om", "net.om", 2, file_sha256(tmp_path / "net.om"))
    save_manifest(replace(manifest, models=(om,)))
    with pytest.raises(UserError, match=r"om models only.*segment run --manifest"):
        mindseg.load(tmp_path)


def test_the_root_has_no_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        mindseg.lod      # noqa: B018
    assert mindseg.create_model("enet", 3).__class__.__name__ == "ENet"
