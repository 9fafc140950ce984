"""Every program that writes is killed at random moments, and meets a full disk: the old result or the new one is whole.

``MINDSEG_KILLS`` is the number of moments for each program (3).
"""
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindseg.checkpoint import read_checkpoint
from mindseg.data.datasets import CITYSCAPES
from mindseg.data.sources import RecordSource
from mindseg.files import file_sha256
from mindseg.manifest import load_manifest
from mindseg.outputs import RECORD_NAME
from tests.support.data import make_cityscapes, write_image
from tests.support.evaluation import make_checkpoint, street_config, write_scores
from tests.support.kills import Writer, fill_and_repeat, kill_and_repeat, python, watch
from tests.support.runner import TinyModel, build_folder, make_images
from tests.support.train import assert_same_state, make_splits, only_run, run_to_end, train_command

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("MINDSEG_KILLS", "3"))
VERSIONS = {"old": 1, "new": 2}
COUNT = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two versions of everything that the programs read, under the same names."""
    root = tmp_path_factory.mktemp("inputs")
    for version, seed in VERSIONS.items():
        rng = np.random.default_rng(seed)
        names = make_cityscapes(root / version / "data", rng, COUNT, "val", (64, 96))
        make_images(root / version / "photos", COUNT, seed)
        TinyModel(root / version / "model", seed=3, output_type="argmax")
        make_cityscapes(root / version / "scored", rng, COUNT, "val", (24, 40))
        for name in names:
            write_image(root / version / "scored" / "gtFine" / "val" / name.split("_")[0]
                        / f"{name}_gtFine_labelIds.png", rng.integers(0, 5, (24, 40), np.uint8))
            write_image(root / version / "results" / f"{name}.png", rng.integers(0, 5, (24, 40), np.uint8))
        ckpt = root / version / "ckpt" / "best.ckpt"
        make_checkpoint(ckpt, street_config(root / version / "data"), seed)
        write_scores(ckpt.with_name("eval.json"), ckpt, CITYSCAPES.classes)
    return root


def only_ours(folder: Path, new: Path) -> None:
    """Assert that a folder has the files of an undisturbed one, without leftovers."""
    def names(place: Path) -> list[str]:
        return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())

    assert names(folder) == names(new)


def same_files(folder: Path, new: Path, *volatile: str) -> None:
    """Assert that a folder equals an undisturbed one, but for files that hold times."""
    only_ours(folder, new)
    for path in new.rglob("*"):
        if path.is_file() and path.name not in (*volatile, RECORD_NAME):
            assert (folder / path.relative_to(new)).read_bytes() == path.read_bytes(), path.name


def old_or_new_files(folder: Path, old: Path, new: Path, pattern: str) -> None:
    """Assert that every file of a pattern is the old or the new one, and ``summary.json`` whole if it is there."""
    for path in folder.rglob(pattern):
        if path.name.startswith("."):       # a temporary file, which the next run removes
            continue
        place = path.relative_to(folder)
        choices = [(version / place).read_bytes() for version in (old, new) if (version / place).exists()]
        assert path.read_bytes() in choices, place
    if (folder / "summary.json").exists():
        json.loads((folder / "summary.json").read_text())


def models(folder: Path) -> list[tuple[str, str]]:
    """The files of a manifest that belong to it."""
    manifest = load_manifest(folder)
    for entry in manifest.models:
        assert file_sha256(folder / entry.file) == entry.sha256, entry.file
    return [(entry.file, entry.sha256) for entry in manifest.models]


def check_models(folder: Path, old: Path, new: Path) -> None:
    """Assert that manifest and models belong together, and are the old or the new ones."""
    assert load_manifest(folder).source in (load_manifest(old).source, load_manifest(new).source)
    assert {name for name, _ in models(folder)} == {name for name, _ in models(new)}


def same_models(folder: Path, new: Path) -> None:
    """Assert that a folder holds the new models only."""
    only_ours(folder, new)
    models(folder)
    assert load_manifest(folder).source == load_manifest(new).source


def rows(folder: Path) -> str:
    """Digest of a MindRecord set, read as training does."""
    source, digest = RecordSource(folder / "set.mindrecord"), hashlib.sha256()
    for row in source.rows(range(len(source))).create_dict_iterator(num_epochs=1, output_numpy=True):
        digest.update(str(row["file_name"]).encode() + row["data"].tobytes() + row["label"].tobytes())
    return digest.hexdigest()


def same_rows(folder: Path, new: Path) -> None:
    """Assert that a folder holds the new set only."""
    only_ours(folder, new)
    assert rows(folder) == rows(new)


def same_scores(folder: Path, new: Path) -> None:
    """Assert that ``eval.json`` has the scores of an undisturbed run."""
    only_ours(folder, new)
    first, second = (json.loads((place / "eval.json").read_text()) for place in (folder, new))
    assert first["confusion"] == second["confusion"]


def check_scores(folder: Path, old: Path, new: Path) -> None:
    """Assert that ``eval.json`` is the old or the new one."""
    found = json.loads((folder / "eval.json").read_text())["confusion"]
    assert found in [json.loads((place / "eval.json").read_text())["confusion"] for place in (old, new)]


def check_published(folder: Path, *_: Path) -> None:
    """Assert that every published file has the digest of its name, and every row of the table a file."""
    for path in folder.glob("[!.]*.ckpt"):      # a leftover is hidden
        assert path.stem.endswith(file_sha256(path)[:8])
        read_checkpoint(path)
    for line in (folder / "README.md").read_text().splitlines():
        if line.startswith("| `"):
            assert (folder / line.split("`")[1]).is_file()


def same_published(folder: Path, new: Path) -> None:
    """Assert that the table of an undisturbed call is there, without leftovers."""
    check_published(folder)
    assert not [path.name for path in folder.glob(".*")]
    rows = [[line for line in (place / "README.md").read_text().splitlines() if line.startswith("| `")]
            for place in (folder, new)]
    assert len(rows[0]) == len(rows[1]) == 1


def writers(root: Path) -> dict[str, Writer]:
    """Every program that writes, by name."""
    places = {"model": "model/deploy.yaml", "data": "data", "photos": "photos", "results": "results",
              "ckpt": "ckpt/best.ckpt", "scores": "ckpt/eval.json", "scored": "scored"}

    def words(*arguments: object) -> Callable[[str, Path], list]:
        def command(version: str, output: Path) -> list:
            filled = {key: root / version / value for key, value in places.items()}
            return [str(word).format(**filled, seed=VERSIONS[version], output=output) for word in arguments]
        return command

    def mindseg(text: str) -> Callable[[str, Path], list]:
        return words(*python("-m", "mindseg"), *text.split())

    def same_but_summary(folder: Path, new: Path) -> None:
        same_files(folder, new, "summary.json")

    return {
        "pack": Writer(
            mindseg("pack --dataset cityscapes --root {data} --split val --overwrite "
                    "--output {output}/set.mindrecord"),
            lambda folder, old, new: _among(rows(folder), rows(old), rows(new)), same_rows),
        "export": Writer(
            words(*python("-m", "tests.support.kill_worker", "export", "{seed}", "{output}")), check_models,
            same_models),
        "quantize": Writer(
            mindseg("quantize --manifest {model} --dataset {data} --split val --num 2 --output {output}"),
            check_models, same_models),
        "predict": Writer(
            mindseg("predict --manifest {model} --input {photos} --output {output} --save ids overlay"),
            lambda *folders: old_or_new_files(*folders, "*_*.png"), same_but_summary),
        "preprocess": Writer(
            mindseg("preprocess --manifest {model} --dataset {data} --output {output}"),
            lambda *folders: old_or_new_files(*folders, "*.bin"), same_files),
        "runner": Writer(
            words(build_folder() / "out" / "segment", "run", "--manifest", "{model}", "--input", "{photos}",
                  "--output", "{output}", "--backend", "openvino"),
            lambda *folders: old_or_new_files(*folders, "*.png"), same_but_summary),
        "postprocess": Writer(
            mindseg("postprocess --manifest {model} --dataset {scored} --result {results} --output {output}"),
            check_scores, same_scores),
        "publish": Writer(
            mindseg("publish --config fast_scnn_cityscapes --ckpt_path {ckpt} --eval {scores} --dataset streets "
                    "--data all --domain streets --terms none --output {output}"),
            check_published, same_published),
    }


def _among(found: object, *choices: object) -> None:
    assert found in choices


NAMES = ("pack", "export", "quantize", "predict", "preprocess", "runner", "postprocess", "publish")


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random_moments(name, inputs, tmp_path, rng):
    kill_and_repeat(writers(inputs)[name], tmp_path, rng, KILLS)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(name, inputs, tmp_path, small_disk):
    fill_and_repeat(writers(inputs)[name], tmp_path, small_disk(64), KILLS)


def test_training_killed_at_random_moments(tmp_path, rng):
    """Killed ``KILLS`` times, each time anywhere between start and end; the resumed run equals one left alone."""
    data = make_splits(tmp_path)
    fast = "configs/fast_scnn/fast_scnn_cityscapes.yaml"
    seconds, _ = watch(train_command(fast, data, tmp_path / "whole"), tmp_path / "nowhere")
    for number in range(KILLS):
        output = tmp_path / f"killed{number}"
        watch(train_command(fast, data, output, "--resume", "auto"), output, seconds=rng.uniform(0.3, 1) * seconds)
        for path in output.glob("*/*/ckpt/[!.]*.ckpt"):
            read_checkpoint(path)
        run_to_end(train_command(fast, data, output, "--resume", "auto"))
        (last,) = (path for path in output.glob("*/*/ckpt/last.ckpt"))
        assert_same_state(only_run(tmp_path / "whole") / "ckpt" / "last.ckpt", last)
        assert not list(last.parent.glob(".*"))
