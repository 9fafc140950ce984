"""Pre-processing and post-processing against NumPy by hand, for every rule and every program's result files."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mindseg.commands.postprocess import score, write_scores
from mindseg.commands.preprocess import find_samples, preprocess
from mindseg.errors import DataError, UserError
from mindseg.inference.masks import MaskWriter
from mindseg.inference.results import Results, interpret
from mindseg.manifest import OutputSpec, eval_resize, save_manifest
from mindseg.outputs import RECORD_NAME, OutputFolder
from tests.support.data import make_camvid, make_cityscapes, write_image
from tests.support.deploy import MEAN, STD, make_manifest


def make_frames(root: Path, seed: int, count: int = 1) -> list[str]:
    """Write a ``val`` split of two classes whose sample names have a dot; return the names."""
    return make_camvid(root, np.random.default_rng(seed), count, "val", classes=2, prefix="frame.")


def make_streets(root: Path, seed: int) -> list[str]:
    """Write a ``val`` split in Cityscapes' layout, 48x64 pixels; return the sample names."""
    return make_cityscapes(root, np.random.default_rng(seed), 4, "val", (48, 64))


def with_resize(manifest, rule, size=None, pad=False, **changes):
    resize = {"rule": rule, "pad": pad} | ({} if size is None else {"size": size})
    return replace(manifest, input=replace(manifest.input, resize=resize, **changes))


@pytest.mark.parametrize(("rule", "size", "image", "expected"), [
    ("none", None, (30, 50), (30, 50)), ("exact", [48, 64], (30, 50), (48, 64)),
    ("short_side", 48, (96, 120), (48, 60)), ("short_side", 48, (120, 96), (60, 48)),
    ("long_side", 64, (375, 500), (48, 64)), ("long_side", 64, (500, 375), (64, 48)),
    ("long_side", [48, 64], (96, 96), (48, 48)), ("long_side", [48, 64], (10, 40), (16, 64)),
    ("long_side", 512, (333, 500), (341, 512)), ("long_side", 64, (1, 1000), (1, 64))])
def test_resize_rules(rule, size, image, expected):
    assert eval_resize({"rule": rule, "size": size, "pad": True}).scaled_size(*image) == expected


def test_input_tensor_by_hand(tmp_path):
    manifest = with_resize(make_manifest(tmp_path), "long_side", 64, pad=True)
    rng = np.random.default_rng(1)
    bgr = rng.integers(0, 256, (90, 128, 3), np.uint8)
    image = manifest.input.read_image(write_image(tmp_path / "a.png", bgr))
    np.testing.assert_array_equal(image, bgr[..., ::-1])
    small = cv2.resize(bgr, (64, 45), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    expected = np.empty((48, 64, 3))
    expected[:] = (124, 116, 104)
    expected[:45] = small
    tensor = manifest.input.prepare(image)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, ((expected - MEAN) / STD).transpose(2, 0, 1), atol=1e-6)


def test_value_range_one_bgr_and_raw_bytes(tmp_path):
    spec = replace(make_manifest(tmp_path).input, color_order="BGR", value_range=1.0, mean=(0.4, 0.5, 0.6),
                   std=(0.2, 0.3, 0.4))
    bgr = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
    image = spec.read_image(write_image(tmp_path / "a.png", bgr))
    np.testing.assert_array_equal(image, bgr)
    expected = (bgr / 255.0 - (0.4, 0.5, 0.6)) / (0.2, 0.3, 0.4)
    np.testing.assert_allclose(spec.prepare(image), expected.transpose(2, 0, 1), atol=2e-6)
    raw = replace(spec, layout="NHWC", dtype="uint8", normalize="graph", shape=(1, 48, 64, 3))
    np.testing.assert_array_equal(raw.prepare(image), bgr)


def test_an_image_that_does_not_fit_is_named(tmp_path):
    image = np.zeros((60, 64, 3), np.uint8)
    for rule in ("none", "exact"):
        manifest = with_resize(make_manifest(tmp_path), rule, [48, 60] if rule == "exact" else None)
        with pytest.raises(DataError, match=r"a\.png: image of 60x64 becomes .* the model takes 48x64"):
            manifest.input.prepare(image, "a.png")


