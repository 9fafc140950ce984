"""Hostile manifests: texts, files and models that do not fit, in process; one of each kind through a program."""
import os
import subprocess

import numpy as np
import pytest
import yaml

from mindseg.inference.exported import open_exported
from mindseg.manifest import ManifestError, load_manifest
from tests.support import ROOT
from tests.support.hostile import EDITS, check_program_refuses, check_refused, mutation_count, run_program
from tests.support.runner import TinyModel, build_folder

SOUND = (ROOT / "tests" / "manifests" / "accepted" / "argmax.yaml").read_text(encoding="utf-8").partition("\n")[2]
BOMB = "".join(f"  {name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
               for before, name in zip("abcdefgh", "bcdefghi", strict=True))
# Old text, new text; the rest of the manifest is sound.
EDITED = {
    "alias bomb": ("versions: {project: 0.1.0}", "versions:\n  a: &a [x]\n" + BOMB),
    "anchor that holds itself": ("{project: 0.1.0}", "&a {project: *a}"),
    "anchor": ("name: image", "name: &a image"),
    "tag": ("name: image", "name: !!str image"),
    "python tag": ("name: image", "name: !!python/name:os.system"),
    "empty tag": ("name: image", "name: ! image"),
    "5,000 digits": ("[124, 116, 104]", "[124, 116, " + "9" * 5000 + "]"),
    "5,000 digits in a mean": ("[123.675,", "[" + "9" * 5000 + ","),
    "3,000 brackets": ("{project: 0.1.0}", "{project: " + "[" * 3000 + "]" * 3000 + "}"),
    "100,000 values": ("{project: 0.1.0}", "{project: [" + "a," * 100000 + "]}"),
    "over 1 MiB": ("name: image", "name: image #" + "x" * (1 << 20)),
    "NaN mean": ("[123.675,", "[.nan,"),
    "NaN mean as a word": ("[123.675,", "[NaN,"),
    "infinite mean": ("[123.675,", "[.inf,"),
    "mean that overflows": ("[123.675,", "[1e400,"),
    "std that underflows": ("[58.395,", "[1e-400,"),
    "NUL": ("name: image", "name: ima\0ge"),
    "tab": ("name: image", "name:\timage"),
    "carriage return": ("name: image", "name: ima\rge"),
    "byte order mark": ("name: image", "name: \ufeffimage"),
    "no character": ("name: image", "name: image\uffff"),
    "line separator": ("name: image", "name: ima\u2028ge"),
    "surrogate": ("name: image", 'name: "\\ud800"'),
    "escape out of range": ("name: image", 'name: "\\UFFFFFFFF"'),
    "line break in a name": ("name: image", 'name: "ima\\nge"'),
    "date as batch": ("batch: 1,", "batch: 2024-13-45,"),
    "fraction as batch": ("batch: 1,", "batch: 1.0,"),
    "huge batch": ("batch: 1,", "batch: 999999,"),
    "other batch": ("shape: [1, 48, 64]", "shape: [2, 48, 64]"),
    "other size": ("shape: [1, 48, 64]", "shape: [1, 64, 48]"),
    "huge side": ("shape: [1, 3, 48, 64]", "shape: [1, 3, 48, 9999999]"),
    "key twice where nobody reads": ("{project: 0.1.0}", "{a: 1, a: 2}"),
    "key twice deep down": ("{project: 0.1.0}", "{a: [{b: 1, b: 2}]}"),
    "list as key": ("{project: 0.1.0}", "{[a]: 1}"),
    "empty key": ("{project: 0.1.0}", "{: 1}"),
    "two documents": ("versions:", "---\nversions:"),
    "text behind": ("format: onnx", "format: onnx}\n'open: {"),
    "bracket at the beginning of a line": ("dataset: {", "dataset:\n{"),
    "bracket behind a colon": ("source: {", "source: {a:[1], "),
    "absolute file": ("file: net.onnx", "file: /etc/passwd"),
    "file above": ("file: net.onnx", "file: ../net.onnx"),
    "file with a drive": ("file: net.onnx", "file: 'C:net.onnx'"),
    "file with a backslash": ("file: net.onnx", "file: '..\\net.onnx'"),
    "file with a control character": ("file: net.onnx", 'file: "net\\x7f.onnx"'),
    "file of a dot": ("file: net.onnx", "file: ./net.onnx"),
    "fusion switch above": ("models:", "ascend: {fusion_switch: ../../x}\nmodels:"),
    "absolute fusion switch": ("models:", "ascend: {fusion_switch: /etc/passwd}\nmodels:"),
}


