"""The package under an imitation of the next MindSpore (tests/support/future.py), in a process of its own."""
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn, ops

from tests.support import ROOT
from tests.support.future import FUTURE, REMOVED

FAST = ("tests/unit/test_future.py", "tests/unit/test_compat.py")
# Files that share a process, so that its memory stays small, and the least number of tests that must pass.
SLOW = [(("tests/unit/test_optim.py", "tests/unit/test_losses.py", "tests/unit/test_train_step.py",
          "tests/unit/test_training.py", "tests/unit/test_trainer.py", "tests/unit/test_switches.py",
          "tests/unit/test_checkpoint.py", "tests/unit/test_inference.py", "tests/unit/test_loading.py",
          "tests/unit/test_deploy_onnx_graph.py"), 150),
        (("tests/models",), 100), (("tests/system/test_deploy_export.py",), 10)]
present = pytest.mark.skipif(FUTURE, reason="starts the imitation")
future = pytest.mark.skipif(not FUTURE, reason="checks the imitation")


def run_future(files: tuple[str, ...], least: int) -> None:
    """Run test files under the imitation; at least so many tests must pass, and none may fail."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow",
                           *files], cwd=ROOT, env=os.environ | {"MINDSEG_FUTURE": "1"}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least


@present
def test_layers_run_under_the_next_mindspore():
    run_future(FAST, 20)


@present
@pytest.mark.slow
@pytest.mark.parametrize(("files", "least"), SLOW, ids=["training", "networks", "export"])
def test_networks_training_and_export_run_under_the_next_mindspore(files, least):
    run_future(files, least)


@future
def test_removed_names_are_gone():
    for module, names in REMOVED.items():
        for name in names:
            with pytest.raises(AttributeError):
                getattr(sys.modules[module], name)
    with pytest.raises(AttributeError):
        ms.get_context("mode")  # noqa: TID251


@future
@pytest.mark.parametrize(("make", "arguments"), [
    ("Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "has_bias": True}),
    ("Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "weight_init": "ones"}),
    ("Conv2dTranspose", {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "pad_mode": "pad"}),
    ("BatchNorm2d", {"num_features": 3, "gamma_init": "zeros"}),
    ("SyncBatchNorm", {"num_features": 3, "process_groups": None}),
    ("MaxPool2d", {"kernel_size": 2, "pad_mode": "same"}), ("SGD", {"params": [], "learning_rate": 0.1}),
    ("Adam", {"params": [], "learning_rate": 0.1})])
def test_arguments_of_today_are_refused(make, arguments):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        getattr(nn, make)(**arguments)


@future
def test_batch_norm_means_the_opposite_by_momentum():
    x = np.random.default_rng(0).normal(1, 1, (4, 2, 3, 3)).astype(np.float32)
    cell = nn.BatchNorm2d(2, momentum=0.9).set_train()  # noqa: TID251
    cell(Tensor(x))
    np.testing.assert_allclose(cell.moving_mean.asnumpy(), 0.9 * x.mean((0, 2, 3)), rtol=1e-5)
    assert ops.transpose(Tensor(x), 0, 1).shape == (2, 4, 3, 3)  # noqa: TID251
