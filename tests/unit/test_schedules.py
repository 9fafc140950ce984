"""Learning-rate curves against the formulas of their sources, at hand-computed points."""
import numpy as np
import pytest

from mindseg.errors import ConfigError
from mindseg.schedules import create_schedule
from tests.support.steps import optim_config


def test_poly_at_first_middle_and_last_step():
    rates = create_schedule(optim_config(min_lr=0.01), 100, 10)
    assert rates.dtype == np.float32
    assert len(rates) == 100
    assert rates[[0, 50, 99]] == pytest.approx([0.1, 0.09 * 0.5**0.9 + 0.01, 0.09 * 0.01**0.9 + 0.01], rel=1e-6)


def test_poly_gives_the_rates_that_a_public_run_logged():
    """BiSeNet V2 at lr 0.05 over 160000 steps logged 0.049997 at its tenth step."""
    rates = create_schedule(optim_config(lr=0.05), 160_000, 743)
    assert f"{rates[9]:.6f}" == "0.049997"


def test_cosine_at_first_middle_and_last_step():
    rates = create_schedule(optim_config(schedule="cosine", min_lr=0.02), 200, 10)
    assert rates[[0, 100, 199]] == pytest.approx([0.1, 0.06, 0.02 + 0.04 * (1 + np.cos(np.pi * 0.995))], rel=1e-6)


def test_step_changes_exactly_at_the_milestones():
    rates = create_schedule(optim_config(schedule="step", step_epochs=[2, 5]), 70, 10)
    assert rates[[0, 19, 20, 49, 50, 69]] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_exponential_halves_every_epoch():
    rates = create_schedule(optim_config(schedule="exponential", step_gamma=0.5), 30, 10)
    assert rates[[0, 5, 10, 20]] == pytest.approx([0.1, 0.1 * 0.5**0.5, 0.05, 0.025])


def test_constant():
    assert set(create_schedule(optim_config(schedule="constant"), 7, 3).tolist()) == {np.float32(0.1)}


def test_linear_warm_up_multiplies_the_curve():
    plain, warm = create_schedule(optim_config(), 100, 10), create_schedule(optim_config(warmup_steps=20), 100, 10)
    assert warm[[0, 10, 19]] == pytest.approx(plain[[0, 10, 19]] * [0.1, 0.55, 0.1 + 0.9 * 0.95], rel=1e-5)
    np.testing.assert_array_equal(warm[20:], plain[20:])


def test_exponential_warm_up_is_a_straight_line_of_logarithms():
    warm = create_schedule(optim_config(schedule="constant", warmup="exponential", warmup_steps=20), 100, 10)
    assert warm[[0, 10, 20]] == pytest.approx([0.01, 0.1 * 10**-0.5, 0.1], rel=1e-5)


def test_warm_up_longer_than_the_run():
    assert create_schedule(optim_config(schedule="constant", warmup_steps=40), 20, 10)[-1] == pytest.approx(
        0.1 * (0.1 + 0.9 * 19 / 40))


def test_epoch_unit_holds_the_rate_through_an_epoch():
    rates = create_schedule(optim_config(schedule="cosine", schedule_unit="epoch"), 40, 10).reshape(4, 10)
    assert (rates == rates[:, :1]).all()
    assert rates[:, 0] == pytest.approx(create_schedule(optim_config(schedule="cosine"), 4, 1))


def test_runs_that_share_a_curve_continue_each_other():
    """65 and 85 epochs of one 150-epoch curve, as in two-stage training of an encoder."""
    whole = create_schedule(optim_config(schedule_unit="epoch"), 150 * 7, 7)
    first = create_schedule(optim_config(schedule_unit="epoch", schedule_epochs=150), 65 * 7, 7)
    second = create_schedule(optim_config(schedule_unit="epoch", schedule_epochs=150, schedule_start=65), 85 * 7, 7)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def test_a_run_beyond_the_end_of_its_curve_is_refused():
    with pytest.raises(ConfigError, match="schedule_epochs = 3"):
        create_schedule(optim_config(schedule_epochs=3, schedule_start=2), 20, 10)
