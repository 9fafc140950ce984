"""The accuracy of every way to deploy: ``python tools/deployment_table.py --model CONFIG CKPT --dataset ROOT``.

Each checkpoint is exported, quantised, and scored on the validation split as itself, as MINDIR (MindSpore), as ONNX
(onnxruntime), by the C++ runner on OpenVINO, by the same runner on the simulated AscendCL of its tests, and by the
runner in bfloat16 and as int8. The same numbers as a table go into docs/deployment.md.
"""
import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindseg.errors import UserError, run_main
from mindseg.files import file_sha256, write_text
from mindseg.manifest import Manifest, ModelFile, load_manifest, save_manifest

ROOT = Path(__file__).resolve().parents[1]
ROUTES = {"checkpoint": "checkpoint, MindSpore", "mindir": "MINDIR, MindSpore", "onnx": "ONNX, onnxruntime",
          "runner": "C++ runner, OpenVINO f32", "simulated": "C++ runner, simulated AscendCL",
          "bf16": "C++ runner, OpenVINO bf16", "int8": "int8, C++ runner, OpenVINO"}
REDUCED = ("bf16", "int8")      # whose loss of accuracy is the price of their speed
BEGIN, END = "<!-- deployment table: begin -->", "<!-- deployment table: end -->"
EXAMPLES = """examples:
  python tools/deployment_table.py --model configs/fast_scnn/fast_scnn_synthetic.yaml best.ckpt --dataset data/synthetic
  python tools/deployment_table.py --model C1 X1 --model C2 X2 --dataset D --bf16 \\
      --simulated ascend310_infer/build-test/test/segment_simulated --document docs/deployment.md
"""


class Work:
    """Runs the project's commands for one model and keeps their logs."""

    def __init__(self, folder: Path, config: str, checkpoint: str, dataset: str, overrides: Sequence[str]) -> None:
        self.folder, self.checkpoint, self.dataset = folder, checkpoint, dataset
        self.common = ["--config", config]
        for text in (*overrides, f"data.root={dataset}"):
            self.common += ["--set", text]
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, *command: object, **variables: str) -> None:
        """Runs one command; its output goes to ``<name>.log``.

        Raises:
            UserError: It failed; names the log.
        """
        log = self.folder / f"{name}.log"
        print(f"{self.folder.name}: {name}", flush=True)
        with open(log, "w", encoding="utf-8") as stream:
            done = subprocess.run([str(word) for word in command], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT,
                                  env={**os.environ, **variables}, check=False)
        if done.returncode:
            raise UserError(f"{name} of {self.folder.name} failed with status {done.returncode}; read {log}")

    def python(self, name: str, *command: object) -> None:
        """:meth:`run` for a Python program of the project."""
        self.run(name, sys.executable, *command)

    def scores(self) -> dict[str, dict]:
        """Exports, runs every route and returns their ``eval.json``."""
        export = self.folder / "export"
        self.python("export", "export.py", *self.common, "--ckpt_path", self.checkpoint, "--output", export)
        self.python("checkpoint", "eval.py", *self.common, "--ckpt_path", self.checkpoint, "--output",
                    self.folder / "checkpoint")
        for fmt in ("mindir", "onnx"):
            self.python(fmt, "eval.py", *self.common, "--manifest", export, "--file_format", fmt.upper(), "--output",
                        self.folder / fmt)
        self.runner("runner", export)
        self.python("quantize", "mindseg quantize", "--manifest", export, "--dataset", self.dataset, "--output",
                    self.folder / "export_int8")
        self.runner("int8", self.folder / "export_int8")
        return {route: read_scores(self.folder / route) for route in ROUTES if (self.folder / route).is_dir()}

    def runner(self, name: str, export: Path, **variables: str) -> None:
        """Scores an export with the C++ runner on OpenVINO."""
        self.run(name, "bash", "scripts/run_infer_310.sh", export, self.dataset, BACKEND="openvino", INPUT="images",
                 OUTPUT=str(self.folder / name), PYTHON=sys.executable, **variables)

    def simulated(self, program: Path) -> dict:
        """Scores the ONNX model as a simulated ``.om``, with the runner linked to its tests' simulated AscendCL."""
        twin = simulated_om(load_manifest(self.folder / "export"), self.folder / "export_om")
        images, output = self.folder / "runner" / "preprocess_Result", self.folder / "simulated"
        self.run("simulated", program, "run", "--manifest", twin.path, "--input", images, "--output",
                 output / "result_Files", "--backend", "acl")
        self.python("simulated_score", "postprocess.py", "--manifest", twin.path, "--result", output / "result_Files",
                    "--dataset", self.dataset, "--output", output)
        return read_scores(output)

    def bf16(self) -> dict:
        """Scores the ONNX model in bfloat16; the runner refuses on a processor that has none."""
        self.runner("bf16", self.folder / "export", PRECISION="bf16")
        return read_scores(self.folder / "bf16")


