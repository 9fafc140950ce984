"""The files in weights/ are what their names and the table beside them say, and they segment a street."""
import hashlib
import re
import shlex

import cv2
import numpy as np
import pytest
from PIL import Image

from mindseg.checkpoint import load_network, read_checkpoint
from mindseg.config import load_config
from mindseg.data.datasets import dataset_info
from mindseg.inference.network import NetworkPredictor
from mindseg.models.weight_sources import SOURCES
from tests.conftest import ROOT
from tools.synthetic import make_street, write_street

FILES = sorted((ROOT / "weights").glob("*.ckpt"))
PUBLISHED = ("enet_camvid", "fast_scnn_camvid")     # at least these
CAMVID_CLASSES = 11
SIZE = (128, 256)


def config_name(path):
    return path.stem.rpartition("-")[0]


@pytest.mark.parametrize("config", PUBLISHED)
def test_every_published_network_is_there_once(config):
    assert [config_name(path) for path in FILES].count(config) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_name_table_and_content_agree(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config, digits = config_name(path), path.stem.rpartition("-")[2]
    assert digest.startswith(digits)
    assert len(digits) == 8
    assert path.stat().st_size < 5e6
    (row,) = [line for line in (ROOT / "weights" / "README.md").read_text().splitlines() if path.name in line]
    assert f"`{digest}`" in row
    assert f"`{config}`" in row
    parameters, _ = read_checkpoint(path)
    assert not [name for name in parameters if "moment" in name or name.startswith("aux")]
    cfg = load_config(next((ROOT / "configs").rglob(f"{config}.yaml")))
    assert cfg.model.num_classes == len(cfg.data.class_names)


def test_the_notice_names_every_implementation_that_a_converter_reads():
    notice = (ROOT / "NOTICE").read_text()
    for title in (source.title for sources in SOURCES.values() for source in sources):
        if "MindSpore model zoo" in title:
            title = "mindspore-ai/models"
        (name,) = re.findall(r"[\w-]+/[\w-]+|^torchvision", title)
        assert re.search(rf"^{name}.*(MIT|BSD 3-Clause|Apache) ?License|^{name}.*no licence file", notice, re.M), title
    for repository in re.findall(r"https://github\.com/([\w-]+/[\w-]+)",
                                 (ROOT / "src" / "mindseg" / "data" / "label_tables.py").read_text()):
        assert f"\n{repository} " in notice


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_has_the_scores_of_each_class(path):
    cfg = load_config(next((ROOT / "configs").rglob(f"{config_name(path)}.yaml")))
    (part,) = [part for part in (ROOT / "weights" / "README.md").read_text().split("\n## ")
               if part.startswith(f"{config_name(path)}\n")]
    scores = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|$", part, re.M))
    assert list(scores) == cfg.data.class_names
    miou = float(re.search(r"([\d.]+) % mIoU", part)[1])
    assert np.mean([float(value) for value in scores.values()]) == pytest.approx(miou, abs=0.01)
    assert f"mIoU {miou:.2f}" in f"mIoU {100 * read_checkpoint(path)[1]['best_miou']:.2f}", "as in the training"
    assert "Terms of the data" in part


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_weights_segment_a_street(path, graph_mode):
    cfg = load_config(next((ROOT / "configs").rglob(f"{config_name(path)}.yaml")))
    assert cfg.model.num_classes == CAMVID_CLASSES
    street = make_street(1, "val", 0, *SIZE)
    segmenter = NetworkPredictor(cfg, load_network(cfg, path), dataset_info(cfg.data))
    ids = segmenter(street.image[None], SIZE)
    assert (ids.shape, ids.dtype) == ((1, *SIZE), np.uint8)
    assert ids.max() < CAMVID_CLASSES
    assert len(np.unique(ids)) > 1
    # A synthetic street is no photograph, but what was learnt from photographs still finds the ground at the bottom,
    # and sky, houses and trees above it: 60 rows apart on average. Networks without training put both at one height.
    names = np.array(cfg.data.class_names)[ids[0]]
    ground, above = (np.argwhere(np.isin(names, kinds))[:, 0]
                     for kinds in (["road", "pavement"], ["sky", "building", "tree"]))
    assert min(len(ground), len(above)) > 100
    assert ground.mean() - above.mean() > 30


def readme_words(**values):
    """The words of the README's first ``mindseg predict`` command, with other values for some of its flags."""
    (command, *_) = re.findall(r"^mindseg predict (?:.*\\\n)*.*$", (ROOT / "README.md").read_text(), re.M)
    words = shlex.split(command.replace("\\\n", " "))[1:]
    for flag, value in values.items():
        words[words.index(f"--{flag}") + 1] = str(value)
    return words


def test_the_readmes_predict_command_works_with_the_published_weights(run_cli, tmp_path):
    write_street(tmp_path / "streets", 1, "test", 0, *SIZE)
    words = readme_words(input=tmp_path / "streets" / "leftImg8bit" / "test", output=tmp_path / "shown")
    assert words[0] == "predict"
    assert ROOT / words[words.index("--ckpt_path") + 1] in FILES
    assert {"overlay", "mask"} < set(words)
    done = run_cli(*words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 pictures? in .* 0 failed", done.stdout + done.stderr)
    (street,) = (tmp_path / "streets" / "leftImg8bit").rglob("*.png")
    (overlay,) = (tmp_path / "shown").rglob("*_overlay.png")
    (mask,) = (tmp_path / "shown").rglob("*_mask.png")
    shown, drawn = cv2.imread(str(overlay)), cv2.imread(str(street))
    assert shown.shape == drawn.shape == (*SIZE, 3)
    assert (shown != drawn).any(2).mean() > 0.5
    with Image.open(mask) as image:
        ids = np.array(image)
    assert ids.shape == SIZE
    assert 1 < len(np.unique(ids)) <= CAMVID_CLASSES
    assert ids.max() < CAMVID_CLASSES
