"""Data sinking, with a simulated device queue: MindSpore's own code around it runs, the queue is one in memory."""
import importlib
import queue
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from mindseg.commands import train as training
from mindseg.config import load_config
from mindseg.data import sink
from mindseg.data.loader import Loader
from mindseg.data.sink import SinkLoader
from mindseg.engine.trainer import Job, Trainer
from mindseg.errors import DataError
from mindseg.runtime import Runtime
from tests.support import ROOT
from tests.support.data import make_camvid, train_loader
from tests.support.steps import Net, make_step

pytestmark = pytest.mark.usefixtures("graph_mode")
MINDSPORE = importlib.import_module("mindspore.train.data_sink")       # the function hides the module of its name


class SimulatedQueue:
    """A simulated device queue: a thread reads the dataset over and over, as the real one's, until it is full."""
    queue_name = "simulated"

    def __init__(self, rows, capacity: int = 3) -> None:
        self.rows, self.content, self.calls = rows, queue.Queue(capacity), []
        self.thread = threading.Thread(target=self._fill, daemon=True)

    def _fill(self) -> None:
        iterator = self.rows.create_tuple_iterator(num_epochs=-1, output_numpy=True)
        while True:
            for row in iterator:
                while not self.put(row):
                    if "stop_send" in self.calls:
                        return

    def put(self, row: list) -> bool:
        try:
            self.content.put(row, timeout=0.05)
        except queue.Full:
            return False
        return True

    def send(self, epochs: int) -> None:
        assert epochs == -1
        self.thread.start()

    def get_data_info(self) -> tuple[list, list]:
        return self.rows.output_types(), self.rows.output_shapes()

    def next(self) -> tuple[Tensor, ...]:
        return tuple(Tensor(column) for column in self.content.get(timeout=60))

    def stop_send(self) -> None:
        self.calls.append("stop_send")

    def release(self) -> None:
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()
        self.calls.append("release")


@pytest.fixture
def device(monkeypatch):
    """Lets ``ms.data_sink`` find an Ascend and a queue; gives the queues that were made."""
    made = []

    def build(rows, size, create_data_info_queue):
        assert size == 1
        made.append(SimulatedQueue(rows))
        return made[-1]

    def get_context(key):
        return "Ascend" if key == "device_target" else ms.get_context(key)  # noqa: TID251  MindSpore asks it

    monkeypatch.setattr(MINDSPORE, "context", SimpleNamespace(
        GRAPH_MODE=ms.GRAPH_MODE, get_context=get_context, get_auto_parallel_context=ms.get_auto_parallel_context))
    monkeypatch.setattr(MINDSPORE, "_exec_datagraph", build)
    monkeypatch.setattr(MINDSPORE, "ops", SimpleNamespace(GetNext=lambda *_: made[-1].next))
    monkeypatch.setattr(MINDSPORE, "_set_dataset_mode_config", lambda mode: None)
    return made


def rows_of(loader, epochs, start_step=0):
    """(name, image, label) of every sample of consecutive epochs."""
    found = []
    for epoch in range(epochs):
        for batch in loader.epoch(epoch, start_step if epoch == 0 else 0):
            image, label = (np.asarray(batch[key]) for key in ("image", "label"))
            assert image.dtype == label.dtype == np.uint8
            found += [(n, i.tobytes(), v.tobytes()) for n, i, v in zip(batch["names"], image, label, strict=True)]
    return found


def read(loader, epochs, seen):
    """Appends the batches of consecutive epochs to ``seen``."""
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            seen.append(batch)


@pytest.mark.parametrize(("epochs", "start_step"), [(3, 0), (3, 2), (1, 2), (1, 0)])
def test_the_same_batches_in_the_same_order(tmp_path, rng, device, epochs, start_step):
    make_camvid(tmp_path, rng, 10)      # three batches of four an epoch
    wanted = rows_of(train_loader("camvid", tmp_path), epochs, start_step)
    with SinkLoader(train_loader("camvid", tmp_path), 3 * epochs) as loader:
        assert rows_of(loader, epochs, start_step) == wanted
    assert device[0].calls == ["stop_send", "release"]


