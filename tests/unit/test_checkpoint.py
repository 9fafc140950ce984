"""Checkpoint files: whole or not at all, refused by name when damaged, and weights taken out of them."""
import errno
import hashlib
import os
import time
from unittest.mock import patch

import numpy as np
import pytest

from mindspore import Parameter, Tensor

from mindseg import checkpoint as module
from mindseg.checkpoint import (
    Progress,
    load_network,
    load_weights,
    name_last,
    periodic_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from mindseg.config import load_config
from mindseg.engine.pretrained import load_pretrained
from mindseg.errors import UserError
from mindseg.logs import log, setup_logging
from mindseg.models import build_network
from tests.support import ROOT


@pytest.fixture(scope="module")
def cfg():
    return load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml")


@pytest.fixture
def parameters(rng):
    return [Parameter(Tensor(rng.normal(size=(3, 2)).astype(np.float32)), name="a.weight"),
            Parameter(Tensor(7, dtype=None), name="global_step")]


@pytest.fixture
def saved(tmp_path, parameters, cfg):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, parameters, Progress(3, 44, 0.625, 40), cfg)
    return path


def test_round_trip(saved, parameters, cfg):
    arrays, extras = read_checkpoint(saved)
    assert list(arrays) == ["a.weight", "global_step"]
    np.testing.assert_array_equal(arrays["a.weight"], parameters[0].asnumpy())
    config = extras.pop("config")
    assert time.time() - 600 < extras.pop("saved_at") <= time.time()
    assert extras == {"epoch": 3, "step": 44, "best_miou": 0.625, "eval_step": 40, "samples": 0}
    assert "name: fast_scnn" in config
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]
    assert os.stat(saved).st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: b"", "the checkpoint is empty"),
    (lambda data: data[:len(data) // 2], "damaged"),
    (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "damaged"),
    (lambda data: b"something else" * 20, "damaged")])
def test_damaged_files_are_refused_in_one_line(saved, damage, message):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.ckpt: no such checkpoint file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_missing_file_names_those_that_are_there(saved):
    with pytest.raises(UserError, match=rf"best\.ckpt: no such .*when it evaluates.*holds {saved.name}"):
        read_checkpoint(saved.parent / "best.ckpt")


def test_a_full_disk_keeps_the_old_file(saved, parameters, cfg, monkeypatch):
    before = saved.read_bytes()

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "sync_to_disk", full)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot write the checkpoint .*No space left.*free space"):
        save_checkpoint(saved, parameters, Progress(4, 55), cfg)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_written(tmp_path, parameters, cfg):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "file" / "last.ckpt", parameters, Progress(), cfg)


@pytest.mark.parametrize("links", [True, False])
def test_copies_are_kept_up_to_the_limit(saved, links, monkeypatch):
    if not links:
        def refuse(*_):
            raise OSError(errno.EPERM, "no links here")
        monkeypatch.setattr(module.os, "link", refuse)
    folder, data = saved.parent, saved.read_bytes()
    saved.unlink()
    for moment, step in enumerate((9, 100, 10, 11)):        # the run went on from an earlier checkpoint
        path = folder / f"step{step}.ckpt"
        path.write_bytes(data + bytes([step]))
        os.utime(path, ns=(moment, moment))
        name_last(path, 2)
        assert (folder / "last.ckpt").read_bytes() == path.read_bytes()
        assert (folder / "last.ckpt").samefile(path) is links
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step10.ckpt", "step11.ckpt"]
    assert [path.name for path in periodic_checkpoints(folder)] == ["step11.ckpt", "step10.ckpt"]


@pytest.mark.parametrize("miou", [0.1, 1 / 3, 0.7, -1.0])
def test_a_score_comes_back_as_it_was(tmp_path, parameters, cfg, miou):
    save_checkpoint(tmp_path / "a.ckpt", parameters, Progress(1, 2, miou, 2), cfg)
    assert read_checkpoint(tmp_path / "a.ckpt")[1]["best_miou"] == miou


@pytest.fixture(scope="module")
def network_file(cfg, tmp_path_factory):
    """A run's checkpoint: network, optimizer state and a moving average."""
    net = build_network(cfg)
    averages = [Parameter(Tensor(p.asnumpy() + 1), name=f"ema.{p.name}") for p in net.trainable_params()[:1]]
    moments = [Parameter(Tensor(p.asnumpy()), name=f"moments.{p.name}") for p in net.trainable_params()]
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    save_checkpoint(path, [*net.get_parameters(), *moments, *averages], Progress(2, 20, 0.5, 20), cfg)
    return path, {p.name: p.asnumpy() for p in net.get_parameters()}, averages[0].name.removeprefix("ema.")


def test_a_network_takes_the_moving_average(cfg, network_file):
    path, values, averaged = network_file
    net = load_network(cfg, path)
    for param in net.get_parameters():
        np.testing.assert_array_equal(param.asnumpy(), values[param.name] + (param.name == averaged))
    assert not net.training


