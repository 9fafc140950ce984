"""Segments pictures and videos: ``python predict.py --config C --ckpt_path X --input street.jpg --output out``."""
import argparse
import errno
import glob
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.config import SCHEMA_FILE, load_config
from mindseg.data.datasets import DatasetInfo
from mindseg.data.decode import decode_image
from mindseg.data.samples import IMAGE_SUFFIXES, image_stem
from mindseg.drawing import legend, overlay, save_palette_png, save_png, to_label_ids
from mindseg.errors import DataError, UserError, printable
from mindseg.files import read_bytes, write_json
from mindseg.inference.exported import open_exported
from mindseg.inference.loading import checkpoint_config, open_checkpoint
from mindseg.inference.masks import MaskWriter, write_submission
from mindseg.inference.predictor import Predictor, segment_image, segment_with_confidence
from mindseg.inference.video import FrameSink, frames, video_facts
from mindseg.logs import log, setup_logging
from mindseg.outputs import OutputFolder, check_apart, output_path, result_names
from mindseg.runtime import setup_runtime

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
KINDS = ("overlay", "mask", "ids", "labelIds", "side", "confidence")
SOME_FAILED = 3                # exit status when some inputs could not be read, as the runner's
_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)     # the next file would fail, too
EXAMPLES = """examples:
  python predict.py --ckpt_path best.ckpt --input street.jpg --output out
  python predict.py --config C --ckpt_path best.ckpt --input drive.mp4 --output out --save side
  python predict.py --config C --ckpt_path best.ckpt --input 'photos/**/*.jpg' --output out --save overlay mask ids
  python predict.py --config C --ckpt_path best.ckpt --input D/leftImg8bit/test --output out --submission
  python predict.py --manifest export/deploy.yaml --file_format ONNX --input photos --output out
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser("Segment pictures, folders and videos.", EXAMPLES)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt_path", help="checkpoint")
    model.add_argument("--manifest", help="deploy.yaml of an exported model")
    add_config(parser, required=False, note=" (default: the configuration that the checkpoint carries)")
    parser.add_argument("--mode", metavar="MODE", help="whole, slide, ms, flip, msflip or slide_msflip (eval.mode)")
    parser.add_argument("--file_format", choices=("ONNX", "MINDIR"), default="ONNX", help="which file of the manifest")
    parser.add_argument("--input", required=True, help="image, video, folder or quoted glob")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--save", nargs="*", choices=KINDS, default=["overlay"], help="what to write (overlay)")
    parser.add_argument("--alpha", type=float, default=0.55, help="opacity of the colours, 0 to 1 (%(default)s)")
    parser.add_argument("--submission", action="store_true", help="also write label-id masks under the benchmark's "
                        "names, and pack them")
    parser.add_argument("--overwrite", action="store_true", help="also replace files that this program did not write")
    return parser.parse_args()


def main() -> int:
    """Segments images and videos; returns 3 if some could not be read."""
    args = parse_args()
    if args.manifest and (args.mode or args.set or args.config):
        raise UserError("--manifest: an exported model brings its own settings; leave --config, --set and --mode out")
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha {args.alpha} must be 0 to 1")
    setup_logging()
    if args.manifest:
        if args.file_format == "MINDIR":
            setup_runtime(load_config(SCHEMA_FILE).runtime)     # the defaults, and DEVICE_TARGET and DEVICE_ID
        predictor = open_exported(args.manifest, args.file_format.lower())
        if "confidence" in args.save:
            predictor.manifest.check_confidence()
    else:
        overrides = args.set + ([f"eval.mode={args.mode}"] if args.mode else [])
        cfg = read_config(args.config, overrides) if args.config else checkpoint_config(args.ckpt_path, overrides)
        setup_runtime(cfg.runtime)
        predictor = open_checkpoint(args.ckpt_path, cfg, whole_image=True)
    output = Output(Path(args.output), tuple(dict.fromkeys(args.save)), args.alpha, args.submission,
                    args.overwrite)
    try:
        return predict(predictor, args.input, output)
    except OSError as error:
        raise UserError(f"{args.output}: cannot write there ({error.strerror}); choose another --output") from None


@dataclass
class Tally:
    """Counts of one call: images and frames, failures by name, seconds in the model."""
    images: int = 0
    failed: list[dict] = field(default_factory=list)
    model_seconds: float = 0.0

    def fail(self, name: str, error: str) -> None:
        """Counts and logs an image or frame that could not be read."""
        log.warning("%s", printable(error))
        self.failed.append({"file": printable(name), "error": printable(error)})


@dataclass(frozen=True)
class Output:
    """Results to write for each image.

    Attributes:
        folder: Output folder.
        kinds: Of ``KINDS``.
        alpha: Opacity of an overlay.
        submission: Also write label-id masks and pack them for the benchmark server.
        overwrite: Replace files that this program did not write.
    """
    folder: Path
    kinds: tuple[str, ...] = ("overlay",)
    alpha: float = 0.55
    submission: bool = False
    overwrite: bool = False


def find_inputs(text: str) -> tuple[Path, list[Path]]:
    """Turns an image, a video, a folder (with its sub-folders) or a glob into files.

    Returns:
        The folder that output names are relative to, and the files in order of their names.

    Raises:
        UserError: Nothing there, or nothing that is an image or a video.
    """
    path = Path(text)
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        base, searched = path, f"images ({' '.join(IMAGE_SUFFIXES)}) or videos ({' '.join(VIDEO_SUFFIXES)})"
    elif path.is_file():
        if path.suffix.lower() not in suffixes:
            raise UserError(f"--input {text}: neither an image nor a video by its name; known are {' '.join(suffixes)}")
        return path.parent, [path]
    elif glob.has_magic(text):
        files = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).suffix.lower() in suffixes)
        whole = [p for p in path.parts[:next(i for i, p in enumerate(path.parts) if glob.has_magic(p))]]
        base, searched = Path(*whole), "matches with a known suffix; quote the pattern against the shell"
    else:
        raise UserError(f"--input {text}: no such file or folder")
    if not files:
        raise UserError(f"--input {text}: no {searched} found")
    return base, files


def predict(predictor: Predictor, source: str, output: Output) -> int:
    """Segments everything that ``source`` names and writes ``summary.json``.

    Args:
        predictor: Model.
        source: Image, video, folder or glob.
        output: What to write.

    Returns:
        Exit status: 0, or 3 if something could not be read; it is named, counted, and the rest goes on.
    """
    base, files = find_inputs(source)
    check_apart(source if Path(source).exists() else base, output.folder)
    own = output.folder.resolve()       # results of an earlier call are no input, if they lie inside the input folder
    files = [path for path in files if not path.resolve().is_relative_to(own)]
    if not files:
        raise UserError(f"--input {source}: holds nothing but results of an earlier call; add images or videos")
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in files if path not in set(videos)]
    if output.submission:
        _check_submission(images)
    tally, started = Tally(), time.perf_counter()
    with OutputFolder(output.folder, output.overwrite) as results:
        summary = output.folder / "summary.json"
        results.claim(summary)
        write_json(summary, {"status": "running"})      # after a kill, nobody takes the folder for a whole result
        if {"overlay", "mask", "side"} & set(output.kinds):
            results.claim(output.folder / "legend.png")
            save_png(output.folder / "legend.png", legend(predictor.info.classes, predictor.info.palette))
        with logging_redirect_tqdm([logging.getLogger("mindseg")]):
            if images:
                predict_images(predictor, _names(images, base), output, results, tally)
            for path, name in _names(videos, base).items():
                predict_video(predictor, path, name, output, results, tally)
        seconds = time.perf_counter() - started
        write_json(summary, {
            "status": "finished", "images": tally.images, "failures": len(tally.failed), "failed": tally.failed,
            "seconds": round(seconds, 3), "images_per_second": round(tally.images / seconds, 3),
            "model_ms": round(1000 * tally.model_seconds / max(tally.images, 1), 3)})
    log.info("%d pictures in %.1f s: %.1f a second (the model alone %.1f), %d failed, results in %s", tally.images,
             seconds, tally.images / seconds, tally.images / max(tally.model_seconds, 1e-9), len(tally.failed),
             output.folder)
    return SOME_FAILED if tally.failed else 0


def _names(files: Sequence[Path], base: Path) -> dict[Path, str]:
    """Name of each file's results, relative to the output folder: its path below the input without the suffix."""
    names = result_names(path.relative_to(base) for path in files)
    return {path: names[path.relative_to(base)] for path in files}


