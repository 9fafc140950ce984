"""The command ``mindseg plan``: what it prints, what it refuses, and the line of a dry run."""
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindseg.commands import plan
from mindseg.commands.arguments import read_config
from mindseg.compat import BatchNorm2d
from mindseg.errors import UserError
from mindseg.planner.costs import Costs, products
from mindseg.planner.graph import Node
from tests.support import ROOT
from tests.support.processes import in_a_process

RECIPES = ["fast_scnn_cityscapes", "enet_cityscapes", "bisenetv2_cityscapes", "fcn8s_cityscapes"]
FIGURE = r"[\d.]+ (?:s|h) \([\d.]+ to [\d.]+\)"


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command with given words, and gives the lines that it prints."""
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mindseg plan", *map(str, words)])
        plan.main()
        return capsys.readouterr().out.splitlines()
    return run


@pytest.fixture
def counted(monkeypatch):
    """Replaces the compiled graphs, which take seconds, by fixed amounts; gives the calls."""
    calls = []

    def amounts(cfg, batches, devices, chip):
        calls.append((cfg.model.name, batches, devices, chip.name))
        return plan.Amounts(Costs(1e12, 40e9, 5e9, 1000, 200), Costs(5e10, 2e9, 1e8, 200), 10**6)

    monkeypatch.setattr(plan, "amounts", amounts)
    return calls


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_figure_has_an_error_bar_and_the_limit_a_remedy(recipe, call, counted):
    lines = call("--config", recipe, "--devices", 8, "--run_eval")
    assert lines[0].startswith("prediction, nothing was measured: 8 x 910A, 1 host(s)")
    names = [line.strip().split(": ")[0] for line in lines[2:]]
    steps = read_config(recipe).train.steps
    assert names[:11] == ["products", "memory", "losses", "short rows", "launches", "all-reduce",
                          "synchronised BatchNorm", "device, sum of these", "loader, at the same time", "step",
                          f"training, {steps} steps"]
    for line in lines[2:13]:
        assert re.fullmatch(rf"  [\w, -]+: {FIGURE}", line)
    assert re.fullmatch(rf"  evaluation of 500 images: {FIGURE}, \d+ times: {FIGURE}", lines[13])
    assert re.fullmatch(rf"  total: {FIGURE}", lines[14])
    limit = lines[15].removeprefix("  limit: ").split(";")[0]
    assert lines[15] == f"  limit: {limit}; to change it: {plan.ADVICE[limit]}"
    assert len(lines) == (17 if recipe.startswith("enet") else 16)


def test_every_limit_has_a_remedy():
    step = plan.predict_step(plan.Cluster(plan.CARDS["A2"], 2), Costs(1, 1, 1, 1, 1), 1, plan.Span(0, 0, 0))
    assert set(plan.ADVICE) == {*step.parts, "loader", "evaluation"}


def test_stages_add_up(call, counted):
    lines = call("--config", "enet_cityscapes_staged", "--devices", 1)
    hours = [float(line.split(": ")[1].split(" h")[0]) for line in lines if line.startswith("  training")]
    assert [int(re.search(r"(\d+) steps", line)[1]) for line in lines if line.startswith("  training")] == [
        496 * 65, 496 * 85, 496 * 100]      # 2975 images, 6 at a time
    assert float(lines[-1].removeprefix("all stages: ").split(" h")[0]) == pytest.approx(sum(hours), rel=0.05)


def test_evaluations_are_those_of_the_trainer():
    cfg = read_config("fast_scnn_cityscapes_modelzoo", ["train.run_eval=true"])
    assert plan.evaluations(cfg, 186 * 1000, 186) == 16         # after epochs 850, 860, …, 1000
    cfg = read_config("bisenetv2_cityscapes_modelzoo", ["train.run_eval=true"])
    assert plan.evaluations(cfg, 160000, 186) == 32             # every 5000 steps
    cfg = read_config("fast_scnn_cityscapes", ["train.run_eval=true", "train.eval_interval=50"])
    assert plan.evaluations(cfg, 93 * 120 + 7, 93) == 4         # after epochs 1, 51, 101 and at the end
    assert plan.evaluations(read_config("fast_scnn_cityscapes"), 1000, 93) == 0


def test_passes_of_an_evaluation():
    assert plan.passes(read_config("fast_scnn_cityscapes")) == 1
    scales = sum(s * s for s in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75))
    assert plan.passes(read_config("bisenetv2_cityscapes_modelzoo")) == pytest.approx(2 * scales)
    slide = read_config("fast_scnn_cityscapes",
                        ["eval.mode=slide", "eval.window=[1024,1024]", "eval.stride=[1024,512]"])
    assert plan.passes(slide) == 1.5        # three windows of half an image


def test_threads_of_the_loader_are_a_share_of_the_cores(call, counted):
    def seconds(*words):
        lines = call("--config", "fast_scnn_cityscapes", "--devices", 8, "--images_per_second", 10, *words)
        return next(line for line in lines if line.startswith("  loader")).split(": ")[1]

    # Four images a step; each thread makes ten a second.
    assert seconds().startswith("0.025 s (0.021 to 0.030)")                                     # 16 threads at most
    assert seconds("--cores", 32).startswith("0.10 s")
    assert seconds("--cores", 32, "--set", "data.num_workers=2").startswith("0.20 s")
    assert seconds("--cores", 4).startswith("0.40 s")


@pytest.mark.parametrize(("words", "message"), [
    (["--devices", "8", "--chip", "B200"], r"--chip 'B200': no Ascend chip has this name; use 910A or A2"),
    (["--devices", "8", "--chip", "310P3"], r"--chip 310P3: the Ascend 310P cannot train; use 910A or A2"),
    (["--devices", "8", "--chip", "310"], r"--chip 310: the Ascend 310 cannot train; use 910A or A2"),
    (["--devices", "8", "--chip", "A3"], r"--chip A3: no rates of the A3 are known; use 910A or A2"),
    (["--devices", "9", "--hosts", "2"], r"--devices 9 cannot be divided over --hosts 2; give a multiple of it"),
    (["--devices", "0"], r"--devices 0 must be a number above 0"),
    (["--devices", "8", "--cores", "-1"], r"--cores -1 must be a number above 0"),
    (["--devices", "8", "--images_per_second", "nan"], r"--images_per_second nan must be a number above 0"),
    (["--devices", "8", "--eval_images", "0"], r"--eval_images 0 must be a number above 0"),
    (["--devices", "5"], r"train\.global_batch = 32 cannot be divided over 5 devices; set it to a multiple of 5"),
])
def test_refusals_are_one_line_with_a_remedy(words, message, call):
    with pytest.raises(UserError, match=message) as raised:
        call("--config", "fast_scnn_cityscapes", *words)
    assert "\n" not in str(raised.value)


def test_the_number_of_images_of_a_list_is_asked_for(call, counted):
    words = ["--config", "enet_camvid", "--devices", 2, "--set", "train.steps=null", "--set", "train.epochs=10",
             "--set", "train.global_batch=8"]
    with pytest.raises(UserError, match=r"the number of training images is not known; give --train_images N"):
        call(*words)
    with pytest.raises(UserError, match=r"the number of images of an evaluation is not known; give --eval_images N"):
        call(*words, "--train_images", 367, "--run_eval")
    lines = call(*words, "--train_images", 367, "--set", "train.run_eval=false")
    assert any(line.startswith("  training, 460 steps: ") for line in lines)


@pytest.fixture
def fake_msrun(tmp_path):
    """A folder with an msrun that writes its arguments down."""
    program = tmp_path / "bin" / "msrun"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/words\n', encoding="utf-8")
    program.chmod(0o755)
    return program.parent


def test_the_dry_run_prints_the_line_that_the_script_runs(call, fake_msrun, tmp_path, monkeypatch):
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "my logs"))
    (line,) = call("--config", "enet_camvid", "--devices", 16, "--hosts", 2, "--set", "data.root=/my streets",
                   "--dry_run")
    device, program, *words = shlex.split(line)
    assert (device, program) == ("DEVICE_TARGET=Ascend", "msrun")
    assert "--sim_level=1" in words
    assert {"--worker_num=16", "--local_worker_num=8", "data.root=/my streets"} <= set(words)
    # scripts/common.sh puts the project's own programs first, so the script runs in a copy without them.
    copy = tmp_path / "copy" / "scripts"
    copy.mkdir(parents=True)
    for name in ("run_distribute_train.sh", "common.sh"):
        (copy / name).write_text((ROOT / "scripts" / name).read_text(encoding="utf-8"), encoding="utf-8")
    config = str(ROOT / "configs" / "enet" / "enet_camvid.yaml")
    subprocess.run(["bash", str(copy / "run_distribute_train.sh"), config, "16", "--set", "data.root=/my streets"],
                   env={**os.environ, "PATH": f"{fake_msrun}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                        "PYTHONPATH": str(ROOT / "src"), "NODE_NUM": "2", "NODE_RANK": "1"}, check=True, timeout=60)
    ran = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    expected = [word.replace(str(ROOT / "train.py"), str(tmp_path / "copy" / "train.py")) for word in words
                if word != "--sim_level=1"]
    assert ran == [word.replace("--node_rank=0", "--node_rank=1") for word in expected]


def test_the_dry_run_passes_the_scripts_refusal_on(call, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "text")
    with pytest.raises(UserError, match="--dry_run: MASTER_PORT = text is not a number"):
        call("--config", "enet_camvid", "--devices", 2, "--dry_run")


def test_a_step_counts_each_part_and_one_update(monkeypatch):
    relu = Node("ReLU", ("%1",), (("Float32", (8, 16, 4, 4)),), (("Float32", (8, 16, 4, 4)),))
    adam = Node("Adam", ("%1",), (("Float32", (100,)),), (("Float32", (100,)),))
    step = SimpleNamespace(net=None, weights=[SimpleNamespace(size=70), SimpleNamespace(size=30)])
    monkeypatch.setattr(plan, "build_network", lambda cfg: None)
    monkeypatch.setattr(plan, "build_planned_step", lambda *args: step)
    monkeypatch.setattr(plan, "compile_step", lambda *args: ([{"%1": relu}, {"%1": relu}], [{"%1": adam}]))
    monkeypatch.setattr(plan, "compile_evaluation", lambda *args: [{"%1": relu}])
    cfg = read_config("fast_scnn_synthetic", ["train.run_eval=true"])
    size = 4 * 2 * 8 * 16 * 16
    assert plan.amounts(cfg, plan.Batches(24, 3), 2, plan.find_chip("910A")) == plan.Amounts(
        Costs(0, 3 * 2 * size + 4 * 2 * 100, 0, 7), Costs(0, size, 0, 1), 100)
    cfg = read_config("fast_scnn_synthetic", ["train.run_eval=false"])
    assert plan.amounts(cfg, plan.Batches(24, 3), 2, plan.find_chip("910A")).forward == Costs()


def small_amounts(chip, batches):
    """Counts a training of small images on two cards."""
    cfg = read_config("fast_scnn_synthetic", ["train.global_batch=4", "data.crop_size=[64,64]", "train.run_eval=false"])
    return cfg, plan.amounts(cfg, batches, 2, plan.find_chip(chip))


@pytest.mark.slow
def test_a_small_training_is_counted():
    cfg, found = in_a_process(small_amounts, "910A", plan.Batches(1, 1))      # shared statistics allow one image
    net = plan.build_network(cfg)
    norms = sum(isinstance(cell, BatchNorm2d) for _, cell in net.cells_and_names())
    assert found.parameters == sum(p.size for p in net.trainable_params())
    assert 4 * norms == found.step.reductions > 160


@pytest.mark.slow
def test_images_and_parts_multiply_what_is_counted():
    _, found = in_a_process(small_amounts, "910A", plan.Batches(2, 1))
    _, parts = in_a_process(small_amounts, "910A", plan.Batches(4, 2))
    assert parts.step.flops == pytest.approx(2 * found.step.flops, rel=0.01)
    assert parts.step.launches > 1.8 * found.step.launches
    assert parts.step.reductions == 2 * found.step.reductions


RESIZE = 2 * 19 * (128 * 256 * 2048 + 1024 * 128 * 2048)       # 19 x 128 x 256 logits, first wider, then higher


def recipe_products(recipe):
    """Floating-point operations of a recipe: a pass over an image, the gradients of a step on one of eight cards."""
    plan.ensure_device("CPU")
    cfg = read_config(recipe)
    batches = plan.divide_batch(cfg, 8)
    with plan.as_if_on(plan.find_chip("910A")):
        step = plan.build_planned_step(cfg, plan.build_network(cfg), batches, 8)
        gradients, _ = plan.compile_step(step, batches.part, cfg.data.crop_size)
        forward = plan.compile_evaluation(cfg, step.net)
    found, trained = (sum(products(node, block=1) for graph in graphs for node in graph.values())
                      for graphs in (forward, gradients))
    return found, trained, batches.device * cfg.data.crop_size[0] * cfg.data.crop_size[1] / (1024 * 2048)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "gmacs", "resize"), [     # 10^9 products at 1024x2048: docs/model_zoo.md
    ("fast_scnn_cityscapes", 7.25, RESIZE), ("bisenetv2_cityscapes", 98.41, RESIZE), ("enet_cityscapes", 16.15, 0),
    ("fcn8s_cityscapes", 890.4, 0)])
def test_the_products_of_a_recipe_are_those_of_the_model_zoo(recipe, gmacs, resize):
    found, trained, images = in_a_process(recipe_products, recipe)
    assert 0.999 < found / (2e9 * gmacs + resize) < 1.08       # ENet's transposed convolutions are padded
    # Two gradients for each product of the forward pass, auxiliary heads, and no gradient of the image.
    assert 2.8 < trained / (2e9 * gmacs * images) < 5.5
