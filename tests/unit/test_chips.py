"""Facts about Ascend chips and what follows from them, on machines without one."""
import json
import os
import types

import pytest

from mindseg import chips, runtime
from mindseg.chips import CHIPS, check_atc_precision, check_device, check_lite_precision, find_chip, installed_chip
from mindseg.config import load_config
from mindseg.errors import UserError
from tests.support import ROOT

NPU_SMI = """#!/bin/bash
echo '| 0       NAME     | OK              | 12.8        45 |'
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(chip, devices)`` makes a machine with Ascend devices; ``None`` as chip: npu-smi is not there."""
    for name in list(os.environ):
        if name.startswith(("MS_", "OMPI_", "RANK_", "DEVICE_", "ASCEND_")):
            monkeypatch.delenv(name)

    def make(chip, devices=1):
        (tmp_path / "dev").mkdir()
        for name in ["davinci_manager", *(f"davinci{i}" for i in range(devices))]:
            (tmp_path / "dev" / name).touch()
        (tmp_path / "bin").mkdir()
        if chip:
            (tmp_path / "bin" / "npu-smi").write_text(NPU_SMI.replace("NAME", chip))
            (tmp_path / "bin" / "npu-smi").chmod(0o755)
        monkeypatch.setattr(chips, "DEVICES", tmp_path / "dev")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    chips.soc_from_npu_smi.cache_clear()
    yield make
    chips.soc_from_npu_smi.cache_clear()


@pytest.mark.parametrize(("name", "chip"), [
    ("Ascend910", "910A"), ("910A", "910A"), ("Ascend910B", "910A"), ("Ascend910ProB", "910A"),
    ("ascend910premiuma", "910A"), ("Ascend910B1", "A2"), ("910B2C", "A2"), ("910B4-1", "A2"), ("Ascend910_9391", "A3"),
    ("910_93", "A3"), ("310", "310"), ("Ascend310P3", "310P"), ("310P3vir04", "310P"), ("Ascend310B4", "310B"),
    ("Ascend950", None), ("Ascend310P3; rm", None), ("", None), ("A100", None)])
def test_names_of_cann(name, chip):
    found = find_chip(name)
    assert (found.name if found else None) == chip


def test_every_fact_has_a_source():
    for chip in CHIPS:
        assert len(chip.facts()) == 8
        for fact in chip.facts().values():
            assert fact.confidence in ("certain", "likely", "guess")
            assert len(fact.source) > 20


def test_the_page_has_every_fact():
    def word(value):
        texts = {None: "MindSpore's own", True: "yes", False: "no"}
        return ", ".join(value) if isinstance(value, tuple) else texts.get(value, value)

    page = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert [chip.name for chip in CHIPS] in rows
    for key in CHIPS[0].facts():
        facts = [chip.facts()[key] for chip in CHIPS]
        assert [f"{word(fact.value)} ({fact.confidence})" for fact in facts] in rows, key


def test_a_chip_without_float32_neither_defaults_to_it_nor_accepts_it():
    for chip in CHIPS:
        assert (chip.convolution.value == "float16") == (not chip.float32.value)
        assert ("origin" in chip.atc_precisions.value) == chip.float32.value
        assert ("enforce_fp32" in chip.lite_precisions.value) == chip.float32.value
        assert chip.atc_precisions.value[0] == "fp16"       # ATC's default
        assert chip.jit_level.value is None or chip.trains.value


@pytest.mark.parametrize(("check", "soc", "mode", "message"), [
    (check_atc_precision, "Ascend310P3", "origin",
     r"--precision_mode_v2=origin: not for Ascend310P3, whose convolutions know float16 only; use one of fp16, mixed"),
    (check_atc_precision, "310", "mixed_bfloat16", "not for 310, whose"),
    (check_atc_precision, "Ascend910B2", "fp61", "not for Ascend910B2; use one of fp16"),
    (check_lite_precision, "310P3", "enforce_fp32", "--precision enforce_fp32: not for 310P3, whose convolutions")])
def test_a_precision_of_another_chip_is_refused(check, soc, mode, message):
    with pytest.raises(UserError, match=message):
        check(soc, mode)


@pytest.mark.parametrize(("check", "soc", "mode"), [
    (check_atc_precision, "310P3", "cube_fp16in_fp32out"), (check_atc_precision, "Ascend910B3", "origin"),
    (check_atc_precision, "Ascend950", "origin"), (check_lite_precision, "", "enforce_fp32"),
    (check_lite_precision, "910b", "enforce_fp32"), (check_lite_precision, "310P3", "enforce_fp16")])
def test_a_precision_of_the_chip_or_of_an_unknown_one_is_left_alone(check, soc, mode):
    check(soc, mode)


def test_lite_converts_for_the_chip_of_the_machine(machine):
    machine("310P3")
    with pytest.raises(UserError, match="--precision enforce_fp32: not for 310P, whose convolutions"):
        check_lite_precision("", "enforce_fp32")
    check_lite_precision("910b", "enforce_fp32")


@pytest.mark.parametrize(("chip", "name"), [("310P3", "310P"), ("910B2", "A2"), ("910A", "910A"), ("Ascend", None),
                                            (None, None)])
def test_the_chip_of_the_machine(machine, chip, name):
    machine(chip)
    found = installed_chip()
    assert (found.name if found else None) == name


def test_no_driver_no_chip(tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "DEVICES", tmp_path)
    assert installed_chip() is None
    assert runtime.choose_device("auto", training=True) == "CPU"


