"""Fits a temperature, so that the confidence of a network says how often it is right; no mask changes."""
from pathlib import Path

from mindseg.checkpoint import copy_with_temperature
from mindseg.commands.arguments import add_config, create_parser, read_config
from mindseg.data.loader import create_loader
from mindseg.errors import DataError, UserError
from mindseg.evaluation.calibration import assess, fit_temperature, sample_logits
from mindseg.inference.loading import checkpoint_config, open_checkpoint
from mindseg.logs import log, setup_logging
from mindseg.outputs import check_new
from mindseg.runtime import setup_runtime

EXAMPLES = """examples:
  mindseg calibrate --ckpt_path RUN/ckpt/best.ckpt --output calibrated.ckpt
  mindseg calibrate --config C --ckpt_path best.ckpt --output calibrated.ckpt --set data.root=D
The temperature is fitted on every second validation image, from the first one on, in the order of the data set, and
checked on the others. eval, predict, export and mindseg.load use it for the confidence.
"""


def main() -> None:
    """Writes a copy of a checkpoint that holds the temperature, and prints what it changes."""
    parser = create_parser(__doc__, EXAMPLES)
    parser.add_argument("--ckpt_path", required=True, help="checkpoint")
    add_config(parser, required=False, note=" (default: the configuration that the checkpoint carries)")
    parser.add_argument("--output", required=True, type=Path, metavar="CKPT", help="checkpoint to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args()
    if args.output.suffix != ".ckpt":
        raise UserError(f"--output {args.output}: a checkpoint is written; choose a name that ends in .ckpt")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no such folder; make it, or choose another")
    check_new(args.output, args.overwrite)
    cfg = read_config(args.config, args.set) if args.config else checkpoint_config(args.ckpt_path, args.set)
    setup_runtime(cfg.runtime)
    setup_logging()
    predictor = open_checkpoint(args.ckpt_path, cfg)
    fitted, others = (create_loader(cfg, "eval", part, 2) for part in (0, 1))
    if fitted.num_samples < 2:
        raise DataError(f"data.eval_split = {cfg.data.eval_split}: holds one image, but one is needed to fit the "
                        "temperature and one to check it")
    temperature = fit_temperature(*sample_logits(predictor, fitted))
    before, after = assess(predictor, others, (predictor.temperature, temperature))
    copy_with_temperature(args.ckpt_path, args.output, temperature)
    log.info("temperature %.4f, fitted on %d images\non the %d others   before    after\ncross entropy    %9.4f%9.4f\n"
             "calibration error%8.2f %%%7.2f %%\n%s", temperature, fitted.steps_per_epoch, others.steps_per_epoch,
             before[0], after[0], 100 * before[1]["ece"], 100 * after[1]["ece"], args.output)
