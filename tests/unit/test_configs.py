"""Every configuration that ships: parsed, checked and built."""
import re
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindspore import Tensor

from mindseg.commands.train import divide_batch
from mindseg.compat import set_mode
from mindseg.config import load_config
from mindseg.errors import ConfigError
from mindseg.losses import create_loss
from mindseg.models import build_network
from mindseg.optim import parameter_settings
from mindseg.schedules import create_schedule

FOLDER = Path(__file__).resolve().parents[2] / "configs"
NETWORKS = ("fast_scnn", "fcn8s", "enet", "bisenetv2")
CONFIGS = sorted(path for network in NETWORKS for path in (FOLDER / network).glob("*.yaml"))
SCHEMA = FOLDER / "_base_" / "defaults.yaml"      # its comments declare the keys


def test_there_is_a_recipe_a_modelzoo_recipe_and_a_camvid_recipe_for_every_network():
    names = {path.stem for path in CONFIGS}
    best = {"fast_scnn_cityscapes", "fcn8s_voc", "enet_cityscapes", "bisenetv2_cityscapes"}
    older = {"fast_scnn_cityscapes_modelzoo", "fcn8s_voc_modelzoo", "enet_cityscapes_staged",
             "bisenetv2_cityscapes_modelzoo"}
    assert best | older | {f"{network}_camvid" for network in NETWORKS} <= names


@pytest.fixture(scope="module")
def output_counts():
    return {}


def count_outputs(cfg, net, known):
    """Number of logits that training returns; run once for each kind of network."""
    key = str({k: v for k, v in cfg.model.items() if k not in ("num_classes", "fc_channels", "pretrained_part")})
    if key not in known:
        set_mode("pynative")
        try:
            net.set_train(True)
            known[key] = len(net(Tensor(np.zeros((2, 3, 64, 64), np.float32))))
        finally:
            set_mode("graph")
    return known[key]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_builds(path, output_counts):
    # FCN-8s' classifier of 4096 channels is half a gigabyte; its width changes nothing that is checked here.
    cfg = load_config(path, ["model.fc_channels=16"] if path.stem.startswith("fcn8s") else [])
    net = build_network(cfg)
    if cfg.loss.class_weights == "auto":        # computed from the labels
        cfg.loss.class_weights = [1.0] * cfg.model.num_classes
    loss = create_loss(cfg.loss, 255)
    outputs = count_outputs(cfg, net, output_counts)
    assert loss.weights is None or len(loss.weights) == outputs
    steps = cfg.train.steps or 180 * cfg.train.epochs
    rates = create_schedule(cfg.optim, steps, 180)
    assert len(rates) == steps
    assert rates.max() <= cfg.optim.lr * (1 + 1e-6)
    assert rates.min() >= 0
    assert rates[:-1].max() > 0
    assert len(parameter_settings(cfg.optim, net)) == len(net.trainable_params())
    assert divide_batch(cfg, 1).part >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_stages_name_files(path):
    for name in load_config(path).train.stages or ():
        load_config(path.parent / name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_learning_rate_and_batch_name_their_source(path):
    """Whoever wants to reproduce a number must know where the recipe comes from."""
    text = path.read_text()
    assert text.startswith("# ")
    if "cityscapes" in path.stem or "voc" in path.stem:
        for line in re.findall(r"^  (?:lr|global_batch|weight_decay): .*", text, re.M):
            assert "#" in line, line


def sources(text):
    """Yields each value's ``section.key`` and its comment.

    A value is a line ``  key: ...`` of a section and the deeper lines that go on with it. Its comment stands behind one
    of these lines, or alone on the line directly above, and speaks of this value only.
    """
    lines = text.splitlines()
    section = None
    for number, line in enumerate(lines):
        section = line.partition(":")[0] if re.match(r"\w", line) else section
        if found := re.match(r"  (\w+):", line):
            rest = takewhile(lambda later: later.startswith("   "), lines[number + 1:])
            above = lines[number - 1] if lines[number - 1].startswith("  #") else ""
            comments = [part.partition(" #")[2].strip() for part in (line, *rest, above)]
            yield f"{section}.{found[1]}", " ".join(filter(None, comments))


def test_every_value_names_its_source():
    files = sorted(set(FOLDER.rglob("*.yaml")) - {SCHEMA})
    assert {path.parent.name for path in files} == {"_base_", "protocols", *NETWORKS}
    assert len(files) > len(CONFIGS) >= 20
    silent = []
    for path in files:
        found = list(sources(path.read_text()))
        tree = {key: part for key, part in yaml.safe_load(path.read_text()).items() if key != "_base_"}
        # The parser agrees which values there are, so none was overlooked.
        assert [name for name, _ in found] == [f"{section}.{key}" for section in tree for key in tree[section]]
        assert found, path
        silent += [f"{path.relative_to(FOLDER)}: {name}" for name, comment in found if not re.search(r"\w{3}", comment)]
    assert silent == []


@pytest.mark.parametrize(("text", "expected"), [
    ("a:\n  b: 1   # code\n", ["code"]), ("a:\n  b: 1\n", [""]),
    ("a:\n  b: [1,\n      2]   # code\n  c: 2\n", ["code", ""]),
    ("a:\n  # code\n  b: 1\n  c: 1\n", ["code", ""]), ("# code\na:\n  b: 1\n", [""]), ("a:   # code\n  b: 1\n", [""])])
def test_where_a_source_may_stand(text, expected):
    assert [comment for _, comment in sources(text)] == expected


def test_the_table_of_the_readme_lists_every_configuration():
    table = (FOLDER / "README.md").read_text()
    assert [path.stem for path in CONFIGS if f"`{path.stem}`" not in table] == []


@pytest.mark.parametrize("override", [
    "train.steps=0", "train.device_batch=0", "train.eval_interval_steps=-1", "train.save_interval_steps=0",
    "train.keep_checkpoint_max=-1", "train.ema_decay=1.0", "train.ema_decay=-0.1", "optim.loss_scale=0",
    "optim.loss_scale=sometimes", "optim.clip_norm=-1", "optim.warmup_steps=-5", "optim.schedule_start=-1",
    "loss.label_stride=7", "loss.label_stride=0"])
def test_values_out_of_range_are_refused(override):
    with pytest.raises(ConfigError, match=re.escape(override.split("=")[0])):
        load_config(CONFIGS[0], [override])


def test_an_exponential_warm_up_needs_a_start():
    with pytest.raises(ConfigError, match=r"optim\.warmup_factor = 0"):
        load_config(CONFIGS[0], ["optim.warmup=exponential", "optim.warmup_factor=0"])


@pytest.mark.parametrize(("value", "expected"), [("1024", 1024.0), ("dynamic", "dynamic"), ("auto", "auto")])
def test_a_loss_scale_is_a_number_or_dynamic(value, expected):
    assert load_config(CONFIGS[0], [f"optim.loss_scale={value}"]).optim.loss_scale == expected
