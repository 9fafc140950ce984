"""Published weights: a small checkpoint with its page, and a folder for a model hub that ``mindseg.load`` opens."""
import hashlib
import json
import shlex
import struct
import sys

import numpy as np
import pytest
import yaml

from mindspore import Parameter, Tensor

import mindseg
from mindseg.checkpoint import Progress, load_network, read_checkpoint, save_checkpoint, save_weights
from mindseg.commands import publish
from mindseg.config import dump_config, load_config
from mindseg.engine.pretrained import load_pretrained
from mindseg.errors import UserError
from mindseg.manifest import MANIFEST_NAME, ModelFile
from mindseg.models import build_network
from tests.support import ROOT
from tests.support.deploy import make_manifest
from tests.support.evaluation import write_scores
from tests.support.hostile import check_refused

CONFIG = ROOT / "configs" / "fast_scnn" / "fast_scnn_camvid.yaml"


@pytest.fixture(scope="module")
def cfg():
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def run(cfg, tmp_path_factory):
    """A run's checkpoint with optimizer state and a moving average, and its scores."""
    net = build_network(cfg)
    averages = [Parameter(Tensor(p.asnumpy() + 1), name=f"ema.{p.name}") for p in net.trainable_params()[:1]]
    moments = [Parameter(Tensor(p.asnumpy()), name=f"moments.{p.name}") for p in net.trainable_params()]
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    save_checkpoint(path, [*net.get_parameters(), *moments, *averages], Progress(2, 20, 0.5, 20), cfg,
                    temperature=1.7)
    write_scores(path.with_name("eval.json"), path, cfg.data.class_names)
    return path


@pytest.fixture
def call(run, monkeypatch):
    def publish_it(words, ckpt=run, scores=None, domain="streets"):
        scores = scores or run.with_name("eval.json")
        command = ["publish", "--config", CONFIG, "--ckpt_path", ckpt, "--eval", scores, "--dataset", "CamVid",
                   "--data", "train", "--domain", domain, "--terms", "research", *shlex.split(words)]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        publish.main()
    return publish_it


@pytest.fixture
def hub(call, tmp_path, monkeypatch):
    """A folder for a hub; a stand-in writes the exported model, which costs no graph."""
    def export(cfg, ckpt_path, formats, folder, overwrite):
        (folder / "fast_scnn.onnx").write_bytes(b"onnx")
        (folder / MANIFEST_NAME).write_text("models: []\n")
        assert (ckpt_path.name, formats) == ("best.ckpt", ["ONNX"])
        return make_manifest(folder, models=(ModelFile("onnx", "fast_scnn.onnx", 1, "0" * 64),))

    monkeypatch.setattr("mindseg.deploy.exporter.export", export)
    monkeypatch.setattr(publish, "setup_runtime", lambda _: None)
    call(f"--hub {tmp_path / 'hub'} --license apache-2.0")
    return tmp_path / "hub"


def weights_of(network):
    return {p.name: p.asnumpy() for p in network.get_parameters()
            if not p.name.startswith("aux") and not p.name.endswith(".step")}


