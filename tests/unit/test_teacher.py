"""The teacher of ``loss.distill``: a shipped network for another one."""
import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from mindseg.checkpoint import load_network
from mindseg.config import load_config
from mindseg.engine.teacher import create_teacher
from mindseg.errors import ConfigError, UserError
from mindseg.models.normalize import Normalize
from tests.support import ROOT

(WEIGHTS,) = (ROOT / "weights").glob("fast_scnn_camvid-*.ckpt")


def config(distill, *words, name="enet_camvid"):
    cfg = load_config(name, words)
    cfg.loss.distill = distill
    return cfg


def test_without_the_key_there_is_no_teacher():
    assert create_teacher(config(None)) is None


@pytest.mark.usefixtures("graph_mode")
def test_the_teacher_answers_as_its_checkpoint(rng):
    """With its own normalisation, whatever the student's is."""
    cell, loss = create_teacher(config({"ckpt": str(WEIGHTS), "weight": 0.3, "temperature": 2},
                                       "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"))
    assert (loss.weight, loss.temperature) == (0.3, 2.0)
    cfg = load_config("fast_scnn_camvid")
    image = Tensor(rng.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8))
    net = load_network(cfg, WEIGHTS)
    expected = net(Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range)(image)).asnumpy()
    logits = cell.set_train(False)(image)
    assert logits.dtype == ms.float32
    np.testing.assert_allclose(logits.asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("distill", "message"), [
    ({}, "needs ckpt"), ({"ckpt": 3}, "needs ckpt"),
    ({"ckpt": str(WEIGHTS), "alpha": 1}, "no option 'alpha'; use ckpt"),
    ({"ckpt": str(WEIGHTS), "weight": 2}, "weight = 2 must be a number from 0 to 1"),
    ({"ckpt": str(WEIGHTS), "temperature": 0}, "temperature = 0 must be"),
    ({"ckpt": str(WEIGHTS), "weight": "much"}, "weight = 'much' must be")])
def test_mistakes_are_named(distill, message):
    with pytest.raises(ConfigError, match=rf"loss\.distill.*{message}"):
        create_teacher(config(distill))


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ConfigError, match="has 11 classes and takes RGB images, this network 19 and RGB"):
        create_teacher(config({"ckpt": str(WEIGHTS)}, name="enet_cityscapes"))
    with pytest.raises(UserError, match=r"no\.ckpt"):
        create_teacher(config({"ckpt": "no.ckpt"}))
