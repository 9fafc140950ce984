"""Operators of the training steps against the inventory of the installed MindSpore, within budgets."""
import pytest
import yaml

from mindseg.chips import CHIPS
from mindseg.config import load_config
from tests.support import ROOT
from tools.census import LOSSES, MODELS, Case, kernel_of, summary

BUDGETS = yaml.safe_load((ROOT / "tests" / "census_budgets.yaml").read_text(encoding="utf-8"))
CHIP = {chip.name: chip for chip in CHIPS}

@pytest.mark.parametrize(("name", "chip", "kind"), [
    ("Conv2DExt", "A2", "aclnn"), ("Conv2DExt", "910A", "unknown"), ("Conv2D", "A2", "ge"), ("Conv2D", "910A", "ge"),
    ("GatherDGradV2", "910A", "aicpu"), ("GatherDGradV2", "A2", "aclnn"), ("PReLU", "A2", "aclnn"),
    ("PReLU", "910A", "ge"), ("ApplyMomentum", "A2", "ge"), ("SliceGrad", "A2", "aicpu"),
    ("BatchNormExt", "910A", "unknown"), ("NoSuchOperator", "A2", "unknown")])
def test_operators_are_looked_up_by_chip(name, chip, kind):
    assert kernel_of(name, CHIP[chip]) == kind


def check(case):
    """Holds a training step against its budget."""
    found = summary(case)
    assert not found["aicpu"], found["operators"]
    assert not found["unknown"], found["operators"]
    assert found["moves"] <= BUDGETS["moves"]
    assert found["sort"] <= BUDGETS["sort"]
    limits = BUDGETS["launches" if case.devices == 1 else "synchronised"][case.model]
    limit = limits[case.chip] + BUDGETS["losses"].get(case.loss, 0)
    assert found["launches"] <= limit, found["operators"]


@pytest.mark.parametrize("model", MODELS)
def test_the_recipes_step_keeps_its_budget(model):
    check(Case(model, "recipe", "A2"))


def loss_of(model):
    """Name of the loss in a network's recipe."""
    return load_config(ROOT / "configs" / model / f"{model}_cityscapes.yaml").loss.name


# Recipes on A2 are in the test above.
@pytest.mark.slow
@pytest.mark.parametrize(("model", "chip", "loss"), [
    (model, chip, loss) for model in MODELS for chip in ("A2", "910A") for loss in LOSSES
    if (chip, loss) != ("A2", loss_of(model))])
def test_every_loss_keeps_its_budget(model, chip, loss):
    check(Case(model, loss, chip))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["A2", "910A"])
@pytest.mark.parametrize("model", MODELS)
def test_synchronised_steps_keep_their_budget(model, chip):
    check(Case(model, "recipe", chip, 8))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["A2", "910A"])
@pytest.mark.parametrize("model", MODELS)
def test_evaluation_moves_nothing_above_rank_5(model, chip):
    found = summary(Case(model, "evaluation", chip))
    assert not found["aicpu"], found["operators"]
    assert not found["unknown"], found["operators"]
    assert found["moves"] == 0