def test_a_run_may_end_before_its_data(tmp_path, rng, device):
    make_camvid(tmp_path, rng, 10)
    with SinkLoader(train_loader("camvid", tmp_path), 3000) as loader:
        assert next(iter(loader.epoch(0)))["image"].shape == (4, 32, 48, 3)
    assert device[0].calls == ["stop_send", "release"]
    with SinkLoader(train_loader("camvid", tmp_path), 3):
        pass        # nor does it need to begin
    assert len(device) == 1


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_a_broken_sample_is_reported_when_its_turn_comes(tmp_path, rng, device, batch):
    make_camvid(tmp_path, rng, 10)
    names = [name for name, *_ in rows_of(train_loader("camvid", tmp_path), 2)]
    broken = names[4 * batch]
    (tmp_path / "train" / f"{broken}.png").write_bytes(b"not an image")
    seen = []
    with SinkLoader(train_loader("camvid", tmp_path), 6) as loader, pytest.raises(DataError, match=f"{broken}.png"):
        read(loader, 2, seen)
    assert len(seen) == names.index(broken) // 4        # it may have had a turn before that one


def test_a_reader_that_stops_is_not_waited_for_without_end(tmp_path, rng, device, monkeypatch):
    make_camvid(tmp_path, rng, 10)
    plain, stop = train_loader("camvid", tmp_path), threading.Event()
    batch = next(iter(plain.epoch(0)))

    def stuck(number, start_step=0):
        yield from [batch] * 20
        stop.wait()

    monkeypatch.setattr(plain, "epoch", stuck)
    monkeypatch.setattr(sink, "_TIMEOUT_S", 0.5)
    seen = []
    with SinkLoader(plain, 90) as loader, \
            pytest.raises(DataError, match=r"no batch arrived.*train\.dataset_sink_mode=false"):
        read(loader, 30, seen)
    assert len(seen) == 20
    assert not device[0].calls      # closing would wait for the reader
    stop.set()
    device[0].stop_send()
    device[0].release()


def trained(folder, loader, accumulation=2):
    """Weights and metrics of a small training."""
    cfg = load_config(ROOT / "configs" / "_base_" / "camvid.yaml", ["train.log_interval=1", "train.epochs=2"])
    (folder / "ckpt").mkdir(parents=True)
    step = make_step(Net(norm=True), accumulation=accumulation)
    trainer = Trainer(Job(cfg, folder, Runtime("CPU", 0), np.full(6, 0.01), accumulation), step, loader)
    assert trainer.fit().step == 6
    return [p.asnumpy() for p in step.net.get_parameters()]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_ends_with_the_same_weights(tmp_path, rng, device, accumulation):
    make_camvid(tmp_path, rng, 10)
    five_classes = f"data.label_map={ {value: min(value, 4) for value in range(12)} }"
    plain = trained(tmp_path / "plain", train_loader("camvid", tmp_path, five_classes), accumulation)
    with SinkLoader(train_loader("camvid", tmp_path, five_classes), 6) as loader:
        sunk = trained(tmp_path / "sunk", loader, accumulation)
    for one, other in zip(plain, sunk, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("target", "kind"), [("CPU", Loader), ("Ascend", SinkLoader)])
def test_the_switch_works_where_the_platform_has_a_queue(tmp_path, rng, monkeypatch, target, kind):
    make_camvid(tmp_path / "data", rng, 10)
    loaders = []

    class Recorder:
        stopped = True

        def __init__(self, job, step, loader, evaluate):
            loaders.append(loader)

        def fit(self):
            pass

    monkeypatch.setattr(training, "Trainer", Recorder)
    monkeypatch.setattr(training, "build_step", lambda *_: None)
    monkeypatch.setattr(training, "keep_graphs", lambda *_: None)
    cfg = load_config(ROOT / "configs" / "enet" / "enet_camvid.yaml", [f"data.root={tmp_path / 'data'}",
                      "train.dataset_sink_mode=true", "train.run_eval=false"])
    run_dir = tmp_path / "run"
    (run_dir / "ckpt").mkdir(parents=True)
    training.train(cfg, run_dir, Runtime(target, 0), training.Start())
    assert [type(loader) for loader in loaders] == [kind]
    text = (run_dir / "train.log").read_text()
    assert ("MindSpore has no queue on CPU" in text) == (target == "CPU")


def test_mindspore_has_no_queue_on_the_cpu():
    with pytest.raises(ValueError, match="ascend or gpu"):
        ms.data_sink(lambda x: x, None)
