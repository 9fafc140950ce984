"""Inputs of a prediction one after the other: to the model, and its answers into files."""
import errno
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindseg.data.bands import open_bands
from mindseg.data.decode import decode_image
from mindseg.data.samples import image_stem
from mindseg.errors import DataError, UserError, printable
from mindseg.files import read_bytes
from mindseg.inference.inputs import Inputs, Stream
from mindseg.inference.masks import MaskWriter, write_submission
from mindseg.inference.pictures import PICTURES, render, save_picture
from mindseg.inference.polygon_files import PolygonFiles
from mindseg.inference.predictor import Answer, Predictor, segment
from mindseg.inference.row_files import picture_file, value_file
from mindseg.inference.streams import open_stream
from mindseg.inference.tiles import Tiling, count_tiles, segment_bands, segment_tiled
from mindseg.inference.video import FrameSink, frames, video_facts
from mindseg.logs import log
from mindseg.outputs import OutputFolder, output_path

_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)     # the next file would fail, too
# Lengths of sides, by those of training samples, that need no warning: recipes evaluate at up to twice the sides of
# their crops. On CamVid three times the size cost Fast-SCNN 10 points of mIoU, half the size 14 (docs/evaluation.md).
_USUAL = (0.5, 2.5)


class Stopped(Exception):
    """Request to stop, heard between two images, frames or tiles."""


@dataclass(frozen=True)
class Output:
    """Results to write for each image.

    Attributes:
        folder: Output folder.
        kinds: Of ``pictures.KINDS``.
        alpha: Opacity of an overlay.
        submission: Also write label-id masks and pack them for the benchmark server.
        overwrite: Replace files that this program did not write.
        tiling: Segment in tiles; None: images as a whole.
        max_frames: Frames of a video or stream at most; None: all.
    """
    folder: Path
    kinds: tuple[str, ...] = ("overlay",)
    alpha: float = 0.55
    submission: bool = False
    overwrite: bool = False
    tiling: Tiling | None = None
    max_frames: int | None = None


