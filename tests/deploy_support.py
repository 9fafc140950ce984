"""Small manifests and data sets for the deployment tests."""
import hashlib
from pathlib import Path

import cv2
import numpy as np

from mindseg.manifest import DatasetSpec, InputSpec, Manifest, ModelFile, OutputSpec

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def make_manifest(folder: Path, **changes) -> Manifest:
    """A manifest of a two-class model of 48x64, batch 2, in memory."""
    spec = InputSpec(name="image", shape=(2, 3, 48, 64), layout="NCHW", dtype="float32", color_order="RGB",
                     normalize="host", value_range=255.0, mean=MEAN, std=STD,
                     resize={"rule": "exact", "size": [48, 64], "pad": False}, pad_value=(124, 116, 104))
    dataset = DatasetSpec(name="list", classes=("sky", "über road"), palette=((1, 2, 3), (4, 5, 6)), ignore_id=255,
                          label_map={0: 0, 1: 1, 11: 255})
    fields = {"model": {"name": "fast_scnn", "num_classes": 2}, "input": spec,
              "output": OutputSpec("segmentation", "argmax", "uint8", (2, 48, 64)), "dataset": dataset,
              "source": {"checkpoint": "best.ckpt", "checkpoint_sha256": "0" * 64}, "versions": {"project": "0.1.0"},
              "models": (ModelFile("onnx", "net.onnx", 2, hashlib.sha256(b"abc").hexdigest(), {"precision": "int8"}),),
              "path": folder / "deploy.yaml"}
    return Manifest(**{**fields, **changes})


def make_pair(rng: np.random.Generator, height: int, width: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random BGR image and a blocky label map with the given values."""
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    label = rng.choice(values, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    return image, cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Writes a PNG and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def make_cityscapes(root: Path, seed: int, count: int = 4, size: tuple[int, int] = (96, 128)) -> list[str]:
    """A ``val`` split in the real layout, in two cities; returns the sample names."""
    rng = np.random.default_rng(seed)
    names = []
    for index in range(count):
        city = ("aachen", "bonn")[index % 2]
        name = f"{city}_{index:06d}_000019"
        image, label = make_pair(rng, *size, np.array([*LABEL_IDS, 0, 3]))
        write_png(root / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png", image)
        write_png(root / "gtFine" / "val" / city / f"{name}_gtFine_labelIds.png", label)
        names.append(name)
    return sorted(names)


def make_list_data(root: Path, seed: int, sizes: list[tuple[int, int]], classes: int = 2) -> list[str]:
    """Folders ``val`` and ``valannot`` with label values 0..classes-1 and 11 (ignored); returns the sample names."""
    rng = np.random.default_rng(seed)
    names = []
    for index, size in enumerate(sizes):
        image, label = make_pair(rng, *size, np.array([*range(classes), 11]))
        names.append(f"frame.{index:02d}")
        write_png(root / "val" / f"{names[-1]}.png", image)
        write_png(root / "valannot" / f"{names[-1]}.png", label)
    return names


def randomize(network, seed: int = 1) -> None:
    """Gives BatchNorm random parameters and statistics, so that logits differ from pixel to pixel."""
    import mindspore as ms

    rng = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        kind = parameter.name.rsplit(".", 1)[-1]
        if kind == "moving_variance":
            values = rng.uniform(0.5, 1.5, parameter.shape)
        elif kind in ("moving_mean", "beta", "gamma"):
            values = rng.normal(float(kind == "gamma"), 0.3, parameter.shape)
        else:
            continue
        parameter.set_data(ms.Tensor(values.astype(np.float32)))
    network.set_train(False)


def make_network(name: str = "fast_scnn", num_classes: int = 19, seed: int = 1, **options):
    """A network of the project with random weights, in evaluation mode."""
    import mindspore as ms

    from mindseg.models import create_model

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(seed)
    network = create_model(name, num_classes, **options)
    randomize(network, seed)
    return network


def make_tiny_network(num_classes: int = 19, seed: int = 1):
    """Convolution, BatchNorm, ReLU, convolution, up-sampling: compiles ten times faster than a real network."""
    import mindspore as ms
    from mindspore import nn

    from mindseg.models.layers import batch_norm, conv2d, resize_bilinear

    class Tiny(nn.Cell):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = conv2d(3, 8, 3, 2, 1), batch_norm(8), nn.ReLU()
            self.head = conv2d(8, num_classes, bias=True)

        def construct(self, x):
            return resize_bilinear(self.head(self.relu(self.bn(self.conv(x)))), (x.shape[2], x.shape[3]), True)

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(seed)
    network = Tiny()
    randomize(network, seed)
    return network
