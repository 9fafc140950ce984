"""eval.py from the command line to the official program: what is written, and that the numbers are the right ones."""
import csv
import json
import shutil
import zipfile

import cv2
import numpy as np
import pytest

from mindseg.checkpoint import load_network
from mindseg.commands import evaluate as scoring
from mindseg.commands.evaluate import Request, protocol_overrides, score
from mindseg.data.datasets import CITYSCAPES, VOC
from mindseg.deploy.exporter import export_network
from mindseg.errors import UserError
from mindseg.files import file_sha256
from mindseg.inference.masks import MaskWriter, write_submission
from mindseg.outputs import RECORD_NAME, OutputFolder
from mindseg.runtime import Runtime
from tests.support.evaluation import CONFIG, SIZE, make_checkpoint, make_streets, street_config
from tests.support.networks import make_tiny_network
from tests.support.predictors import FunctionPredictor

RUNTIME = Runtime("CPU", 0)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("street s"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, streets):
    """A run with one checkpoint, evaluated once by the command line with everything that it can write."""
    folder = tmp_path_factory.mktemp("run")
    make_checkpoint(folder / "ckpt" / "best.ckpt", street_config(streets))
    return folder


@pytest.fixture(scope="module")
def finished(run_folder, streets, run_cli):
    return run_cli("eval.py", "--config", CONFIG, "--ckpt_path", run_folder / "ckpt" / "best.ckpt", "--report", "--csv",
                   "--save_masks", "labelIds", "--set", f"data.root={streets}", "--set", "runtime.device_target=CPU")


@pytest.fixture(scope="module")
def record(finished, run_folder):
    assert finished.returncode == 0, finished.stderr
    return json.loads((run_folder / "eval.json").read_text())


def images_csv(folder):
    with open(folder / "images.csv", newline="") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


def labels_of(streets):
    """Train ids by sample name."""
    paths = {path.name.removesuffix("_gtFine_labelIds.png"): path for path in streets.rglob("*_gtFine_labelIds.png")}
    return {name: CITYSCAPES.id_to_train[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)] for name, path in paths.items()}


def evaluated(cfg, output, **request):
    """Scores in this process and reads ``eval.json`` back."""
    score(cfg, RUNTIME, Request(str(CONFIG), output, **request))
    return json.loads((output / "eval.json").read_text())


