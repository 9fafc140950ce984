"""ENet: davidtvs' and the older MindSpore variant, max-unpooling, the encoder alone."""
import numpy as np
import pytest

from mindspore import Tensor

from mindseg.errors import UserError
from mindseg.models import create_model
from mindseg.models.layers import max_pool_mask, unpool
from tests.models.base import GoldenTests, ModelTests


class TestGolden(GoldenTests):
    model = "enet"
    golden = "enet"
    options = {"dropout": 0.0}


class TestPaper(ModelTests):
    model = "enet"

    @pytest.fixture
    def rng(self):
        """Fixed, unlike elsewhere: two nearly equal values in a pooling window swap places with another rounding, and
        max-unpooling then moves whole values. Now and then a random draw holds such a pair."""
        return np.random.default_rng(7)


class TestModelZoo(ModelTests):
    model = "enet"
    options = {"variant": "modelzoo"}


@pytest.mark.parametrize(("options", "millions"), [({}, 0.352), ({"unpool": "bilinear"}, 0.352)])
def test_parameter_counts(options, millions):
    network = create_model("enet", 19, **options)
    assert round(sum(p.size for p in network.trainable_params()) / 1e6, 3) == millions


def test_encoder_alone_gives_eighth_size_in_training_only(rng):
    network = create_model("enet", 5, encoder_only=True)
    image = Tensor(rng.normal(0, 1, (2, 3, 70, 96)).astype(np.float32))
    assert [o.shape for o in network.set_train()(image)] == [(2, 5, 9, 12)]
    assert network.set_train(False)(image).shape == (2, 5, 70, 96)


def test_unpooling_puts_values_at_the_first_maximum(rng):
    x = rng.integers(0, 3, (2, 3, 6, 8)).astype(np.float32)  # many ties
    y = rng.normal(0, 1, (2, 3, 3, 4)).astype(np.float32)
    pooled = x.reshape(2, 3, 3, 2, 4, 2).max((3, 5))
    result = unpool(Tensor(y), max_pool_mask(Tensor(x), Tensor(pooled))).asnumpy()
    expected = np.zeros_like(x)
    for n, c, i, j in np.ndindex(y.shape):
        k = x[n, c, 2 * i:2 * i + 2, 2 * j:2 * j + 2].argmax()
        expected[n, c, 2 * i + k // 2, 2 * j + k % 2] = y[n, c, i, j]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("options", [{"variant": "none"}, {"unpool": "nearest"}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options.values()))):
        create_model("enet", 7, **options)
