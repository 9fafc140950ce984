"""The command ``mindseg``: one sub-command a verb, ``mindseg train --config C``; ``python -m mindseg`` is the same."""
import sys
from importlib import import_module

from mindseg.errors import UserError, run_main
from mindseg.version import __version__

COMMANDS = {
    "train": "train a network", "eval": "score a checkpoint or an exported model",
    "predict": "segment images, folders and videos", "export": "write MINDIR, ONNX and AIR models with deploy.yaml",
    "preprocess": "turn a data set into input files for the runner", "postprocess": "score the runner's results",
    "import-labels": "turn the labels of annotation tools into a data set with its configuration",
    "check-dataset": "report what a data set holds and what is wrong with it",
    "class-weights": "compute class weights from the labels", "pack": "write a data set as MindRecord files",
    "build-trainaug": "merge PASCAL VOC and SBD into the list of 10,582 training images",
    "compare": "write a page that compares training runs", "convert-weights": "read PyTorch or older MindSpore weights",
    "calibrate": "fit the confidence of a checkpoint to its accuracy",
    "publish": "write a small checkpoint of parameters and configuration",
    "plan": "predict how long a training takes on Ascend cards",
    "build-kernels": "compile the C++ operators for training and evaluation on a CPU",
    "quantize": "write an int8 ONNX model", "convert-ascend": "call ATC or MindSpore Lite's converter",
    "doctor": "check what a device computes, and how fast; write one file to send back",
}
MODULES = {"eval": "evaluate"}      # eval is a built-in function of Python
EXTRAS = {"mindspore": "train", "scipy": "train", "onnx": "deploy", "onnxruntime": "deploy", "onnxscript": "deploy"}
USAGE = "usage: mindseg COMMAND [options]\n\n{}\n\nmindseg COMMAND --help shows the options of a command."


def main() -> int | None:
    """Runs the sub-command that the first argument names.

    Raises:
        UserError: There is no such command, or a package that it needs is not installed.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())))
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        raise UserError(f"mindseg has no command '{words[0]}'; it knows {', '.join(COMMANDS)}")
    sys.argv = [f"mindseg {name}", *words[1:]]      # what argparse and the log name as the program
    try:
        module = import_module(f"mindseg.commands.{MODULES.get(name, name.replace('-', '_'))}")
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise UserError(f"mindseg {name} needs the package {error.name}; pip install 'mindseg[{extra}]'") from None
    return module.main()


def run() -> None:
    """Runs :func:`main` and exits: the entry point of the installed command."""
    run_main(main)


if __name__ == "__main__":
    run()