@pytest.mark.parametrize(("chip", "training", "device"), [
    ("910B2", True, "Ascend"), ("910A", True, "Ascend"), ("910A", False, "Ascend"), ("310P3", False, "CPU"),
    ("310", False, "CPU"), (None, True, "Ascend")])
def test_auto(machine, chip, training, device):
    machine(chip)
    assert runtime.choose_device("auto", training) == device


@pytest.mark.parametrize("chip", ["310", "310P3", "310B4"])
def test_training_on_a_chip_for_inference_is_one_line(machine, chip):
    machine(chip)
    with pytest.raises(UserError, match=r"the Ascend 310\w? of this machine cannot train; train on an Ascend 910, or"):
        runtime.setup_runtime(load_config("fast_scnn_camvid").runtime, training=True)


def test_a_device_that_is_not_there(machine, monkeypatch):
    machine("910B2", devices=2)
    check_device(1)
    with pytest.raises(UserError, match=r"runtime\.device_id = 2: no such Ascend device, this machine has davinci0, "
                                        r"davinci1; the first has the number 0"):
        check_device(2)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    check_device(0)
    with pytest.raises(UserError, match="ASCEND_RT_VISIBLE_DEVICES=1 shows 1"):
        check_device(1)


def test_a_driver_without_devices(machine):
    machine(None, devices=0)
    with pytest.raises(UserError, match="no Ascend device on this machine"):
        check_device(0)


class FakeMindSpore:
    """Notes what is set."""

    def __init__(self, version="2.10.0"):
        self.__version__ = version
        self.calls = []
        precision = types.SimpleNamespace(conv_allow_hf32=lambda value: self.calls.append(("conv", value)),
                                          matmul_allow_hf32=lambda value: self.calls.append(("matmul", value)))
        self.device_context = types.SimpleNamespace(ascend=types.SimpleNamespace(op_precision=precision))

    def set_device(self, *words):
        self.calls.append(words)

    def set_deterministic(self, value):
        self.calls.append(("deterministic", value))


@pytest.fixture
def fake(monkeypatch):
    """MindSpore and compat's settings noted instead of made."""
    made = FakeMindSpore()
    monkeypatch.setattr(runtime, "ms", made)
    monkeypatch.setattr(runtime, "set_mode", lambda mode: made.calls.append(("mode", mode)))
    monkeypatch.setattr(runtime, "set_jit_level", lambda level: made.calls.append(("jit_level", level)))
    monkeypatch.setattr(runtime, "set_seed", lambda seed: None)
    monkeypatch.setattr(runtime, "tune_cpu", lambda count: None)
    return made


@pytest.mark.parametrize(("chip", "changes", "expected"), [
    ("910B2", [], [("jit_level", "O1")]), ("910_9391", [], [("jit_level", "O1")]), ("910A", [], []), (None, [], []),
    ("910A", ["runtime.jit_level=O2"], [("jit_level", "O2")]),
    ("910B2", ["runtime.jit_level=O0", "runtime.hf32=false", "runtime.deterministic=true"],
     [("jit_level", "O0"), ("conv", False), ("matmul", False), ("deterministic", True)])])
def test_settings_of_ascend(machine, fake, chip, changes, expected):
    machine(chip, devices=4)
    cfg = load_config("fast_scnn_camvid", ["runtime.device_id=3", *changes])
    found = runtime.setup_runtime(cfg.runtime, training=True)
    assert (found.device_target, found.device_id) == ("Ascend", 3)
    assert fake.calls == [("mode", "graph"), ("Ascend", 3), *expected]


def test_the_cpu_knows_none_of_them(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "DEVICES", tmp_path)
    runtime.setup_runtime(load_config("fast_scnn_camvid", ["runtime.jit_level=O2", "runtime.hf32=true"]).runtime)
    assert fake.calls == [("mode", "graph"), ("CPU",)]


@pytest.mark.parametrize(("variables", "device"), [({"RANK_ID": "9"}, 1), ({"RANK_ID": "9", "DEVICE_ID": "3"}, 3)])
def test_each_rank_of_a_rank_table_has_its_device(machine, fake, tmp_path, monkeypatch, variables, device):
    machine("910A", devices=8)
    table = {"server_list": [{"device": [{"device_id": str(i), "rank_id": str(8 * host + i)} for i in range(8)]}
                             for host in range(2)]}
    (tmp_path / "table.json").write_text(json.dumps(table))
    fake.__version__ = "2.7.0"
    for name, value in {"RANK_TABLE_FILE": str(tmp_path / "table.json"), "RANK_SIZE": "16", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "_join", lambda: (9, 16))
    found = runtime.setup_runtime(load_config("fast_scnn_camvid").runtime, training=True)
    assert (found.device_id, found.rank, found.size) == (device, 9, 16)
    assert ("Ascend", device) in fake.calls


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"server_list": [{"device": [{"rank_id": "0"}]}]}',
                                  '{"server_list": [{"device": [{"rank_id": "1", "device_id": "0"}]}]}', "[" * 9999])
def test_a_rank_table_without_the_rank(machine, fake, tmp_path, monkeypatch, text):
    machine("910A", devices=8)
    (tmp_path / "table.json").write_text(text)
    fake.__version__ = "2.7.0"
    for name, value in {"RANK_TABLE_FILE": str(tmp_path / "table.json"), "RANK_SIZE": "8", "RANK_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"table\.json: names no device for RANK_ID .0. .*set DEVICE_ID"):
        runtime.setup_runtime(load_config("fast_scnn_camvid").runtime, training=True)
