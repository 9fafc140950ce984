"""Synchronised BatchNorm: statistics as NumPy computes them from the batches of all devices."""
from unittest.mock import patch

import numpy as np
import pytest

from mindspore import Tensor, nn, ops

from benchmarks.support.chip_numbers import SplitSyncBatchNorm, split_sync_batch_norm
from mindseg.compat import BatchNorm2d
from mindseg.engine.batch_norm import KERNEL_COUNT, SyncBatchNorm, synchronise_batch_norm
from mindseg.engine.device_checks import moving_variance
from mindseg.models.layers import PooledBatchNorm

pytestmark = pytest.mark.usefixtures("graph_mode")
DEVICES, CHANNELS = 8, 3


def sum_of_equals(x: Tensor) -> Tensor:
    """An all-reduce among devices that hold the same values."""
    return x * float(DEVICES)


@pytest.fixture
def equal_devices():
    """Eight devices that hold the same batch, with Ascend's kernel where a layer asks for it."""
    with patch.object(ops, "AllReduce", lambda *_: sum_of_equals), split_sync_batch_norm():
        yield


def variance(batch: np.ndarray) -> np.ndarray:
    """Unbiased variance of each channel over all devices."""
    return np.tile(batch, (DEVICES, 1, 1, 1)).astype(np.float64).var((0, 2, 3), ddof=1)


class KernelAlone(BatchNorm2d):
    """BatchNorm by the platform's kernel, whatever the size of the batch."""

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        self.normalise_batch = SplitSyncBatchNorm(self.eps, self.momentum, "group", DEVICES)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_statistics_behind_a_global_pooling_are_numpys(images, rng, equal_devices):
    batch = rng.normal(2, 3, (images, CHANNELS, 1, 1)).astype(np.float32)
    layer = SyncBatchNorm(CHANNELS, 1e-5, 0.9, DEVICES, kernel=True)
    np.testing.assert_allclose(moving_variance(layer, batch), variance(batch), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.moving_mean.asnumpy(), 0.1 * batch.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("images", "factor"), [(1, 0), (2, 2), (4, 4 / 3)])
def test_the_kernel_alone_corrects_by_the_values_of_one_device(images, factor, rng, equal_devices):
    """The fault that the layer avoids; with eight devices n / (n - 1) would be 8/7, 16/15 and 32/31."""
    batch = rng.normal(2, 3, (images, CHANNELS, 1, 1)).astype(np.float32)
    biased = batch.astype(np.float64).var((0, 2, 3))
    np.testing.assert_allclose(moving_variance(KernelAlone(), batch), factor * biased, rtol=1e-3, atol=1e-5)


def test_large_batches_take_the_kernel_which_is_right_there(rng, equal_devices):
    batch = rng.normal(2, 3, (4, CHANNELS, KERNEL_COUNT // 64, 16)).astype(np.float32)
    layer = SyncBatchNorm(CHANNELS, 1e-5, 0.9, DEVICES, kernel=True)
    found = moving_variance(layer, batch)
    assert np.abs(found / variance(batch) - 1).max() < 1e-3
    np.testing.assert_allclose(found, batch.astype(np.float64).var((0, 2, 3)) * KERNEL_COUNT / (KERNEL_COUNT - 1),
                               rtol=1e-4)


@pytest.mark.parametrize("target", ["CPU", "Ascend"])
def test_one_image_a_device_behind_a_global_pooling_is_trained(target, rng, equal_devices):
    """Alone it is refused, because one value has no variance; the images of all devices have one."""
    net = nn.SequentialCell([PooledBatchNorm(CHANNELS, 1e-5, "the test's pooling")])
    assert synchronise_batch_norm(net, "auto", target, DEVICES, 1)
    batch = rng.normal(2, 3, (1, CHANNELS, 1, 1)).astype(np.float32)
    assert np.isfinite(net.set_train()(Tensor(batch)).asnumpy()).all()
    assert np.isfinite(net[0].moving_variance.asnumpy()).all()