def _check_submission(images: Sequence[Path]) -> None:
    """Refuses two images that would have one name on the benchmark server."""
    first: dict[str, Path] = {}
    for path in images:
        other = first.setdefault(image_stem(path), path)
        if other != path:
            raise UserError(f"--submission: {other} and {path} would both be '{image_stem(path)}' in the archive; "
                            "submit one split at a time, or rename one")


def predict_images(predictor: Predictor, names: Mapping[Path, str], output: Output, results: OutputFolder,
                   tally: Tally) -> None:
    """Segments image files, one after the other.

    Args:
        predictor: Model.
        names: Name of the results of each image, relative to the output folder.
        output: Results to write.
        results: The output folder.
        tally: Receives counts and failures.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    writer = None
    if output.submission:
        masks = OutputFolder(output.folder / "masks_labelIds", output.overwrite)
        writer = MaskWriter("labelIds", predictor.info, masks)
    for path, name in tqdm(names.items(), desc="predict", unit="image", disable=None):
        try:
            targets = {kind: output_path(output.folder, f"{name}_{kind}.png", f"{path}") for kind in output.kinds}
            results.claim(*targets.values())
            image = decode_image(read_bytes(path), str(path))
            ids, confidence = _timed(predictor, image, tally, "confidence" in output.kinds)
            for kind, target in targets.items():
                picture = render(kind, image, ids, confidence, predictor.info, output.alpha)
                _save(target, kind, picture, predictor.info)
            if writer:
                writer.write(image_stem(path), ids)
        except UserError as error:
            _go_on(error)
            tally.fail(str(path), _named(path, error))
            continue
        tally.images += 1
    if writer and writer.files:
        results.claim(output.folder / predictor.info.submission.archive)
        log.info("submission archive: %s", write_submission(writer.files, predictor.info, output.folder))


def _go_on(error: Exception) -> None:
    """Raises an error again that every further file would meet, such as a full disk."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno in _NO_DISK:
        raise error


