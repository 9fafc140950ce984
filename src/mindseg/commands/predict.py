"""Segments pictures and videos: ``python predict.py --config C --ckpt_path X --input street.jpg --output out``."""
import argparse
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from mindseg.commands.arguments import add_backend, add_config, create_parser, read_config
from mindseg.config import SCHEMA_FILE, load_config
from mindseg.deploy.backend import use_backend
from mindseg.drawing import legend, save_png
from mindseg.engine.signals import StopSignals
from mindseg.errors import UserError
from mindseg.files import write_json
from mindseg.inference.encoder import describe_encoder
from mindseg.inference.exported import open_exported
from mindseg.inference.inputs import Inputs, find_inputs
from mindseg.inference.jobs import (
    Job,
    Output,
    Stopped,
    check_submission,
    predict_images,
    predict_stream,
    predict_video,
)
from mindseg.inference.loading import checkpoint_config, open_checkpoint
from mindseg.inference.pictures import KINDS
from mindseg.inference.polygon_files import PolygonFiles
from mindseg.inference.predictor import Predictor
from mindseg.inference.tiles import read_tiling
from mindseg.inference.video import is_lossless
from mindseg.logs import log, setup_logging
from mindseg.outputs import OutputFolder
from mindseg.runtime import setup_runtime

SOME_FAILED = 3                # exit status when some inputs could not be read, as the runner's
INTERRUPTED = 130              # when Ctrl-C or SIGTERM left images or videos undone
EXAMPLES = """examples:
  python predict.py --ckpt_path best.ckpt --input street.jpg --output out
  python predict.py --config C --ckpt_path best.ckpt --input drive.mp4 --output out --save side
  python predict.py --config C --ckpt_path best.ckpt --input 'photos/**/*.jpg' --output out --save overlay mask ids
  python predict.py --config C --ckpt_path best.ckpt --input D/leftImg8bit/test --output out --submission
  python predict.py --manifest export/deploy.yaml --file_format ONNX --input photos drive.mp4 --output out
  python predict.py --ckpt_path best.ckpt --input rtsp://192.168.1.20/stream --max_frames 500 --output out
  python predict.py --ckpt_path best.ckpt --input drive.mp4 --output out --backend auto
  python predict.py --ckpt_path best.ckpt --input map.tif --tile 1024 --output out --save mask
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = create_parser("Segment pictures, folders and videos.", EXAMPLES)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt_path", help="checkpoint")
    model.add_argument("--manifest", help="deploy.yaml of an exported model")
    add_config(parser, required=False, note=" (default: the configuration that the checkpoint carries)")
    add_backend(parser)
    parser.add_argument("--mode", metavar="MODE", help="whole, slide, ms, flip, msflip or slide_msflip (eval.mode)")
    parser.add_argument("--file_format", choices=("ONNX", "MINDIR"), default="ONNX", help="which file of the manifest")
    parser.add_argument("--input", required=True, nargs="+", help="images, videos, folders or quoted globs; the number "
                        "of a camera, or the address of a stream (rtsp://, http://)")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--save", nargs="*", choices=KINDS, default=["overlay"], help="what to write (overlay)")
    parser.add_argument("--alpha", type=float, default=0.55, help="opacity of the colours, 0 to 1 (%(default)s)")
    parser.add_argument("--tile", metavar="HxW", nargs="?", const="", help="segment in tiles of this size, images of "
                        "any size (one number: both sides; none: the size of an exported model)")
    parser.add_argument("--overlap", type=int, metavar="N", help="pixels that tiles share (an eighth of the shorter "
                        "side)")
    parser.add_argument("--max_frames", type=int, metavar="N", help="frames of each video or stream at most")
    parser.add_argument("--submission", action="store_true", help="also write label-id masks under the benchmark's "
                        "names, and pack them")
    parser.add_argument("--overwrite", action="store_true", help="also replace files that this program did not write")
    return parser.parse_args()


def main() -> int:
    """Segments images and videos; returns 3 if some could not be read."""
    args = parse_args()
    if args.manifest and (args.mode or args.set or args.config or args.backend != "mindspore"):
        raise UserError("--manifest: an exported model brings its own settings; leave --config, --set, --mode and "
                        "--backend out")
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha {args.alpha} must be 0 to 1")
    if args.overlap is not None and args.tile is None:
        raise UserError("--overlap belongs to --tile; give both, or leave it out")
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError(f"--max_frames {args.max_frames} must be at least 1")
    if args.tile == "" and args.ckpt_path:
        raise UserError("--tile: give HxW or one number; only an exported model has a size of its own")
    tiling = read_tiling(args.tile, args.overlap) if args.tile else None
    setup_logging()
    if args.manifest:
        if args.file_format == "MINDIR":
            setup_runtime(load_config(SCHEMA_FILE).runtime)     # the defaults, and DEVICE_TARGET and DEVICE_ID
        predictor = open_exported(args.manifest, args.file_format.lower())
        if "confidence" in args.save:
            predictor.manifest.check_confidence()
        if args.tile == "":
            tiling = read_tiling("x".join(map(str, predictor.manifest.input.size)), args.overlap)
    else:
        overrides = args.set + ([f"eval.mode={args.mode}"] if args.mode else [])
        cfg = read_config(args.config, overrides) if args.config else checkpoint_config(args.ckpt_path, overrides)
        setup_runtime(cfg.runtime)
        predictor = open_checkpoint(args.ckpt_path, cfg, whole_image=True)
        use_backend(args.backend, predictor, cfg, args.ckpt_path)
    output = Output(Path(args.output), tuple(dict.fromkeys(args.save)), args.alpha, args.submission, args.overwrite,
                    tiling, args.max_frames)
    try:
        return predict(predictor, args.input, output)
    except OSError as error:
        raise UserError(f"{args.output}: cannot write there ({error.strerror}); choose another --output") from None


def predict(predictor: Predictor, sources: str | Sequence[str], output: Output) -> int:
    """Segments everything that ``sources`` name and writes ``summary.json``.

    Ctrl-C and SIGTERM end the call after the current image, frame or tile; what was written so far stays.

    Args:
        predictor: Model.
        sources: Images, videos, folders, globs, numbers of cameras, addresses of streams; or one of them.
        output: What to write.

    Returns:
        Exit status: 0; 3 if something could not be read, which is named and counted, and the rest goes on; 130 if
        images or videos were left out because of a signal. Streams have no other end, so that one is 0.
    """
    inputs = find_inputs([sources] if isinstance(sources, str) else sources, output.folder)
    if output.submission:
        check_submission(inputs)
    started = time.perf_counter()
    with OutputFolder(output.folder, output.overwrite) as results, StopSignals() as signals:
        summary = output.folder / "summary.json"
        results.claim(summary)
        write_json(summary, {"status": "running"})      # after a kill, nobody takes the folder for a whole result
        if {"overlay", "mask", "side"} & set(output.kinds):
            results.claim(output.folder / "legend.png")
            save_png(output.folder / "legend.png", legend(predictor.info.classes, predictor.info.palette))
        polygons = PolygonFiles(results, predictor.info) if "json" in output.kinds else nullcontext()
        with logging_redirect_tqdm([logging.getLogger("mindseg")]), polygons as writer:
            job = Job(predictor, output, results, lambda: bool(signals.received), writer)
            status, interrupted = _predict_all(job, inputs)
        seconds = time.perf_counter() - started
        write_json(summary, {
            "status": "interrupted" if interrupted else "finished", "images": job.images,
            "failures": len(job.failed), "failed": job.failed, "backend": predictor.backend,
            "seconds": round(seconds, 3),
            "images_per_second": round(job.images / seconds, 3),
            "model_ms": round(1000 * job.model_seconds / max(job.images, 1), 3)})
    log.info("%d pictures in %.1f s: %.1f a second (the model alone %.1f), %d failed, results in %s", job.images,
             seconds, job.images / seconds, job.images / max(job.model_seconds, 1e-9), len(job.failed), output.folder)
    return status


def _predict_all(job: Job, inputs: Inputs) -> tuple[int, bool]:
    """Segments all inputs; returns the exit status, and whether a signal ended the work."""
    if (inputs.videos or inputs.streams) and not all(map(is_lossless, job.output.kinds)):
        log.info("videos are written by %s", describe_encoder())
    status, interrupted = INTERRUPTED, False
    try:
        if inputs.images:
            predict_images(job, inputs.images)
        for path, name in inputs.videos.items():
            predict_video(job, path, name)
        status = 0
        for stream, name in inputs.streams.items():
            predict_stream(job, stream, name)
    except Stopped:
        log.warning("stopped by a signal; the results so far are whole")
        interrupted = True
    return status or (SOME_FAILED if job.failed else 0), interrupted
