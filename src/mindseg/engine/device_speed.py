"""Times of a device and its host, measured as training uses them: kernels, copies, ranking, all-reduces, the loader."""
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.communication import GlobalComm

from mindseg.compat import compiled, cut
from mindseg.config import load_config
from mindseg.data.loader import Loader, create_loader
from mindseg.engine.device_checks import Hardest, Sorted, ranked_losses

LAUNCHES = 256          # kernels of one graph whose time is measured
COPIED = 2**26          # bytes of a copy
REPEATS = 5
IMAGES = 8              # different images that the loader reads

clock = time.perf_counter


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after one that may compile.

    Args:
        run: Function that waits for its result.
    """
    run()
    seconds = []
    for _ in range(REPEATS):
        start = clock()
        run()
        seconds.append(clock() - start)
    return min(seconds)


class _Chain(nn.Cell):
    """Small matrix products, one after the other, which no compiler fuses."""

    def construct(self, x: Tensor) -> Tensor:
        """Maps (16, 16) to (16, 16)."""
        y = x
        for _ in range(LAUNCHES):
            y = ops.matmul(y, x)
        return y


def launch_seconds() -> float:
    """Seconds of a kernel that has nothing to do, in a compiled graph of many."""
    chain, x = compiled(_Chain()), Tensor(np.eye(16, dtype=np.float32))
    return fastest(lambda: chain(x).asnumpy()) / LAUNCHES


def ranking_seconds(ranking: Hardest, ordered: Sorted) -> tuple[float, float]:
    """Seconds to rank losses: as OHEM does on this device, and by the operator that sorts."""
    losses, kept = Tensor(ranked_losses()), Tensor(100.0, ms.float32)
    rank, order = compiled(ranking), compiled(ordered)
    return fastest(lambda: rank(losses, kept)[0].asnumpy()), fastest(lambda: order(losses).asnumpy())


class _First(nn.Cell):
    """First number of an array: a kernel with little to do for a large input."""

    def construct(self, x: Tensor) -> Tensor:
        """Maps (P,) to (1,)."""
        return cut(x, (0,), (1,))


class _Next(nn.Cell):
    """Each number plus 1, which lies on the device."""

    def construct(self, x: Tensor) -> Tensor:
        """Maps (P,) to (P,)."""
        return x + 1.0


def copy_rates() -> dict[str, float]:
    """Bytes per second that the inputs of a graph take ``to_device``, and its results back ``to_host``.

    Raises:
        ValueError: What came back is not what was sent.
    """
    values = np.arange(COPIED // 4, dtype=np.float32)
    first, following = compiled(_First()), compiled(_Next())
    inputs = iter([Tensor(values) for _ in range(REPEATS + 1)])     # a device keeps what it once got
    there = fastest(lambda: first(next(inputs)).asnumpy())
    results = [following(Tensor(values)) for _ in range(REPEATS + 1)]
    first(results[-1]).asnumpy()        # all are computed now
    returned = iter(results)
    back = fastest(lambda: next(returned).asnumpy())
    if not np.array_equal(results[0].asnumpy(), values + 1):
        raise ValueError("an array that was copied to the device and back has changed")
    return {"to_device": COPIED / there, "to_host": COPIED / back}


class _Sum(nn.Cell):
    """Sum over devices."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)

    def construct(self, x: Tensor) -> Tensor:
        """Maps (P,) to (P,)."""
        return self.all_reduce(x)


def all_reduce_seconds(count: int) -> float:
    """Seconds of a sum over devices.

    Args:
        count: Number of float32 values.
    """
    total, x = compiled(_Sum()), Tensor(np.ones(count, np.float32))
    return fastest(lambda: total(x).asnumpy())


def make_images(folder: Path, height: int = 1024, width: int = 2048) -> Path:
    """Writes images that take about as long to decode as those of Cityscapes, with labels.

    Args:
        folder: Folder.
        height: Pixels.
        width: Pixels.

    Returns:
        List file for ``data.train_list``.
    """
    rows = []
    for i in range(IMAGES):
        rng = np.random.default_rng(i)
        smooth = cv2.resize(rng.uniform(0, 255, (16, 32, 3)).astype(np.float32), (width, height),
                            interpolation=cv2.INTER_CUBIC)
        image = np.clip(smooth + rng.normal(0, 1.2, smooth.shape), 0, 255).astype(np.uint8)     # 2.3 MB, as Cityscapes
        label = cv2.resize(rng.integers(7, 34, (16, 32)).astype(np.uint8), (width, height),
                           interpolation=cv2.INTER_NEAREST)
        for name, pixels in ((f"{i}.png", image), (f"{i}_labelIds.png", label)):
            cv2.imwrite(str(folder / name), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 6])
        rows.append(f"{i}.png,{i}_labelIds.png\n")
    (folder / "list.txt").write_text("".join(rows), encoding="utf-8")
    return folder / "list.txt"


def open_images(listed: Path, settings: Sequence[str]) -> Loader:
    """Opens the images of :func:`make_images`.

    Args:
        listed: List file.
        settings: ``section.key=value`` texts.
    """
    return create_loader(load_config("defaults", [
        *settings, "data.name=cityscapes", f"data.root={listed.parent}", f"data.train_list={listed}",
        "data.prefetch=1", "train.global_batch=2"]), "train")


def loader_rate(loader: Loader, images: int = 64) -> float:
    """Images per second of a loader.

    Args:
        loader: Loader.
        images: Images to read.
    """
    batches = itertools.chain.from_iterable(loader.epoch(number) for number in itertools.count())
    for _ in range(4):      # more than the loader prepares ahead
        next(batches)
    start, size = clock(), loader.options.batch_size
    for _ in range(images // size):
        next(batches)
    return images / (clock() - start)
