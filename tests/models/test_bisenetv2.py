"""BiSeNet V2: CoinCheung's and the older MindSpore variant."""
import numpy as np
import pytest

from mindspore import Tensor, ops

from mindseg.compat import no_init_parameters
from mindseg.errors import UserError
from mindseg.models import create_model
from mindseg.models.layers import Resample
from tests.models.base import EnlargeTests, GoldenTests, ModelTests, graph_inputs


class TestGolden(GoldenTests):
    model = "bisenetv2"
    golden = "bisenetv2"
    options = {"dropout": 0.0}
    eval_limit = 3e-4


class TestPaper(ModelTests):
    model = "bisenetv2"
    options = {"head_channels": 64}
    operators = {"Resize": 2}
    heads = 5


@pytest.mark.slow
class TestEnlarged(EnlargeTests):
    model = "bisenetv2"
    options = {"head_channels": 64, "enlarge": 2}
    heads = 5
    corners = False


class TestModelZoo(ModelTests):
    model = "bisenetv2"
    options = {"variant": "modelzoo", "head_channels": 64}
    heads = 5

    @graph_inputs
    @pytest.mark.slow
    def test_graph_mode_and_exports_equal_pynative(self, network, rng, tmp_path, batch, size):
        super().test_graph_mode_and_exports_equal_pynative(network, rng, tmp_path, batch, size)


@pytest.mark.slow
class TestZh320(ModelTests):
    model = "bisenetv2"
    options = {"variant": "zh320", "head_channels": 64}
    heads = 5


@pytest.mark.parametrize(("options", "millions"), [
    ({"aux": False}, 3.36), ({}, 5.23), ({"aux": False, "head_channels": 128}, 2.31)])
def test_parameter_counts(options, millions):
    with no_init_parameters():
        network = create_model("bisenetv2", 19, **options)
    assert round(sum(p.size for p in network.trainable_params()) / 1e6, 2) == millions


def test_training_batch_of_one_is_refused():
    network = create_model("bisenetv2", 7, head_channels=8).set_train()
    with pytest.raises(UserError, match=r"context embedding.* batch of 2 or more"):
        network(Tensor(np.zeros((1, 3, 64, 64), np.float32)))


def test_average_pooling_divides_by_nine_or_by_the_pixels_inside(rng):
    x = rng.normal(0, 1, (2, 3, 6, 8)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = sum(padded[:, :, i:i + 5:2, j:j + 7:2] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(Resample("padded")(Tensor(x), (3, 4)).asnumpy(), expected, atol=1e-6)
    same = ops.AvgPool(3, 2, pad_mode="same")(Tensor(x)).asnumpy()
    np.testing.assert_allclose(Resample("same")(Tensor(x), (3, 4)).asnumpy(), same, atol=1e-6)


@pytest.mark.parametrize("options", [{"variant": "none"}, {"head_channels": 0}, {"enlarge": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match=str(next(iter(options.values())))):
        create_model("bisenetv2", 7, **options)
