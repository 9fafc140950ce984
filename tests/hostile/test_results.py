"""postprocess: results of another run, an unfinished one or one with failures are never scored."""
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindseg.commands import postprocess as postprocess_command
from mindseg.commands.preprocess import find_samples, preprocess
from mindseg.files import file_sha256
from mindseg.inference.results import Results
from mindseg.manifest import load_manifest, save_manifest
from tests.support.data import make_camvid, write_image
from tests.support.deploy import make_manifest
from tests.support.hostile import check_refused, files_below

COUNT = 4


@pytest.fixture
def run(tmp_path):
    """Manifest, samples and result folder of a finished run of the runner."""
    make_camvid(tmp_path / "data", np.random.default_rng(1), COUNT, "val", classes=2, prefix="frame.")
    (tmp_path / "export").mkdir()
    manifest = load_manifest(save_manifest(make_manifest(tmp_path / "export")))
    samples = find_samples(manifest, tmp_path / "data")
    folder = tmp_path / "result"
    rng = np.random.default_rng(2)
    for sample in samples:
        write_image(folder / f"{sample.name}.png", rng.integers(0, 2, manifest.input.size, np.uint8))
    names = "".join(f"{sample.name}\n" for sample in samples).encode()
    (folder / "inputs.txt").write_bytes(names)
    summary = {"program": "segment", "status": "finished", "manifest_sha256": file_sha256(manifest.path),
               "model_sha256": manifest.models[0].sha256, "inputs_sha256": hashlib.sha256(names).hexdigest(),
               "images_expected": COUNT, "failures": 0, "failed": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    return manifest, samples, folder


def change(folder: Path, **values: object) -> None:
    """Change keys of ``summary.json``."""
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def postprocess(monkeypatch, run, tmp_path, *words):
    """Run the command and return ``eval.json``."""
    manifest, _, folder = run
    monkeypatch.setattr(sys, "argv", list(map(str, [
        "postprocess.py", "--manifest", manifest.path, "--result", folder, "--dataset", tmp_path / "data", *words])))
    postprocess_command.main()
    return json.loads((folder / "eval.json").read_text())


def test_a_finished_run_is_verified(run, tmp_path, monkeypatch, capsys):
    record = postprocess(monkeypatch, run, tmp_path)
    assert (record["identity"], record["images"]) == ("verified", COUNT)
    assert record["runner"]["model_sha256"] == run[0].models[0].sha256


@pytest.mark.parametrize(("values", "words"), [
    ({"status": "running"}, ("did not finish", "'running'")),
    ({"status": "interrupted"}, ("did not finish", "'interrupted'")),
    ({"status": None}, ("did not finish",)),
    ({"status": {"a": "b" * 5000}}, ("did not finish",)),
    ({"manifest_sha256": "0" * 64}, ("results of another manifest than", "deploy.yaml")),
    ({"manifest_sha256": None}, ("results of another manifest than",)),
    ({"model_sha256": "f" * 64}, ("results of another model than",)),
    ({"model_sha256": ["x"]}, ("results of another model than",)),
    ({"inputs_sha256": "0" * 64}, ("inputs.txt", "not the list of this run's inputs"))])
def test_runs_that_are_not_scored(run, tmp_path, monkeypatch, values, words):
    change(run[2], **values)
    before = files_below(tmp_path)
    check_refused(lambda: postprocess(monkeypatch, run, tmp_path), run[2], "run the inference again", *words)
    check_refused(lambda: postprocess(monkeypatch, run, tmp_path, "--allow_failed"), *words)
    assert files_below(tmp_path) == before


def test_a_manifest_that_changed_since_is_another_one(run, tmp_path, monkeypatch):
    manifest = run[0]
    save_manifest(replace(manifest, input=replace(manifest.input, mean=(0.0, 0.0, 1.0))))
    check_refused(lambda: postprocess(monkeypatch, run, tmp_path), "results of another manifest than")


def test_an_image_that_the_run_did_not_have(run, tmp_path, monkeypatch):
    """Its result may lie there from an earlier run."""
    _manifest, samples, folder = run
    names = "".join(f"{sample.name}\n" for sample in samples[1:]).encode()
    (folder / "inputs.txt").write_bytes(names)
    change(folder, inputs_sha256=hashlib.sha256(names).hexdigest())
    check_refused(lambda: postprocess(monkeypatch, run, tmp_path), folder, f"'{samples[0].name}' was not among")
    chosen = tmp_path / "part.txt"
    chosen.write_text("".join(f"{sample.name}\n" for sample in samples[1:]))
    assert postprocess(monkeypatch, run, tmp_path, "--sort_log", chosen)["images"] == COUNT - 1


def test_failures_are_scored_only_if_allowed(run, tmp_path, monkeypatch, capsys):
    _, samples, folder = run
    lost = samples[2].name
    change(folder, failures=1, failed=[{"file": f"/in/{lost}.png", "error": f"/in/{lost}.png: cut off"}])
    check_refused(lambda: postprocess(monkeypatch, run, tmp_path), folder, "failed on 1 of 4 images", "cut off",
                  "--allow_failed")
    assert postprocess(monkeypatch, run, tmp_path, "--allow_failed")["images"] == COUNT - 1
    assert "left out: 1 of 4 images (25.0 %)" in capsys.readouterr().out


def test_results_without_identity_are_scored_with_one_warning(run, tmp_path, monkeypatch, caplog):
    (run[2] / "summary.json").unlink()
    record = postprocess(monkeypatch, run, tmp_path)
    assert record["identity"] == "unverified"
    assert len(caplog.records) == 1
    assert "nothing says which model" in caplog.text


def test_a_stale_result_of_another_kind_is_not_taken(run, tmp_path, monkeypatch):
    """A verified run wrote NAME.png; a NAME_0.bin beside it is of another program."""
    _manifest, samples, folder = run
    (folder / f"{samples[0].name}.png").rename(folder / f"{samples[0].name}_0.png")
    check_refused(lambda: postprocess(monkeypatch, run, tmp_path), f"{samples[0].name}.png")


SUMMARIES = [b"", b"[", b"\xff\xfe", b"[" * 3000, b'{"program": "segment"', b"nul\0l"]


@pytest.mark.parametrize("content", SUMMARIES, ids=range(len(SUMMARIES)))
@pytest.mark.parametrize("name", ["result/summary.json", "result_summary.json"])
def test_hostile_summaries(run, tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    check_refused(lambda: Results(run[2], run[0]), Path(name).name, "run the inference again")


@pytest.mark.parametrize("content", [{"filesinfo": 3}, {"filesinfo": {"0": []}}, {"filesinfo": {"0": {
    "infiles": [1], "outfiles": [2]}}}, {"filesinfo": {"0": {"infiles": {"a": 1}, "outfiles": "x"}}}])
def test_hostile_file_lists_of_ais_bench(run, tmp_path, content):
    (run[2] / "summary.json").unlink()
    (tmp_path / "result_summary.json").write_text(json.dumps(content))
    check_refused(lambda: Results(run[2], run[0]), "result_summary.json", "filesinfo")


def test_failures_of_any_form_are_read(run):
    for failed in (3, {}, [1, None, "x"], [{}], [{"file": 5, "error": []}]):
        change(run[2], failed=failed)
        assert len(Results(run[2], run[0]).select(run[1])) == COUNT


def test_preprocess_keeps_the_users_files(run, tmp_path):
    manifest, samples, _ = run
    bins = tmp_path / "bins"
    bins.mkdir()
    (bins / f"{samples[1].name}.bin").write_bytes(b"precious")
    check_refused(lambda: preprocess(manifest, samples, bins), f"{samples[1].name}.bin", "--overwrite")
    assert files_below(bins) == {f"{samples[1].name}.bin": b"precious"}
    preprocess(manifest, samples, bins, overwrite=True)
    (bins / "mine.bin").write_bytes(b"precious")
    preprocess(manifest, samples[:2], bins)
    assert sorted(path.name for path in bins.glob("*.bin")) == [f"{samples[0].name}.bin", f"{samples[1].name}.bin",
                                                                "mine.bin"]