@dataclass
class Job:
    """One call: its model, its results, and counts.

    Attributes:
        predictor: Model.
        output: Results to write.
        results: The output folder.
        stopped: Tells whether the user wants to stop.
        polygons: Writer of the kind ``json``, if it is asked for.
        images: Images and frames that were segmented.
        failed: Failures by name.
        model_seconds: Time in the model.
    """
    predictor: Predictor
    output: Output
    results: OutputFolder
    stopped: Callable[[], bool] = lambda: False
    polygons: PolygonFiles | None = None
    images: int = 0
    failed: list[dict] = field(default_factory=list)
    model_seconds: float = 0.0
    _sizes_seen: bool = False

    @property
    def kinds(self) -> list[str]:
        """Kinds of results that are pictures or values: all but ``json``."""
        return [kind for kind in self.output.kinds if kind != "json"]

    @property
    def confidence(self) -> bool:
        """The confidence is asked for, or ``json`` is and the model gives it."""
        return "confidence" in self.output.kinds or (self.polygons is not None and self.predictor.gives_confidence)

    def check_stop(self) -> None:
        """Raises an exception if the user wants to stop.

        Raises:
            Stopped: So it is.
        """
        if self.stopped():
            raise Stopped

    def fail(self, name: str, error: Exception | str) -> None:
        """Counts and logs an image or frame that could not be read; raises what every further file would meet.

        Args:
            name: File, frame or stream.
            error: Error, or its message.
        """
        cause = getattr(error, "__cause__", None) or error
        if isinstance(cause, OSError) and cause.errno in _NO_DISK:
            raise error
        message = str(error) if isinstance(error, str) or name in str(error) else f"{name}: {error}"
        log.warning("%s", printable(message))
        self.failed.append({"file": printable(name), "error": printable(message)})

    def timed(self, function: Callable, *arguments: Any) -> Any:
        """Calls the model.

        Raises:
            DataError: It cannot take the image; one that is too small, for example.
            Stopped: The user wants to stop.
        """
        self.check_stop()
        started = time.perf_counter()
        try:
            return function(*arguments)
        except UserError as error:
            raise DataError(str(error)) from None
        finally:
            self.model_seconds += time.perf_counter() - started

    def segment(self, image: np.ndarray, name: str) -> Answer:
        """Classes of an image or frame in memory, uint8 (H, W, 3) in BGR order."""
        tiling, confidence = self.output.tiling, self.confidence
        self.check_size(image.shape[:2], name)
        if tiling:
            return segment_tiled(self.predictor, image, tiling, confidence, self.timed)
        return self.timed(segment, self.predictor, image, confidence)

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Warns, once a call, if the network gets images of quite another size than it was trained on.

        Args:
            size: Height and width of an image.
            name: Of the image, for the message.
        """
        trained, tiling = self.predictor.trained_size, self.output.tiling
        if trained is None or self._sizes_seen:
            return
        if tiling:
            size = min(size[0], tiling.size[0]), min(size[1], tiling.size[1])
        height, width = self.predictor.resize.content_size(*size)
        factor = (height * width / (trained[0] * trained[1])) ** 0.5
        if _USUAL[0] <= factor <= _USUAL[1]:
            return
        self._sizes_seen = True
        times = f"{factor:.1f} times as long" if factor > 1 else f"only {factor:.2f} times as long"
        tile = f", or --tile {trained[0]}x{trained[1]} if its objects are as large as in training" if factor > 1 else ""
        log.warning("%s: reaches the network with %dx%d pixels, its sides %s as those of training samples (%dx%d); the "
                    "network may not know objects of that size: give --set 'eval.resize={rule: short_side, size: %d}' "
                    "if it shows as much as they do%s", printable(name), height, width, times, *trained, min(trained),
                    tile)


def check_submission(inputs: Inputs) -> None:
    """Refuses two images that would have one name on the benchmark server.

    Raises:
        UserError: There are such images.
    """
    first: dict[str, Path] = {}
    for path in inputs.images:
        other = first.setdefault(image_stem(path), path)
        if other != path:
            raise UserError(f"--submission: {other} and {path} would both be '{image_stem(path)}' in the archive; "
                            "submit one split at a time, or rename one")


def predict_images(job: Job, names: dict[Path, str]) -> None:
    """Segments image files, one after the other.

    Args:
        job: The call.
        names: Name of the results of each image, relative to the output folder.

    Raises:
        UserError: The disk is full or cannot be written.
        Stopped: The user wants to stop.
    """
    output, info = job.output, job.predictor.info
    writer = None
    if output.submission:
        writer = MaskWriter("labelIds", info, OutputFolder(output.folder / "masks_labelIds", output.overwrite))
    predict = _predict_image if output.tiling is None else _predict_tiles
    for path, name in tqdm(names.items(), desc="predict", unit="image", disable=None):
        job.check_stop()
        try:
            targets = {kind: output_path(output.folder, f"{name}_{kind}.png", f"{path}") for kind in job.kinds}
            polygons = [output_path(output.folder, f"{name}.json", f"{path}")] if job.polygons else []
            job.results.claim(*targets.values(), *polygons)
            answer = predict(job, path, targets)
            if polygons:
                job.polygons.write(polygons[0], path, name.removesuffix(path.suffix) + path.suffix, answer)
            if writer:
                writer.write(image_stem(path), answer[0])
        except UserError as error:
            job.fail(str(path), error)
            continue
        job.images += 1
    if writer and writer.files:
        job.results.claim(output.folder / info.submission.archive)
        log.info("submission archive: %s", write_submission(writer.files, info, output.folder))


def _predict_image(job: Job, path: Path, targets: dict[str, Path]) -> Answer:
    """Segments an image as a whole, and writes one file a kind."""
    image = decode_image(read_bytes(path), str(path))
    answer = job.segment(image, str(path))
    for kind, target in targets.items():
        picture = render(kind, image, answer, job.predictor.info, job.output.alpha)
        save_picture(target, kind, picture, job.predictor.info)
    return answer


def _predict_tiles(job: Job, path: Path, targets: dict[str, Path]) -> Answer | None:
    """Segments an image in tiles and writes the results row by row; a submission and polygons need the whole answer."""
    info, output, bands = job.predictor.info, job.output, []
    with open_bands(path) as image, ExitStack() as stack:
        job.check_size(image.size, str(path))
        writers = [stack.enter_context(picture_file(target, kind, image.size, info, output.alpha) if kind in PICTURES
                                       else value_file(target, kind, image.size, info))
                   for kind, target in targets.items()]
        bar = stack.enter_context(tqdm(total=count_tiles(image.size, output.tiling), desc=printable(path.name),
                                       unit="tile", leave=False, disable=None))

        def call(function: Callable, *arguments: Any) -> Any:
            bar.update()
            return job.timed(function, *arguments)

        for band in segment_bands(job.predictor, image, output.tiling, job.confidence, call):
            for write in writers:
                write(band)
            if output.submission or job.polygons:
                bands.append(band.answer)
    return tuple(None if parts[0] is None else np.concatenate(parts) for parts in zip(*bands, strict=True)) or None


def predict_video(job: Job, path: Path, name: str) -> None:
    """Segments a video file frame by frame, see :func:`_predict_frames`.

    Args:
        job: The call.
        path: Video file.
        name: Name of the results, relative to the output folder.
    """
    with tqdm(desc=printable(path.name), unit="frame", disable=None) as bar:
        def start() -> tuple[float, Iterator]:
            rate, total = video_facts(path)
            bar.total = min(total, job.output.max_frames or total)
            return rate, frames(path)

        _predict_frames(job, str(path), name, start, bar)


def predict_stream(job: Job, stream: Stream, name: str) -> None:
    """Segments a camera or stream until it ends or the user wants to stop, see :func:`_predict_frames`.

    Args:
        job: The call.
        stream: Camera or address.
        name: Name of the results, relative to the output folder.
    """
    with ExitStack() as stack:
        def start() -> tuple[float, Iterator]:
            opened = stack.enter_context(open_stream(stream))
            return opened.rate, opened.frames()

        bar = stack.enter_context(tqdm(desc=stream.label, unit="frame", disable=None))
        _predict_frames(job, stream.label, name, start, bar)


def _predict_frames(job: Job, label: str, name: str, start: Callable[[], tuple[float, Iterator]], bar: tqdm) -> None:
    """Segments frames.

    Overlay, mask and side by side become ``<name>_<kind>.mp4`` at the source's frame rate; ids and confidence, which
    no lossy video can hold, ``<name>_<kind>/<frame>.png``, polygons ``<name>_json/<frame>.json``. In the place of a
    broken frame the one before is shown again, so that the time stays right. What precedes a cut, or the request to
    stop, is kept.

    Args:
        job: The call.
        label: Video or stream, for messages.
        name: Name of the results, relative to the output folder.
        start: Opens the source; returns frames a second, and the frames, None in the place of a broken one.
        bar: Progress bar.

    Raises:
        UserError: The disk is full or cannot be written.
        Stopped: The user wants to stop.
    """
    sinks: dict[str, FrameSink] = {}
    info, finished = job.predictor.info, False
    try:
        rate, source = start()
        target = output_path(job.output.folder, name, label)
        target.parent.mkdir(parents=True, exist_ok=True)
        for kind in job.kinds:
            sinks[kind] = FrameSink(target, kind, rate, info.palette, job.results)
        for number, frame in enumerate(itertools.islice(source, job.output.max_frames), 1):
            job.check_stop()
            bar.update()
            if frame is None:
                job.fail(f"{label}#{number}", f"{label}: frame {number} cannot be decoded")
                for sink in sinks.values():
                    sink.again(number)
                continue
            answer = job.segment(frame, label)
            for kind, sink in sinks.items():
                sink.write(number, render(kind, frame, answer, info, job.output.alpha))
            if job.polygons:
                _write_frame(job, target.with_name(f"{target.name}_json") / f"{number:06d}.json", answer)
            job.images += 1
        finished = True
    except (UserError, OSError) as error:
        job.fail(label, error)
        finished = True         # the frames before a cut are kept
    except Stopped:
        finished = True
        raise
    finally:
        if job.polygons and finished:       # an earlier result may have had more frames
            job.results.remove_old(f"{name}_json")
        for sink in sinks.values():
            try:
                sink.close(finished)
            except UserError as error:
                job.fail(label, error)


def _write_frame(job: Job, path: Path, answer: Answer) -> None:
    """Writes the polygons of a frame; its picture would lie beside the file."""
    job.results.claim(path)
    picture = path.with_suffix(".png")
    job.polygons.write(path, picture, picture.relative_to(job.output.folder).as_posix(), answer)