def test_eval_json_explains_itself(record, finished):
    matrix = np.array(record["confusion"], float)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    iou = np.diag(matrix)[union > 0] / union[union > 0]
    assert record["miou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert record["classes"] == list(CITYSCAPES.classes)
    assert [v is None for v in record["iou"]] == list(union == 0)
    assert record["images"] == 4
    assert record["mode"] == "whole"
    assert record["device"] == "CPU"
    assert record["checkpoint_sha256"] == file_sha256(record["checkpoint"])
    assert {"checkpoint", "config", "pixel_accuracy", "class_accuracy", "fwiou", "category_iou", "iiou"} <= set(record)
    assert f"{100 * record['miou']:.2f}  (" in finished.stdout


def test_the_official_program_gives_the_same_numbers(record, run_folder, streets):
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as official
    masks = {path.name: path for path in (run_folder / "masks_labelIds").glob("*.png")}
    truths = sorted(str(path) for path in streets.glob("gtFine/val/*/*_labelIds.png"))
    preds = []
    for truth in truths:
        name = truth.rsplit("/", 1)[1].removesuffix("_gtFine_labelIds.png")
        preds.append(str(next(path for key, path in masks.items() if key.startswith(name))))
    official.args.quiet, official.args.JSONOutput = True, False
    expected = official.evaluateImgLists(preds, truths, official.args)
    assert record["miou"] == pytest.approx(expected["averageScoreClasses"], abs=1e-9)
    assert record["mean_category_iou"] == pytest.approx(expected["averageScoreCategories"], abs=1e-9)
    assert record["miiou"] == pytest.approx(expected["averageScoreInstClasses"], abs=1e-9)
    assert record["mean_category_iiou"] == pytest.approx(expected["averageScoreInstCategories"], abs=1e-9)
    for name, iou in zip(CITYSCAPES.classes, record["iou"], strict=True):
        assert (np.nan if iou is None else iou) == pytest.approx(expected["classScores"][name], abs=1e-9, nan_ok=True)


def test_submission_and_other_files(record, run_folder):
    with zipfile.ZipFile(run_folder / "submission.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(p.name for p in (run_folder / "masks_labelIds").glob("*.png"))
    for path in (run_folder / "masks_labelIds").glob("*.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.shape == SIZE
        assert set(np.unique(mask)) <= set(CITYSCAPES.train_to_id)
    lines = (run_folder / "eval_results.txt").read_text().splitlines()
    assert lines[0] == f"validation pixAcc: {record['pixel_accuracy']:.6f}, mIoU: {record['miou']:.6f}"
    assert lines[1] == f"class name: road iou: {record['iou'][0]:.6f}"
    assert len(lines) == 20
    page = (run_folder / "report.html").read_text()
    assert f"{100 * record['miou']:.1f}" in page
    assert {path.name for path in run_folder.rglob(".*")} == {RECORD_NAME}


def test_images_csv_equals_numpy(record, run_folder, streets):
    rows, labels = images_csv(run_folder), labels_of(streets)
    assert list(next(iter(rows.values()))) == ["name", "miou", "pixel_accuracy", *CITYSCAPES.classes]
    assert rows.keys() == labels.keys()
    to_train = {value: index for index, value in enumerate(CITYSCAPES.train_to_id)}
    for name, label in labels.items():
        mask = cv2.imread(str(run_folder / "masks_labelIds" / f"{name}_labelIds.png"), cv2.IMREAD_UNCHANGED)
        pred = np.vectorize(to_train.get)(mask)
        ious = []
        for index, title in enumerate(CITYSCAPES.classes):
            truth, guess = label == index, (pred == index) & (label != 255)
            if (truth | guess).any():
                iou = (truth & guess).sum() / (truth | guess).sum()
                assert float(rows[name][title]) == pytest.approx(iou, abs=1e-6)
                ious += [iou] if truth.any() else []
            else:
                assert rows[name][title] == ""
        assert float(rows[name]["miou"]) == pytest.approx(np.mean(ious), abs=1e-6)
        right = (pred == label)[label != 255].mean()
        assert float(rows[name]["pixel_accuracy"]) == pytest.approx(right, abs=1e-6)


def test_several_ranks_hand_in_their_own_masks_only(streets, tmp_path, monkeypatch):
    """Rank 1's part and then rank 0's, one after the other, into a folder that holds an earlier run's mask."""
    road = FunctionPredictor(lambda images, size: np.zeros((len(images), *size), np.uint8), CITYSCAPES)
    monkeypatch.setattr(scoring, "open_checkpoint", lambda *_: road)
    cfg, masks = street_config(streets), tmp_path / "masks_labelIds"
    with OutputFolder(masks) as earlier:
        earlier.claim(masks / "earlier_labelIds.png")
        (masks / "earlier_labelIds.png").write_bytes(b"an earlier run's")
    (tmp_path / "x.ckpt").write_bytes(b"weights")
    for rank in (1, 0):
        request = Request(str(CONFIG), tmp_path, ckpt_path=str(tmp_path / "x.ckpt"), save_masks="labelIds", csv=True,
                          report=True)
        score(cfg, Runtime("CPU", 0, rank, 2), request)
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}_labelIds.png" for name in labels_of(streets))
    assert (masks / "earlier_labelIds.png").exists()
    assert sorted(path.name for path in tmp_path.glob("images*.csv")) == ["images.rank0.csv", "images.rank1.csv"]
    assert {path.name for path in tmp_path.rglob(".*")} == {RECORD_NAME}
    assert "first of 2 processes" in (tmp_path / "report.html").read_text()


def test_an_exported_model_keeps_its_own_size(streets, tmp_path):
    cfg = street_config(streets, "export.height=64", "export.width=96")
    export_network(make_tiny_network(), cfg, {"checkpoint": "x.ckpt", "checkpoint_sha256": "0" * 64}, ["ONNX"],
                   tmp_path / "export")
    manifest = str(tmp_path / "export" / "deploy.yaml")
    found = evaluated(cfg, tmp_path / "own", manifest=manifest)
    assert found["resize"] == {"rule": "exact", "size": [64, 96], "pad": False}
    same = street_config(streets, "eval.resize={rule: exact, size: [64, 96]}")
    assert evaluated(same, tmp_path / "same", manifest=manifest)["confusion"] == found["confusion"]
    for asked in (["eval.resize={rule: exact, size: [96, 64]}"], ["eval.resize={rule: long_side, size: 96}"],
                  protocol_overrides("bisenetv2_paper")):
        with pytest.raises(UserError, match=r"^eval\.resize = .*own rule.*\[64, 96\].*--set eval\.resize=null"):
            evaluated(street_config(streets, *asked), tmp_path / "refused", manifest=manifest)


def test_batches_make_no_difference(record, run_folder, streets, tmp_path):
    cfg = street_config(streets, "eval.batch_size=3")
    found = evaluated(cfg, tmp_path, ckpt_path=str(run_folder / "ckpt" / "best.ckpt"))
    assert found["images"] == 4
    # A batch may round differently where two classes are as good as equal.
    assert np.abs(np.subtract(found["confusion"], record["confusion"])).sum() <= 1e-4 * np.sum(found["confusion"])


def test_resized_labels_equal_a_plain_loop(run_folder, streets, tmp_path):
    """The protocol of the older ENet, at a smaller size: image and label resized, scored there."""
    cfg = street_config(streets, "eval.resize={rule: exact, size: [64, 128]}", "eval.label_size=input",
                        "eval.loss=true")
    found = evaluated(cfg, tmp_path, ckpt_path=str(run_folder / "ckpt" / "best.ckpt"))
    net = load_network(cfg, run_folder / "ckpt" / "best.ckpt")
    matrix, losses = np.zeros((19, 19), int), []
    from mindspore import Tensor
    for path in sorted(streets.glob("leftImg8bit/val/*/*.png")):
        name = path.name.removesuffix("_leftImg8bit.png")
        image = cv2.resize(cv2.imread(str(path)), (128, 64))[..., ::-1].astype(np.float32)
        image = (image - np.float32(cfg.data.mean)) / np.float32(cfg.data.std)
        logits = net(Tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))).asnumpy()[0]
        pred = logits.argmax(0)
        label = cv2.imread(str(next(streets.glob(f"gtFine/val/*/{name}_gtFine_labelIds.png"))), cv2.IMREAD_UNCHANGED)
        rows, columns = (np.arange(64) + 0.5) * SIZE[0] / 64, (np.arange(128) + 0.5) * SIZE[1] / 128
        truth = CITYSCAPES.id_to_train[label[rows.astype(int)][:, columns.astype(int)]]
        surprise = np.log(np.exp(logits).sum(0)) - np.take_along_axis(logits, truth[None] % 19, 0)[0]
        losses.append(surprise[truth < 19])
        for t, p in zip(truth[truth < 19], pred[truth < 19], strict=True):
            matrix[t, p] += 1
    assert found["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)
    assert matrix.sum() == np.sum(found["confusion"])
    assert np.abs(matrix - found["confusion"]).sum() <= 1e-4 * matrix.sum()


def test_folder_of_checkpoints(run_folder, streets, tmp_path):
    cfg = street_config(streets)
    folder = tmp_path / "ckpt"
    folder.mkdir()
    shutil.copy(run_folder / "ckpt" / "best.ckpt", folder / "b.ckpt")
    make_checkpoint(folder / "a.ckpt", cfg, seed=5)
    (folder / "broken.ckpt").write_bytes(b"0" * 100)
    (folder / ".last.tmp.ckpt").write_bytes(b"")
    found = evaluated(cfg, tmp_path / "out", ckpt_path=str(tmp_path), csv=True)     # a run folder will do, too
    each = {name: json.loads((tmp_path / "out" / f"{name}.ckpt.eval.json").read_text()) for name in "ab"}
    assert not (tmp_path / "out" / "broken.ckpt.eval.json").exists()
    best = max(each, key=lambda name: each[name]["miou"])
    assert best == "a", "the last one's images.csv could pass for the best one's"
    assert found["checkpoint"].endswith(f"{best}.ckpt")
    assert found["miou"] == each[best]["miou"]
    assert [row["miou"] for row in found["ranking"]] == sorted((e["miou"] for e in each.values()), reverse=True)
    rows, labels = images_csv(tmp_path / "out"), labels_of(streets)
    assert each["a"]["pixel_accuracy"] != pytest.approx(each["b"]["pixel_accuracy"], abs=1e-3)
    labelled = {name: (label != 255).sum() for name, label in labels.items()}
    hits = sum(float(rows[name]["pixel_accuracy"]) * count for name, count in labelled.items())
    assert hits / sum(labelled.values()) == pytest.approx(found["pixel_accuracy"], abs=1e-5)
    with pytest.raises(UserError, match="folder of checkpoints"):
        evaluated(cfg, tmp_path / "out", ckpt_path=str(folder), save_masks="color")
    with pytest.raises(UserError, match=r"no \*.ckpt"):
        evaluated(cfg, tmp_path / "out", ckpt_path=str(tmp_path / "out"))


def test_small_masks_are_not_handed_in(run_folder, streets, tmp_path):
    cfg = street_config(streets, *protocol_overrides("enet_modelzoo"))
    with pytest.raises(UserError, match="label_size"):
        evaluated(cfg, tmp_path, ckpt_path=str(run_folder / "ckpt" / "best.ckpt"), save_masks="labelIds")


def test_colour_masks_and_the_form_of_voc(tmp_path, rng):
    import tarfile

    from PIL import Image
    ids = rng.integers(0, 21, (20, 30), np.uint8)
    writer = MaskWriter("color", VOC, OutputFolder(tmp_path / "color"))
    writer.write("2007_000033", ids)
    with Image.open(tmp_path / "color" / "2007_000033.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), ids)
        assert picture.getpalette()[3:6] == [128, 0, 0]
    writer = MaskWriter("labelIds", VOC, OutputFolder(tmp_path / "masks"))
    writer.write("2007_000033", ids)
    with tarfile.open(write_submission(writer.files, VOC, tmp_path)) as archive:
        assert archive.getnames() == ["results/VOC2012/Segmentation/comp6_test_cls/2007_000033.png"]


@pytest.mark.parametrize(("words", "text"), [
    (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
    (["--ckpt_path", "x.ckpt", "--protocol", "best"], "bisenetv2_paper"),
])
def test_mistakes_are_one_line(run_cli, streets, tmp_path, words, text):
    done = run_cli("eval.py", "--config", CONFIG, "--set", f"data.root={streets}", "--output", tmp_path, *words)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert text in lines[0]


def test_a_users_files_are_kept(run_folder, streets, tmp_path, monkeypatch):
    cfg, checkpoint = street_config(streets), str(run_folder / "ckpt" / "best.ckpt")
    monkeypatch.setattr(scoring, "open_checkpoint", lambda *_: pytest.fail("refused only after the network was built"))
    for name, options in (("eval.json", {}), ("report.html", {"report": True}), ("images.csv", {"csv": True}),
                          ("submission.zip", {"save_masks": "labelIds"})):
        (tmp_path / name).write_text("precious")
        with pytest.raises(UserError, match=f"{name}: exists and was not written by mindseg"):
            evaluated(cfg, tmp_path, ckpt_path=checkpoint, **options)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()


def test_masks_do_not_join_a_users_files(run_folder, streets, tmp_path):
    cfg, checkpoint = street_config(streets), str(run_folder / "ckpt" / "best.ckpt")
    (tmp_path / "masks_color").mkdir()
    (tmp_path / "masks_color" / "other.png").write_text("precious")
    with pytest.raises(UserError, match="masks_color: holds files that were not written by mindseg"):
        evaluated(cfg, tmp_path, ckpt_path=checkpoint, save_masks="color")
    evaluated(cfg, tmp_path, ckpt_path=checkpoint, save_masks="color", overwrite=True)
    assert (tmp_path / "masks_color" / "other.png").read_text() == "precious"
