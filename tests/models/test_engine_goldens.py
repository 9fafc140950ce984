"""The engine's own training step against float64 runs of public PyTorch implementations: losses of five steps."""
import json

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from mindseg.compat import set_mode
from mindseg.cpu_kernels import library
from mindseg.cpu_kernels.fusion import fuse_loss, fuse_network
from mindseg.engine.train_step import StepOptions, TrainStep
from mindseg.losses import CrossEntropyLoss, MultiHeadLoss
from mindseg.models import create_model
from mindseg.models.normalize import Normalize
from mindseg.models.weights import convert_state_dict
from mindseg.optim import create_optimizer
from tests.goldens import rule
from tests.goldens.rule import GOLDENS
from tests.support.steps import optim_config

NETWORKS = {"fast_scnn_paper": ("fast_scnn", {}), "fast_scnn_segmentron": ("fast_scnn", {"variant": "segmentron"}),
            "enet": ("enet", {}), "bisenetv2": ("bisenetv2", {}), "fcn8s": ("fcn8s", {})}


def options_of(name: str, spec: dict) -> dict:
    """Options with which the network of the fixture was built: no dropout, and a narrow classifier if it had one."""
    if name == "fcn8s":
        kernels = [shape for _, shape in spec["state"] if len(shape) == 4]
        return {"fc_channels": next(shape[0] for shape in kernels if shape[2] == 7)}
    return NETWORKS[name][1] | {"dropout": 0.0}


@pytest.mark.parametrize(("accumulation", "own_operators"), [(1, False), pytest.param(4, True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name if name == "fast_scnn_paper" else pytest.param(name, marks=pytest.mark.slow)
                                  for name in NETWORKS])
def test_five_training_losses(name, accumulation, own_operators):
    """With accumulation every micro-batch is the whole batch again, so the mean over them must be the same.

    ``own_operators`` are the C++ operators for the CPU.
    """
    set_mode("graph")      # as train.py; MindSpore's own default is PyNative
    spec = json.loads((GOLDENS / f"{name}.json").read_text())
    golden = np.load(GOLDENS / f"{name}.npz")
    options = options_of(name, spec)
    network = create_model(NETWORKS[name][0], spec["num_classes"], **options)
    state = rule.state_dict(GOLDENS / name)
    for key, value in convert_state_dict(NETWORKS[name][0], state, **options).items():
        {p.name: p for p in network.get_parameters()}[key].set_data(Tensor(value))
    optim = optim_config(lr=0.01, momentum=0.9, weight_decay=1e-4, decay_norm_bias=True, schedule="constant")
    loss, normalize = MultiHeadLoss(CrossEntropyLoss(255), spec["loss_weights"]), Normalize([0.0] * 3, [1.0] * 3)
    optimizer = create_optimizer(optim, network, spec["steps"], spec["steps"])
    if own_operators:
        library.build_library()
        library.installed_library.cache_clear()
        assert fuse_network(network, 0, normalize)
        fuse_loss(network, loss)
    step = TrainStep(network, loss, optimizer, normalize, StepOptions(accumulation=accumulation))
    batch, _, height, width = spec["train_shape"]
    losses = []
    for seed in range(spec["seed"] + 1, spec["seed"] + 1 + spec["steps"]):
        image = rule.image(seed, tuple(spec["train_shape"])).transpose(0, 2, 3, 1)
        label = rule.label(seed, (batch, height, width), spec["num_classes"]).astype(np.uint8)
        for i in range(accumulation):       # the same whole batch again: its mean must not change
            result = step(Tensor(np.ascontiguousarray(image)), Tensor(label), Tensor(0.0, ms.float32),
                          i + 1 == accumulation)
        losses.append(float(result.asnumpy()[0]))
    print(name, np.abs(np.array(losses) / golden["train_losses"] - 1))
    assert losses[0] == pytest.approx(golden["train_losses"][0], rel=1e-5)
    np.testing.assert_allclose(losses, golden["train_losses"], rtol=1e-3)