@pytest.mark.parametrize("in_graph", [False, True])
def test_preprocess_writes_exact_bytes_and_names(tmp_path, in_graph):
    names = make_streets(tmp_path / "data set", seed=3)
    manifest = make_manifest(tmp_path)
    manifest = replace(manifest, dataset=replace(manifest.dataset, name="cityscapes"))
    if in_graph:
        manifest = replace(manifest, input=replace(manifest.input, layout="NHWC", dtype="uint8", normalize="graph",
                                                   shape=(1, 48, 64, 3)))
    samples = find_samples(manifest, tmp_path / "data set")
    output = tmp_path / "bins here"
    preprocess(manifest, samples, output)
    assert (output / "files.txt").read_text().split() == names
    assert sorted(path.name for path in output.iterdir()) == sorted([RECORD_NAME, "files.txt",
                                                                    *(f"{n}.bin" for n in names)])
    rgb = cv2.imread(str(samples[1].image))[..., ::-1]
    expected = rgb if in_graph else ((rgb.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)
    got = np.fromfile(output / f"{samples[1].name}.bin", np.uint8 if in_graph else np.float32)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=0 if in_graph else 1e-6)


def test_both_verbs_run_where_only_their_five_packages_are(tmp_path):
    """On the machine with the card: NumPy, OpenCV, Pillow, PyYAML and tqdm, neither MindSpore nor the exporters'."""
    for name in ("mindspore", "onnx", "onnxruntime", "openvino", "tensorboardX", "torch", "safetensors", "pytest"):
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ImportError('{name} is not installed here')\n")
    name, = make_frames(tmp_path / "data", seed=14)
    manifest = save_manifest(make_manifest(tmp_path / "export"))
    common = ["--manifest", manifest, "--dataset", tmp_path / "data", "--output"]
    write_result(tmp_path / "result", name, "png", random_logits(np.random.default_rng(15)))
    root = Path(__file__).resolve().parents[2]
    for words in (["preprocess.py", *common, tmp_path / "bins"],
                  ["postprocess.py", *common, tmp_path, "--result", tmp_path / "result", "--save_masks", "color"]):
        command = [sys.executable, root / words[0], *words[1:]]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(tmp_path / "absent")})
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "bins" / f"{name}.bin").stat().st_size == 4 * 3 * 48 * 64
    assert (tmp_path / "eval.json").is_file()


def test_preprocess_names_a_broken_image_and_leaves_no_list(tmp_path):
    names = make_frames(tmp_path / "data", seed=4, count=5)
    manifest = make_manifest(tmp_path)
    output = tmp_path / "bins"
    preprocess(manifest, find_samples(manifest, tmp_path / "data"), output)
    broken = tmp_path / "data" / "val" / f"{names[2]}.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(DataError, match=names[2]):
        preprocess(manifest, find_samples(manifest, tmp_path / "data"), output)
    assert not (output / "files.txt").exists()
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == [RECORD_NAME]


def test_preprocess_refuses_a_disk_that_is_too_small(tmp_path, monkeypatch):
    make_frames(tmp_path / "data", seed=5)
    manifest = make_manifest(tmp_path)
    usage = type("Usage", (), {"free": 48 * 64 * 12 - 1})
    monkeypatch.setattr("mindseg.commands.preprocess.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="the bins take"):
        preprocess(manifest, find_samples(manifest, tmp_path / "data"), tmp_path / "bins")


def random_logits(rng, classes=2, size=(48, 64)):
    """Logits whose fp16 and fp32 arg-max agree: multiples of 1/64."""
    return (rng.integers(-512, 512, (classes, *size)) / 64).astype(np.float32)


def write_result(folder, name, kind, logits):
    """One result file as the program of that kind writes it."""
    folder.mkdir(exist_ok=True)
    ids = logits.argmax(0)
    if kind == "png":
        write_image(folder / f"{name}.png", ids.astype(np.uint8))
    elif kind == "bin":
        logits.tofile(folder / f"{name}.bin")
    elif kind.startswith("ids_"):
        ids.astype(kind[4:])[None].tofile(folder / f"{name.split('.')[0]}_0.bin")
    elif kind.startswith("logits_"):
        logits.astype(kind[7:])[None].tofile(folder / f"{name.split('.')[0]}_0.bin")
    elif kind == "npy_ids":
        np.save(folder / f"{name.split('.')[0]}_0.npy", ids[None].astype(np.int32))
    elif kind == "npy_logits":
        np.save(folder / f"{name.split('.')[0]}_0.npy", logits[None].astype(np.float16))
    elif kind == "txt":
        rows = logits.reshape(-1, logits.shape[-1])
        (folder / f"{name.split('.')[0]}_0.txt").write_text("\n".join(" ".join(f"{v:f}" for v in row) for row in rows))
    elif kind == "txt_ids":
        (folder / f"{name.split('.')[0]}_0.txt").write_text("\n".join(" ".join(map(str, row)) for row in ids))


def truth(samples, predictions):
    """mIoU and pixel accuracy of two classes by plain counting; value 11 is ignored."""
    pred, label = [], []
    for sample in samples:
        values = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED)
        pred.append(predictions[sample.name][values != 11])
        label.append(values[values != 11])
    pred, label = np.concatenate(pred), np.concatenate(label)
    ious = [((pred == c) & (label == c)).sum() / ((pred == c) | (label == c)).sum() for c in (0, 1)]
    return np.mean(ious), (pred == label).mean()


