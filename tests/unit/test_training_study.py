"""tools/training_study.py: the length of its runs and its table. tests/system/test_training_study.py runs it."""
from argparse import Namespace

import pytest

from mindseg.config import load_config
from mindseg.errors import UserError
from tools import training_study


@pytest.mark.parametrize(("minutes", "epochs"), [(10, 14), (0.1, 1)])
def test_a_run_has_the_epochs_that_fit_its_processor_time(minutes, epochs, tmp_path, monkeypatch):
    # 10 minutes less 30 s of start, 20 steps an epoch of 2 s: 14.25 epochs.
    monkeypatch.setattr(training_study, "measure", lambda *_: (30.0, 2.0, 20))
    state = training_study.plan("fast_scnn_camvid", [], minutes, tmp_path)
    assert (state.epochs, state.steps, state.step_seconds) == (epochs, 20 * epochs, 2.0)


def test_growing_crops_are_measured_at_each_size(tmp_path, monkeypatch):
    """Half of the epochs at a quarter of the cost: the mean of 2 s and 0.5 s."""
    def measure(config, values, folder):
        assert values[-2] == "data.crop_schedule=null"
        return 30.0, {"data.crop_size=[180, 240]": 0.5, "data.crop_size=[360, 480]": 2.0}[values[-1]], 20

    monkeypatch.setattr(training_study, "measure", measure)
    state = training_study.plan("fast_scnn_camvid", training_study.OPTIONS["growing_crops"], 10, tmp_path)
    assert (state.epochs, state.step_seconds) == (round(570 / 25), 1.25)


@pytest.mark.parametrize("name", training_study.OPTIONS)
def test_every_set_of_options_is_legal(name, tmp_path):
    args = Namespace(root=tmp_path, set=[], warm_start=tmp_path / "street's.ckpt", teacher=tmp_path / "a, {b}.ckpt")
    cfg = load_config("fast_scnn_camvid", training_study.changes(args, name, 3))
    assert (cfg.runtime.threads, cfg.runtime.seed, cfg.data.root) == (1, 3, str(tmp_path))
    assert cfg.train.pretrained == (str(args.warm_start) if name == "warm_start" else None)
    assert (cfg.loss.distill or {}).get("ckpt") == (str(args.teacher) if name == "distillation" else None)


@pytest.mark.parametrize(("name", "word"), [("warm_start", "--warm_start CKPT"), ("distillation", "--teacher CKPT")])
def test_a_set_without_its_checkpoint_is_refused(name, word, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["training_study.py", "--output", str(tmp_path), "--options", "baseline", name])
    with pytest.raises(UserError, match=word):
        training_study.main()


def result(options: str, seed: int, miou: float, pole: float) -> dict:
    return {"options": options, "seed": seed, "epochs": 20, "cpu_minutes": 30.04, "wall_minutes": 31.0, "miou": miou,
            "best_miou": miou + 0.01, "iou": {"road": 0.9, "pole": pole}}


def test_the_table_has_means_and_standard_deviations():
    text = training_study.table([result("baseline", 1, 0.50, 0.1), result("baseline", 2, 0.52, 0.3),
                                 result("ema", 1, 0.6, 0.2)])
    head, _, baseline, ema = text.splitlines()
    assert head.endswith("| mIoU, last | mIoU, best | road | pole |")
    # The deviation of two values is their distance by the root of 2.
    assert baseline == ("| baseline | 2 | 20 ± 0 | 30.0 ± 0.0 | 31.0 ± 0.0 | 51.00 ± 1.41 | 52.00 ± 1.41 | "
                        "90.0 ± 0.0 | 20.0 ± 14.1 |")
    assert ema == "| ema | 1 | 20 | 30.0 | 31.0 | 60.00 | 61.00 | 90.0 | 20.0 |"
    assert training_study.table([]) == "no run has finished"