def simulated_om(manifest: Manifest, folder: Path) -> Manifest:
    """Writes what the simulated AscendCL loads: a text file that names the ONNX twin, and its manifest."""
    entry = manifest.find("onnx")
    path = folder / f"{Path(entry.file).stem}.om"
    write_text(path, f"SIMULATED OM\nonnx: {os.path.relpath(manifest.model_path(entry), folder)}\n")
    manifest.copy_fusion_switch(folder)
    twin = replace(manifest, path=folder / "deploy.yaml",
                   models=(ModelFile("om", path.name, entry.batch, file_sha256(path)),))
    save_manifest(twin)
    return twin


def read_scores(folder: Path) -> dict:
    """``eval.json`` of a folder."""
    content = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    return {key: content[key] for key in ("miou", "pixel_accuracy")}


def table(models: dict[str, dict[str, dict]]) -> str:
    """Markdown: one row a network, one column a route, mIoU in percent."""
    routes = [route for route in ROUTES if any(route in scores for scores in models.values())]
    lines = ["| network | " + " | ".join(ROUTES[route] for route in routes) + " |", "|---" * (len(routes) + 1) + "|"]
    for name, scores in models.items():
        cells = [f"{100 * scores[route]['miou']:.2f}" if route in scores else "" for route in routes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(scores: dict[str, dict]) -> tuple[float, float]:
    """Largest distance to the checkpoint's mIoU over the float32 routes, and the loss of int8."""
    reference = scores["checkpoint"]["miou"]
    spread = max(abs(value["miou"] - reference) for route, value in scores.items() if route not in REDUCED)
    return spread, reference - scores["int8"]["miou"]


def write_document(path: Path, text: str) -> None:
    """Replaces what stands between the two markers.

    Raises:
        UserError: The markers are not there.
    """
    page = path.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path}: has no lines '{BEGIN}' and '{END}' to put the table between")
    write_text(path, f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs=2, action="append", required=True, metavar=("CONFIG", "CKPT"),
                        help="repeatable")
    parser.add_argument("--dataset", required=True, metavar="ROOT", help="folder of the data set")
    parser.add_argument("--output", default="outputs/deployment_table", metavar="DIR", help="work folder")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")
    parser.add_argument("--simulated", type=Path, help="segment_simulated of a runner built with -DBUILD_TESTING=ON")
    parser.add_argument("--bf16", action="store_true", help="also run in bfloat16; for processors that have it")
    parser.add_argument("--document", type=Path, help="page whose table is replaced, such as docs/deployment.md")
    parser.add_argument("--tolerance", type=float, default=0.002, help="largest mIoU difference (default: 0.002)")
    parser.add_argument("--tolerance_int8", type=float, default=0.01, help="largest mIoU loss of int8 (default: 0.01)")
    args = parser.parse_args()
    models = {}
    for config, checkpoint in args.model:
        name = Path(config).stem
        work = Work(Path(args.output).resolve() / name, config, str(Path(checkpoint).resolve()),
                    str(Path(args.dataset).resolve()), args.set)
        models[name] = work.scores()
        if args.simulated:
            models[name]["simulated"] = work.simulated(args.simulated.resolve())
        if args.bf16:
            models[name]["bf16"] = work.bf16()
    write_text(Path(args.output) / "table.json", json.dumps(models, indent=2) + "\n")
    text = table(models)
    print(text)
    if args.document:
        write_document(args.document, text)
    for name, scores in models.items():
        spread, loss = differences(scores)
        print(f"{name}: float32 routes within {spread:.5f} of the checkpoint's mIoU, int8 loses {loss:.5f}")
        if spread > args.tolerance or loss > args.tolerance_int8:
            raise UserError(f"{name}: a deployed model is further from the checkpoint than --tolerance "
                            f"{args.tolerance} or --tolerance_int8 {args.tolerance_int8} allow")


if __name__ == "__main__":
    run_main(main)