KINDS = ["png", "bin", "ids_uint8", "ids_int16", "ids_int32", "ids_int64", "logits_float32", "logits_float16",
         "npy_ids", "npy_logits", "txt", "txt_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_score_of_every_kind_of_result(tmp_path, kind):
    # One sample only: ais_bench cuts names at the first dot, so "frame.000" and "frame.01" would collide.
    make_frames(tmp_path / "data", seed=6)
    manifest = make_manifest(tmp_path)
    if "logits" in kind or kind in ("bin", "txt"):
        manifest = replace(manifest, output=OutputSpec("segmentation", "logits", "float32", (2, 2, 48, 64)))
    samples = find_samples(manifest, tmp_path / "data")
    logits = random_logits(np.random.default_rng(7))
    write_result(tmp_path / "result", samples[0].name, kind, logits)
    scores = score(manifest, Results(tmp_path / "result", manifest).ids, samples)
    miou, accuracy = truth(samples, {samples[0].name: logits.argmax(0)})
    assert scores["miou"] == pytest.approx(miou, abs=1e-12)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert scores["images"] == 1


def cityscapes_results(tmp_path, stem="{}_0.bin"):
    names = make_streets(tmp_path / "data", seed=8)
    manifest = make_manifest(tmp_path)
    classes = tuple(f"c{i}" for i in range(19))
    dataset = replace(manifest.dataset, name="cityscapes", classes=classes, palette=((9, 9, 9),) * 19, label_map=None)
    manifest = replace(manifest, dataset=dataset)
    rng = np.random.default_rng(9)
    (tmp_path / "bs1").mkdir()
    for name in names:
        rng.integers(0, 19, (1, 48, 64), np.uint8).tofile(tmp_path / "bs1" / stem.format(name))
    return names, manifest


def test_order_of_the_samples_does_not_matter(tmp_path):
    names, manifest = cityscapes_results(tmp_path)
    results = Results(tmp_path / "bs1", manifest)
    first = score(manifest, results.ids, find_samples(manifest, tmp_path / "data"))
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(names)
        order = tmp_path / "sort.log"
        order.write_text("".join(f"{name}_leftImg8bit.png\n" for name in shuffled))
        samples = find_samples(manifest, tmp_path / "data", names_file=order)
        assert [sample.name for sample in samples] == list(shuffled)
        np.testing.assert_equal(score(manifest, results.ids, samples), first)     # NaN, of absent classes, is equal too


def test_the_guides_file_names_and_a_part_of_the_set(tmp_path):
    names, manifest = cityscapes_results(tmp_path, "{}_leftImg8bit_0.bin")
    (tmp_path / "files.txt").write_text("\n".join(names[:2]) + "\n")
    samples = find_samples(manifest, tmp_path / "data", names_file=tmp_path / "files.txt")
    assert score(manifest, Results(tmp_path / "bs1", manifest).ids, samples)["images"] == 2
    (tmp_path / "files.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"files\.txt:1: sample 'nobody' is not in"):
        find_samples(manifest, tmp_path / "data", names_file=tmp_path / "files.txt")


def test_ais_bench_summary_maps_names_with_dots_and_gives_times(tmp_path):
    names = make_frames(tmp_path / "data", seed=10, count=2)
    manifest = make_manifest(tmp_path)
    logits = {name: random_logits(np.random.default_rng(i)) for i, name in enumerate(names)}
    (tmp_path / "bs1").mkdir()
    listed = {}
    for index, name in enumerate(names):
        logits[name].argmax(0).astype(np.int32).tofile(tmp_path / "bs1" / f"other{index}_0.bin")
        listed[str(index)] = {"infiles": [f"/elsewhere/{name}.bin"], "outfiles": [f"/elsewhere/bs1/other{index}_0.bin"]}
    times = {"min": 20.0, "max": 30.0, "mean": 25.0, "median": 25.0, "percentile(99%)": 29.9, "count": 2}
    summary = {"filesinfo": listed, "NPU_compute_time": times, "throughput": 40.0, "pid": 1}
    (tmp_path / "bs1_summary.json").write_text(json.dumps(summary))
    results = Results(tmp_path / "bs1", manifest)
    samples = find_samples(manifest, tmp_path / "data")
    scores = score(manifest, results.ids, samples)
    miou, _ = truth(samples, {name: value.argmax(0) for name, value in logits.items()})
    assert scores["miou"] == pytest.approx(miou, abs=1e-12)
    write_scores(scores, manifest, results, tmp_path / "eval.json")
    record = json.loads((tmp_path / "eval.json").read_text())
    assert record["ais_bench"] == {"NPU_compute_time": times, "throughput": 40.0}
    assert record["classes"] == ["sky", "über road"]
    assert np.array(record["confusion"]).shape == (2, 2)


def test_the_confidence_that_ais_bench_wrote_is_no_result_of_another_sample(tmp_path):
    manifest = make_manifest(tmp_path)
    manifest = replace(manifest, output=replace(manifest.output, confidence="confidence", temperature=1.0))
    for name, value in (("a_0", 0), ("a_1", 200), ("a_1_0", 1), ("a_1_1", 210)):
        np.full((48, 64), value, np.uint8).tofile(tmp_path / f"{name}.bin")
    results = Results(tmp_path, manifest)
    assert [np.unique(results.read(name)).tolist() for name in ("a_1", "a")] == [[1], [0]]


def test_names_that_ais_bench_merged_are_refused(tmp_path):
    make_frames(tmp_path / "data", seed=10, count=2)
    manifest = make_manifest(tmp_path)
    write_result(tmp_path / "bs1", "frame.000", "ids_int32", random_logits(np.random.default_rng(0)))
    with pytest.raises(DataError, match=r"frame_0\.bin: stands for both 'frame\.000' and 'frame\.001'"):
        score(manifest, Results(tmp_path / "bs1", manifest).ids, find_samples(manifest, tmp_path / "data"))


def test_a_missing_result_is_named_with_the_runners_reason(tmp_path):
    names, manifest = cityscapes_results(tmp_path, "{}.bin")
    (tmp_path / "bs1" / f"{names[2]}.bin").unlink()
    samples = find_samples(manifest, tmp_path / "data")
    with pytest.raises(DataError, match=f"no result for sample '{names[2]}'.*run the inference again"):
        score(manifest, Results(tmp_path / "bs1", manifest).ids, samples)
    failed = {"failed": [{"file": f"x/{names[2]}_leftImg8bit.png", "error": "damaged"}]}
    (tmp_path / "bs1" / "summary.json").write_text(json.dumps(failed))
    with pytest.raises(DataError, match="the runner failed on it: damaged"):
        score(manifest, Results(tmp_path / "bs1", manifest).ids, samples)


def test_results_of_another_model_are_refused(tmp_path):
    manifest = make_manifest(tmp_path)
    with pytest.raises(DataError, match=r"a\.bin: 3071 bytes are neither class ids nor logits of 2 classes"):
        interpret(np.zeros(3071, np.uint8), manifest, "a.bin")
    with pytest.raises(DataError, match="values from 0 to 2 are no ids of 2 classes"):
        interpret(np.array([0, 2] * 1536, np.uint8), manifest, "a.bin")
    write_image(tmp_path / "result" / "x.png", np.zeros((48, 63), np.uint8))
    with pytest.raises(DataError, match="48x63"):
        Results(tmp_path / "result", manifest).read("x")
    (tmp_path / "result" / "y_0.npy").write_bytes(b"no numpy file")
    with pytest.raises(DataError, match=r"y_0\.npy: cannot read"):
        Results(tmp_path / "result", manifest).read("y")
    with pytest.raises(DataError, match="no such folder"):
        Results(tmp_path / "nothing", manifest)


def test_one_size_with_two_meanings_follows_the_manifest(tmp_path):
    ids = make_manifest(tmp_path)
    logits = replace(ids, output=OutputSpec("segmentation", "logits", "float32", (2, 2, 48, 64)))
    values = random_logits(np.random.default_rng(11)).astype(np.float16)
    assert values.nbytes == 48 * 64 * 4     # as many bytes as int32 ids
    as_logits = interpret(np.frombuffer(values.tobytes(), np.uint8), logits, "a.bin")
    np.testing.assert_array_equal(as_logits, values.astype(np.float32))
    numbers = values.argmax(0).astype(np.int32)
    np.testing.assert_array_equal(interpret(np.frombuffer(numbers.tobytes(), np.uint8), ids, "a.bin"), numbers)


def test_masks_return_to_the_labels_size_and_lose_the_padding(tmp_path):
    manifest = with_resize(make_manifest(tmp_path), "long_side", 64, pad=True)
    ids = np.ones((48, 64), np.uint8)
    ids[:32] = np.repeat(np.arange(32)[:, None] // 16, 64, 1)
    back = manifest.input.eval_resize.restore(ids, (64, 128), (64, 128))
    np.testing.assert_array_equal(back, np.repeat(np.arange(64)[:, None] // 32, 128, 1))
    ramp = np.stack([np.linspace(1, -1, 64)[None].repeat(48, 0), np.zeros((48, 64))]).astype(np.float32)
    back = manifest.input.eval_resize.restore(ramp, (96, 128), (96, 128))
    np.testing.assert_array_equal(back, np.repeat((np.arange(128) >= 64)[None], 96, 0))


def test_images_of_another_size_are_scored_at_the_labels_size(tmp_path):
    names = make_frames(tmp_path / "data", seed=12, count=2)
    for folder in ("val", "valannot"):
        path = tmp_path / "data" / folder / f"{names[0]}.png"
        write_image(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED).repeat(2, 0).repeat(2, 1))
    manifest = make_manifest(tmp_path)
    samples = find_samples(manifest, tmp_path / "data")
    rng = np.random.default_rng(13)
    ids = {name: rng.integers(0, 2, (48, 64), np.uint8) for name in names}
    for name in names:
        write_image(tmp_path / "result" / f"{name}.png", ids[name])
    scores = score(manifest, Results(tmp_path / "result", manifest).ids, samples)
    full = {names[0]: ids[names[0]].repeat(2, 0).repeat(2, 1), names[1]: ids[names[1]]}
    miou, _ = truth(samples, full)
    assert scores["miou"] == pytest.approx(miou, abs=1e-12)


def test_masks_have_the_manifests_colours_or_official_ids(tmp_path):
    manifest = make_manifest(tmp_path)
    dataset = replace(manifest.dataset, palette=((10, 20, 30), (40, 50, 60)), label_ids=(7, 33))
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    info = replace(manifest, dataset=dataset).dataset_info()
    wanted = {"color": np.array([(30, 20, 10), (60, 50, 40)])[ids], "labelIds": np.array([7, 33])[ids]}
    for kind, expected in wanted.items():
        writer = MaskWriter(kind, info, OutputFolder(tmp_path / kind))
        writer.write("a", ids)
        flag = cv2.IMREAD_COLOR if kind == "color" else cv2.IMREAD_UNCHANGED
        np.testing.assert_array_equal(cv2.imread(str(writer.files[0]), flag), expected)


def test_a_split_without_labels_cannot_be_scored(tmp_path):
    make_streets(tmp_path / "data", seed=14)
    (tmp_path / "data" / "leftImg8bit" / "val").rename(tmp_path / "data" / "leftImg8bit" / "test")
    manifest = make_manifest(tmp_path)
    manifest = replace(manifest, dataset=replace(manifest.dataset, name="cityscapes", label_map=None))
    samples = find_samples(manifest, tmp_path / "data", "test")
    (tmp_path / "result").mkdir()
    with pytest.raises(DataError, match="has no label"):
        score(manifest, Results(tmp_path / "result", manifest).ids, samples)