def edited(case: str) -> str:
    old, new = EDITED[case]
    assert SOUND.count(old) == 1 or case == "two documents", case
    return SOUND.replace(old, new)


@pytest.mark.parametrize("case", EDITED)
def test_a_text_is_refused_in_one_line(tmp_path, case):
    path = tmp_path / "deploy.yaml"
    path.write_text(edited(case), encoding="utf-8", newline="")
    message = check_refused(lambda: load_manifest(tmp_path), f"{path}: ")
    assert message.startswith(f"{path}: ")


def test_the_manifest_that_is_edited_is_sound(tmp_path):
    (tmp_path / "deploy.yaml").write_text(SOUND, encoding="utf-8")
    assert load_manifest(tmp_path).models


def test_a_pipe_and_a_device_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "deploy.yaml")
    check_refused(lambda: load_manifest(tmp_path), "deploy.yaml", "a folder, a pipe or a device")
    check_refused(lambda: load_manifest("/dev/zero"), "/dev/zero", "a folder, a pipe or a device")


# Manifests of another model than the file: section, key, value.
OTHER_MODEL = [("input", "name", "picture"), ("output", "name", "ids"), ("input", "shape", [1, 3, 24, 48]),
               ("input", "shape", [4, 3, 24, 40]), ("output", "type", "logits")]


@pytest.mark.parametrize(("section", "key", "value"), OTHER_MODEL)
def test_a_model_that_is_not_the_manifests_is_refused_when_it_is_opened(tmp_path, section, key, value):
    model = TinyModel(tmp_path, 1)
    assert open_exported(tmp_path).infer(np.zeros((1, 24, 40, 3), np.uint8)).shape == (1, 24, 40)
    tree = model.manifest
    tree[section][key] = value
    if key == "shape":
        tree["input"]["resize"]["size"] = value[2:]
        tree["output"]["shape"] = [value[0], *value[2:]]
        tree["models"][0]["batch"] = value[0]
    if key == "type":
        tree["output"].update(dtype="float32", shape=[1, 5, 24, 40])
    model.save()
    check_refused(lambda: open_exported(tmp_path), tmp_path / "deploy.yaml", "tiny.onnx", "another model")


def test_files_that_wait_elsewhere_are_not_moved(tmp_path):
    """A link named like the folder of an interrupted export leads to files of somebody else."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("x")
    model = TinyModel(tmp_path / "export", 1)
    (model.folder / ".deploy.yaml.ready").symlink_to(tmp_path / "own")
    load_manifest(model.folder)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["letter.txt"]


def test_both_readers_accept_the_same_mutated_texts(tmp_path, rng):
    """Python decides first; the C++ reader gets the texts sorted into two folders and names those it disagrees on."""
    block = yaml.safe_dump(yaml.safe_load(SOUND), sort_keys=False)
    count = mutation_count(1200, 36000)
    kinds = {"accepted": 0, "refused": 0}
    for kind in kinds:
        (tmp_path / kind).mkdir()
    for i in range(count):
        text = block if i % 2 else SOUND
        for _ in range(rng.choice([1, 1, 1, 2])):
            place, length = int(rng.integers(len(text))), int(rng.choice([0, 0, 1, 1, 2, 5]))
            text = text[:place] + EDITS[int(rng.integers(len(EDITS)))] + text[place + length:]
        path = tmp_path / f"{i}.yaml"
        path.write_bytes(f"# :\n{text}".encode())
        try:
            kind = "accepted" if load_manifest(path) else ""
        except ManifestError:
            kind = "refused"
        kinds[kind] += 1
        path.rename(tmp_path / kind / path.name)
    assert min(kinds.values()) > count / 50, kinds
    done = subprocess.run([build_folder() / "test" / "test_manifests", tmp_path], capture_output=True, text=True,
                          errors="backslashreplace", check=False)
    differ = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert not differ, "\n".join(differ)
    assert f"{kinds['accepted']} accepted and {kinds['refused']} refused" in done.stdout


def test_a_program_refuses_a_text_and_a_pipe(tmp_path):
    (tmp_path / "deploy.yaml").write_text(edited("alias bomb"), encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "deploy.yaml", tmp_path / "pipe.yaml"):
        done = run_program("convert-ascend", "om", path, "310P3", "--dry_run")
        check_program_refuses(done, path)