def test_wrong_weights_are_refused(cfg, network_file):
    path, values, _ = network_file
    other = load_config(ROOT / "configs" / "enet" / "enet_camvid.yaml")
    with pytest.raises(UserError, match=r"parameters of this network are not in the checkpoint .*check model\.name"):
        load_network(other, path)
    wider = {name: np.zeros((2, *value.shape)) if name == "classifier.conv.weight" else value
             for name, value in values.items()}
    with pytest.raises(UserError, match=r"classifier\.conv\.weight has shape .*check model\.num_classes"):
        load_weights(build_network(cfg), wider, "x.ckpt")


# Parameters that know the number of classes.
CLASSIFIERS = {"fast_scnn": ("classifier.conv.", "aux_head1.conv2."), "enet": ("decoder.fullconv.",),
               "bisenetv2": tuple(f"{head}.conv_out." for head in ("head", "aux2", "aux3", "aux4", "aux5_4")),
               "fcn8s": ("score", "upscore")}


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_starting_weights_for_other_classes(name, converted, tmp_path, caplog):
    """Everything that knows no classes is loaded, from a checkpoint and from a file without classifiers."""
    small = ["model.fc_channels=32"] if name == "fcn8s" else []
    source, target = (load_config(ROOT / "configs" / name / f"{name}_synthetic.yaml",
                                  [f"model.num_classes={classes}", "loss.class_weights=null", *small])
                      for classes in (5, 7))
    values = {p.name: p.asnumpy() + 0.5 for p in build_network(source).get_parameters() if not p.name.endswith(".step")}
    kept = {key: value for key, value in values.items() if not key.startswith(CLASSIFIERS[name])}
    assert 0 < len(kept) < len(values)
    path, content = tmp_path / "other.ckpt", kept if converted else values
    save_checkpoint(path, [Parameter(Tensor(value), name=key) for key, value in content.items()], Progress(), source)
    net = build_network(target)
    before = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    setup_logging()
    with caplog.at_level("INFO", logger="mindseg"), patch.object(log, "propagate", True):
        load_pretrained(net, target, path)
    for param in net.get_parameters():
        np.testing.assert_array_equal(param.asnumpy(), kept.get(param.name, before[param.name]), param.name)
    (line,) = [line for line in caplog.messages if line.startswith("new, with random weights: ")]
    named = line.removeprefix("new, with random weights: ").split(", ")
    assert set(named) == {key.rpartition(".")[0] for key in values if key not in kept}
    assert target.train.pretrained == str(path)
    assert target.train.pretrained_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["fast_scnn", "enet"])
def test_shipped_weights_start_a_network_of_other_classes(name):
    (path,) = (ROOT / "weights").glob(f"{name}_camvid-*.ckpt")
    target = load_config(ROOT / "configs" / name / f"{name}_camvid.yaml",
                         ["model.num_classes=3", "loss.class_weights=null"])
    arrays, _ = read_checkpoint(path)
    net = build_network(target)
    load_pretrained(net, target, path)
    for param in net.get_parameters():
        if param.name in arrays and not param.name.startswith(CLASSIFIERS[name]):
            np.testing.assert_array_equal(param.asnumpy(), arrays[param.name], param.name)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["b", "a", "c"], ["a", "b", "d"]])
def test_a_classifier_starts_new_if_its_classes_have_other_names(names, tmp_path):
    source, target = (load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml", [
        "model.num_classes=3", "loss.class_weights=null", "data.name=list", "data.palette=null",
        f"data.class_names={classes}"])
        for classes in (["a", "b", "c"], names))
    path, ours = tmp_path / "other.ckpt", build_network(source)
    save_checkpoint(path, list(ours.get_parameters()), Progress(), source)
    net = build_network(target)
    load_pretrained(net, target, path)
    values = {p.name: p.asnumpy() for p in ours.get_parameters()}
    same = np.array_equal(net.classifier.conv.weight.asnumpy(), values["classifier.conv.weight"])
    assert same == (names == ["a", "b", "c"])
    weight = "learning_to_downsample.conv.conv.weight"
    np.testing.assert_array_equal(net.learning_to_downsample.conv.conv.weight.asnumpy(), values[weight])


def test_starting_weights_that_changed_since_they_were_recorded(cfg, network_file):
    target = load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml")
    target.train.pretrained, target.train.pretrained_sha256 = str(network_file[0]), "0" * 64
    with pytest.raises(UserError, match=r"best\.ckpt: its SHA-256 begins with \w{8}, not with 00000000"):
        load_pretrained(build_network(target), target, network_file[0])


def test_a_part_of_a_network_is_loaded(cfg, network_file):
    path, values, averaged = network_file
    target = load_config(ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml", ["model.pretrained_part=backbone"])
    net = build_network(target)
    before = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    load_pretrained(net, target, path)
    for param in net.get_parameters():
        if param.name.startswith(("learning_to_downsample.", "global_feature_extractor.")):
            np.testing.assert_array_equal(param.asnumpy(), values[param.name] + (param.name == averaged))
        elif param.name.startswith("classifier.conv."):
            np.testing.assert_array_equal(param.asnumpy(), before[param.name])