def test_a_published_checkpoint_is_small_named_by_its_content_and_works(call, cfg, run, tmp_path):
    for _ in range(2):      # the second time replaces row and section
        call(f"--output {tmp_path}")
    (path,) = tmp_path.glob("*.ckpt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"fast_scnn_camvid-{digest[:8]}.ckpt"
    assert path.stat().st_size < run.stat().st_size * 0.6
    arrays, extras = read_checkpoint(path)
    assert not [name for name in arrays if name.startswith(("aux", "moments", "ema"))]
    assert (extras["epoch"], extras["best_miou"], extras["temperature"]) == (2, 0.5, 1.7)
    page = (tmp_path / "README.md").read_text()
    assert page.count(digest) == page.count("`fast_scnn_camvid`") == page.count("## fast_scnn_camvid\n") == 1
    np.testing.assert_equal(weights_of(load_network(cfg, path)), weights_of(load_network(cfg, run)))


def test_the_page_has_the_scores_of_each_class_and_the_terms_of_the_data(call, cfg, tmp_path):
    call(f"--output {tmp_path}")
    page = (tmp_path / "README.md").read_text()
    for index, name in enumerate(cfg.data.class_names[:-1]):
        assert f"| {name} | {5 * index:.2f} |\n" in page
    assert f"| {cfg.data.class_names[-1]} | - |\n" in page
    assert "| CamVid | 360x480 | 22.50 | 2 |" in page
    assert "**Terms of the data**: research" in page
    assert "22.50 % mIoU and 75.00 % pixel accuracy on the 3 images of CamVid val" in page
    other = page.replace("fast_scnn_camvid", "other").replace("research", "none")
    (tmp_path / "README.md").write_text(other)
    call(f"--output {tmp_path}")
    both = (tmp_path / "README.md").read_text()
    assert both.index("## other\n") < both.index("## fast_scnn_camvid\n")
    assert [line.split("`")[3] for line in both.splitlines() if line.startswith("| `")] == ["other", "fast_scnn_camvid"]
    (tmp_path / "README.md").write_text("# My own page\n| `fast_scnn_camvid` |\n")
    with pytest.raises(UserError, match=r"README\.md: not the page of weights that this command writes"):
        call(f"--output {tmp_path}")
    assert (tmp_path / "README.md").read_text().startswith("# My own page")


def test_a_checkpoint_that_is_published_already_stays(call, cfg, tmp_path):
    call(f"--output {tmp_path}")
    (path,) = tmp_path.glob("*.ckpt")
    before = path.stat()
    call(f"--output {tmp_path}", path, write_scores(tmp_path / "eval.json", path, cfg.data.class_names, images=7),
         domain="other streets")
    assert list(tmp_path.glob("*.ckpt")) == [path]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    page = (tmp_path / "README.md").read_text()
    assert "on the 7 images" in page
    assert "Fast-SCNN for other streets." in page


def test_float16_halves_the_file_and_is_listed_with_its_own_scores(call, cfg, run, tmp_path):
    """Kernels are the nearest float16 values; statistics and biases stay float32."""
    call(f"--output {tmp_path} --half")
    (path,) = tmp_path.glob("*.ckpt")
    assert not (tmp_path / "README.md").exists()
    exact, rounded = weights_of(load_network(cfg, run)), weights_of(load_network(cfg, path))
    for name, value in exact.items():
        np.testing.assert_array_equal(rounded[name], value.astype(np.float16) if value.ndim > 1 else value)
        assert rounded[name].dtype == np.float32
    call(f"--output {tmp_path}", path, write_scores(tmp_path / "eval.json", path, cfg.data.class_names))
    assert list(tmp_path.glob("*.ckpt")) == [path]
    assert f"`{path.name}`" in (tmp_path / "README.md").read_text()
    call(f"--output {tmp_path / 'full'}")
    (full,) = (tmp_path / "full").glob("*.ckpt")
    assert path.stat().st_size < 0.56 * full.stat().st_size


def test_a_weight_beyond_float16_is_refused(call, cfg, run, tmp_path):
    net = build_network(cfg)
    kernel = next(p for p in net.get_parameters() if p.ndim == 4)
    kernel.set_data(Tensor(np.full(kernel.shape, 7e4, np.float32)))
    large = tmp_path / "best.ckpt"
    save_checkpoint(large, list(net.get_parameters()), Progress(2, 20, 0.5, 20), cfg)
    scores = write_scores(tmp_path / "eval.json", large, cfg.data.class_names)
    with pytest.raises(UserError, match=rf"--half: {kernel.name} has the value 70000, and float16 ends at 65504"):
        call(f"--output {tmp_path / 'weights'} --half", large, scores)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_folder_for_a_hub_has_no_float16(call, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(f"--hub {tmp_path} --license apache-2.0 --half")
    assert "--half is for a checkpoint" in capsys.readouterr().err


def test_scores_must_be_those_of_the_checkpoint(call, cfg, run, tmp_path):
    scores = tmp_path / "eval.json"
    again = rf"run mindseg eval with --ckpt_path {run}"
    write_scores(scores, run, cfg.data.class_names, checkpoint_sha256="0" * 64)
    with pytest.raises(UserError, match=rf"scores of another checkpoint, {run}; {again}"):
        call(f"--output {tmp_path}", scores=scores)
    for text in ("", "[]", "{}", "[" * 100000, json.dumps({"miou": 0.5}),
                 json.dumps({**json.loads(scores.read_text()), "iou": [0.5]}),
                 json.dumps({**json.loads(scores.read_text()), "miou": 50.0}),
                 json.dumps({**json.loads(scores.read_text()), "device": "TPU"})):
        scores.write_text(text)
        with pytest.raises(UserError, match=rf"not the eval\.json of an evaluation of one checkpoint; {again}"):
            call(f"--output {tmp_path}", scores=scores)
    with pytest.raises(UserError, match="--domain goes into a table"):
        call(f"--output {tmp_path}", domain="streets | roads")


def test_a_folder_for_a_hub_has_the_weights_as_others_read_them(hub, cfg, run):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    expected = weights_of(load_network(cfg, run))
    found = load_file(hub / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)
    with safe_open(hub / "model.safetensors", "np") as file:
        texts = file.metadata()
    assert (texts["format"], texts["epoch"], texts["best_miou"]) == ("mindspore", "2", "0.5")
    assert texts["config"] == (hub / "config.yaml").read_text()
    assert load_config(hub / "config.yaml") == cfg


def test_the_card_has_the_header_that_hubs_read(hub, cfg):
    _, header, body = (hub / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(header)
    expected = {"pipeline_tag": "image-segmentation", "library_name": "mindseg", "frameworks": ["MindSpore"],
                "hardwares": ["CPU"], "license": "apache-2.0", "metrics": ["mean_iou", "accuracy"],
                "datasets": ["camvid"]}
    assert {name: facts[name] for name in expected} == expected
    ((model, (result,)),) = [(entry["name"], entry["results"]) for entry in facts["model-index"]]
    assert model == "fast_scnn_camvid"
    assert result["dataset"] == {"type": "camvid", "name": "CamVid", "split": "val"}
    assert [(entry["type"], entry["value"]) for entry in result["metrics"]] == [("mean_iou", 0.225), ("accuracy", 0.75)]
    assert "It hardly finds these classes: sky, building." in body.replace("\n", " ")
    assert "- Terms of the data: research" in body
    for name in ("model.safetensors", "config.yaml", "fast_scnn.onnx", "deploy.yaml"):
        assert hashlib.sha256((hub / name).read_bytes()).hexdigest() in body


def test_a_device_that_was_used_is_named_and_no_other(call, cfg, hub, run, tmp_path):
    scores = write_scores(tmp_path / "eval.json", run, cfg.data.class_names, device="Ascend")
    call(f"--hub {hub} --license mit", scores=scores)
    header = yaml.safe_load((hub / "README.md").read_text().split("---\n", 2)[1])
    assert (header["hardwares"], header["license"]) == (["NPU"], "mit")


def test_files_of_the_user_stay(call, hub, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README\.md: exists and was not written by mindseg"):
        call(f"--hub {tmp_path / 'mine'} --license apache-2.0")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir() if path.name[0] != ".") == ["README.md"]
    with pytest.raises(SystemExit):
        call(f"--hub {tmp_path / 'new'}")
    assert "--hub needs --license" in capsys.readouterr().err


def test_load_takes_the_weights_of_the_folder(hub, cfg, run):
    for place in (hub, hub / "model.safetensors"):
        network = mindseg.load(place, device="CPU").predictor.net
        np.testing.assert_equal(weights_of(network), weights_of(load_network(cfg, run)))
    assert read_checkpoint(hub / "model.safetensors")[1]["epoch"] == 2


def test_every_extra_of_a_checkpoint_comes_back(cfg, tmp_path):
    extras = {"epoch": 2, "step": 20, "eval_step": 20, "samples": 7, "best_miou": 0.1 + 0.2, "saved_at": 1e9 + 0.5,
              "temperature": 1.7}
    save_weights(tmp_path / "a.safetensors", [Parameter(Tensor([1.0, 2.0]), name="w")], cfg, extras)
    arrays, found = read_checkpoint(tmp_path / "a.safetensors")
    assert arrays["w"].tolist() == [1.0, 2.0]
    assert found == extras | {"config": dump_config(cfg)}


def test_a_training_starts_from_the_weights_of_the_folder(hub, run):
    target = load_config("fast_scnn_camvid")
    net = build_network(target)
    load_pretrained(net, target, hub / "model.safetensors")
    np.testing.assert_equal(weights_of(net), weights_of(load_network(target, run)))


def edited(data, **texts):
    """The file with other metadata."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header["__metadata__"] |= texts
    words = json.dumps(header).encode()
    return struct.pack("<Q", len(words)) + words + data[8 + length:]


HOSTILE = {
    "cut at the end": lambda data: data[:-100],
    "cut in the header": lambda data: data[:1000],
    "empty": lambda data: b"",
    "one bit of a weight": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "header of 2**60 bytes": lambda data: struct.pack("<Q", 2**60) + data[8:],
    "another checksum": lambda data: edited(data, **{"mindseg.sha256": "0" * 64}),
    "number as configuration": lambda data: edited(data, config=3),
    "no YAML": lambda data: edited(data, config="model: ["),
    "code in YAML": lambda data: edited(data, config="model: !!python/object/apply:os.abort []"),
    "another network": lambda data: edited(data, config=dump_config(load_config("enet_camvid"))),
    "epochs in words": lambda data: edited(data, epoch="many"),
    "list as epochs": lambda data: edited(data, epoch=[1]),
    "no pickle is read": lambda data: b"\x80\x04cos\nabort\n(tR.",
}


def test_hostile_folders_are_one_line(hub):
    path = hub / "model.safetensors"
    data = path.read_bytes()
    for change in HOSTILE.values():
        path.write_bytes(change(data))
        check_refused(lambda: mindseg.load(hub, device="CPU"), path)
    path.unlink()
    check_refused(lambda: mindseg.load(hub, device="CPU"), hub / MANIFEST_NAME)     # the stand-in's list is empty
    (hub / MANIFEST_NAME).unlink()
    check_refused(lambda: mindseg.load(hub, device="CPU"), "or model.safetensors; give a checkpoint")