def _named(path: Path, error: Exception) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def _timed(predictor: Predictor, image: np.ndarray, tally: Tally,
           confidence: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Class ids, and their confidence if asked for; counts the seconds."""
    started = time.perf_counter()
    try:
        return segment_with_confidence(predictor, image) if confidence else (segment_image(predictor, image), None)
    except UserError as error:      # smaller than the model can take, for example
        raise DataError(str(error)) from None
    finally:
        tally.model_seconds += time.perf_counter() - started


def render(kind: str, image: np.ndarray, ids: np.ndarray, confidence: np.ndarray | None, info: DatasetInfo,
           alpha: float) -> np.ndarray:
    """One kind of picture.

    Args:
        kind: ``overlay`` and ``side`` (photograph, overlay, and the legend below) are RGB; ``mask`` and ``ids`` are the
            class ids, ``labelIds`` the official ones, ``confidence`` their probability.
        image: uint8 BGR (H, W, 3).
        ids: uint8 class ids (H, W).
        confidence: uint8 (H, W); None: not needed.
        info: Names and colours.
        alpha: Opacity.
    """
    if kind == "confidence":
        return confidence
    if kind in ("mask", "ids"):
        return ids
    if kind == "labelIds":
        return to_label_ids(ids, info.train_to_id)
    rgb = image[..., ::-1]
    blended = overlay(np.ascontiguousarray(rgb), ids, info.palette, alpha)
    if kind == "overlay":
        return blended
    pair = np.hstack([rgb, blended])
    names = legend(info.classes, info.palette, columns=1)
    names = legend(info.classes, info.palette, columns=max(1, pair.shape[1] // names.shape[1]))
    if names.shape[1] > pair.shape[1]:
        height = max(1, names.shape[0] * pair.shape[1] // names.shape[1])
        names = cv2.resize(names, (pair.shape[1], height), interpolation=cv2.INTER_AREA)
    margin = pair.shape[1] - names.shape[1]
    return np.vstack([pair, np.pad(names, ((0, 0), (0, margin), (0, 0)), constant_values=255)])


def _save(path: Path, kind: str, picture: np.ndarray, info: DatasetInfo) -> None:
    if kind == "mask":
        save_palette_png(path, picture, info.palette)
    else:
        save_png(path, picture)


def predict_video(predictor: Predictor, path: Path, name: str, output: Output, results: OutputFolder,
                  tally: Tally) -> None:
    """Segments a video frame by frame.

    Overlay, mask and side by side become ``<name>_<kind>.mp4`` at the source's frame rate; ids and confidence, which
    no lossy video can hold, ``<name>_<kind>/<frame>.png``. In the place of a broken frame the one before is shown
    again, so that the time stays right.

    Args:
        predictor: Model.
        path: Video file.
        name: Name of the results, relative to the output folder.
        output: Results to write.
        results: The output folder.
        tally: Receives counts and failures.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    sinks: dict[str, FrameSink] = {}
    bar = tqdm(desc=printable(path.name), unit="frame", disable=None)
    finished = False
    try:
        rate, bar.total = video_facts(path)
        target = output_path(output.folder, name, str(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        for kind in output.kinds:
            sinks[kind] = FrameSink(target, kind, rate, predictor.info.palette, results)
        for number, frame in enumerate(frames(path), 1):
            bar.update()
            if frame is None:
                tally.fail(f"{path}#{number}", f"{path}: frame {number} cannot be decoded")
                for sink in sinks.values():
                    sink.again(number)
                continue
            ids, confidence = _timed(predictor, frame, tally, "confidence" in output.kinds)
            for kind, sink in sinks.items():
                sink.write(number, render(kind, frame, ids, confidence, predictor.info, output.alpha))
            tally.images += 1
        finished = True
    except (UserError, OSError) as error:
        _go_on(error)
        tally.fail(str(path), _named(path, error))
        finished = True         # the frames before a cut are kept
    finally:
        bar.close()
        for sink in sinks.values():
            sink.close(finished)
