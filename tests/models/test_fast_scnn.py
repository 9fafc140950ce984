"""Fast-SCNN: Tramac's, SegmenTron's and the older MindSpore variant."""
import numpy as np
import pytest

from mindspore import Tensor

from mindseg.engine.batch_norm import freeze_batch_norm
from mindseg.errors import UserError
from mindseg.models import create_model
from tests.models.base import EnlargeTests, GoldenTests, ModelTests, graph_inputs


class TestPaperGolden(GoldenTests):
    model = "fast_scnn"
    golden = "fast_scnn_paper"
    options = {"dropout": 0.0}


class TestSegmentronGolden(GoldenTests):
    model = "fast_scnn"
    golden = "fast_scnn_segmentron"
    options = {"variant": "segmentron", "dropout": 0.0}


class TestPaper(ModelTests):
    model = "fast_scnn"
    heads = 2
    no_gradient = ("_res.conv.bias",)


class TestEnlarged(EnlargeTests):
    model = "fast_scnn"
    options = {"enlarge": 2}
    heads = 2
    no_gradient = ("_res.conv.bias",)
    corners = True


class TestModelZooWithPyramidKernel(ModelTests):
    model = "fast_scnn"
    options = {"variant": "modelzoo", "ppm_kernel": 3}
    heads = 3
    no_gradient = ("_res.conv.bias",)

    @graph_inputs
    @pytest.mark.slow
    def test_graph_mode_and_exports_equal_pynative(self, network, rng, tmp_path, batch, size):
        super().test_graph_mode_and_exports_equal_pynative(network, rng, tmp_path, batch, size)


@pytest.mark.slow
class TestZh320(ModelTests):
    model = "fast_scnn"
    options = {"variant": "zh320"}
    no_gradient = ("pointwise.conv.bias", "expand.conv.bias", "out.conv.bias", "classifier.conv.conv.bias")


@pytest.mark.parametrize(("options", "millions"), [
    ({"aux": False}, 1.138), ({"aux": False, "ppm_kernel": 3}, 1.400), ({"aux_heads": 2}, 1.195)])
def test_parameter_counts(options, millions):
    network = create_model("fast_scnn", 19, **options)
    assert round(sum(p.size for p in network.trainable_params()) / 1e6, 3) == millions


def test_training_batch_of_one_is_refused():
    network = create_model("fast_scnn", 7).set_train()
    with pytest.raises(UserError, match=r"pyramid pooling.* batch of 2 or more"):
        network(Tensor(np.zeros((1, 3, 64, 64), np.float32)))


def test_training_batch_of_one_runs_with_frozen_statistics():
    network = create_model("fast_scnn", 7).set_train()
    freeze_batch_norm(network)
    assert network(Tensor(np.zeros((1, 3, 64, 64), np.float32)))[0].shape == (1, 7, 64, 64)


def test_small_images_are_refused():
    network = create_model("fast_scnn", 7).set_train(False)
    with pytest.raises(UserError, match="31x64 pixels is too small"):
        network(Tensor(np.zeros((1, 3, 31, 64), np.float32)))


@pytest.mark.parametrize("options", [{"variant": "none"}, {"ppm_kernel": 2}, {"aux_heads": 3}, {"dropout": 1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match=str(next(iter(options.values())))):
        create_model("fast_scnn", 7, **options)


def test_enlarging_by_5_is_refused():
    with pytest.raises(UserError, match=r"model\.enlarge = 5 must be 1, 2, 3 or 4"):
        create_model("fast_scnn", 7, enlarge=5)
