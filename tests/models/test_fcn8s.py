"""FCN-8s on VGG16 with BatchNorm."""
import numpy as np
import pytest

from mindspore import Tensor, ops

from mindseg.compat import no_init_parameters
from mindseg.errors import UserError
from mindseg.models import create_model
from tests.models.base import GoldenTests, ModelTests


@pytest.mark.slow
class TestGolden(GoldenTests):
    """With the full 4096 channels: 134 M parameters, so slow."""

    model = "fcn8s"
    golden = "fcn8s"


class TestNarrow(ModelTests):
    model = "fcn8s"
    options = {"fc_channels": 32}
    operators = {"ConvTranspose": 3}


def test_parameter_count():
    with no_init_parameters():
        network = create_model("fcn8s", 21)
    assert round(sum(p.size for p in network.trainable_params()) / 1e6, 1) == 134.5


def test_deconvolutions_start_as_bilinear_interpolation(rng):
    network = create_model("fcn8s", 3, fc_channels=8)
    x = Tensor(rng.normal(0, 1, (1, 3, 6, 9)).astype(np.float32))
    for layer, factor in ((network.upscore2, 2), (network.upscore8, 8)):
        for training in (False, True):
            ours = layer.set_train(training)(x).asnumpy()
            expected = ops.interpolate(x, size=(6 * factor, 9 * factor), mode="bilinear").asnumpy()
            # The border differs: a transposed convolution sees zeros beyond it, interpolation repeats the edge.
            inner = (..., slice(factor, -factor), slice(factor, -factor))
            np.testing.assert_allclose(ours[inner], expected[inner], rtol=0, atol=1e-5)


def test_xavier_start_differs_and_others_are_refused():
    network = create_model("fcn8s", 3, fc_channels=8, deconv_init="xavier")
    weight = network.upscore2.weight.asnumpy()
    assert np.count_nonzero(weight) == weight.size
    with pytest.raises(UserError, match="deconv_init 'zeros'"):
        create_model("fcn8s", 3, deconv_init="zeros")
