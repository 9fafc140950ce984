"""The commands and the code of README and docs: checked, executed in a small copy, or dry-run where hardware is needed.

``tests/support/docs.py`` explains the markers. Every program is small: 2 training steps, crops of 64x128,
synthetic streets of 96x192; what the pages show is the way, and the form of the output.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindseg.__main__ import COMMANDS as MINDSEG
from mindseg.commands.evaluate import protocol_overrides
from mindseg.config import load_config
from mindseg.files import file_sha256
from mindseg.manifest import ModelFile, load_manifest, save_manifest
from tests.support import ROOT
from tests.support.data import random_image, random_label, write_image
from tests.support.deploy import make_manifest
from tests.support.docs import COMMANDS, PAGES, Block, blocks, commands, output_pattern
from tests.support.migration import command_module
from tests.support.runner import MEAN, STD, build_folder
from tools.synthetic import make_street, write_street

DOCS = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs") and page.name != "README_CN.md"]
CONFIG = "configs/fast_scnn/fast_scnn_cityscapes.yaml"
PLACEHOLDERS = {"C": CONFIG, "D": "data/cityscapes", "…": None}
# Programs of vendors and of other hosts; a block that calls one says that it needs something.
FOREIGN = ("ais_bench", "amct_onnx", "atc", "converter_lite", "mpirun", "msrun", "npu-smi")
HARMLESS = ("cat", "cd", "cp", "git", "grep", "head", "ls", "mkdir", "pip", "source", "tail")
SMALL = {
    "train.py": "--set train.steps=2 --set train.global_batch=2 --set train.log_interval=1 --set optim.warmup_steps=0 "
                "--set data.crop_size=[64,128] --set data.num_workers=1 --set runtime.threads=1",
    "export.py": "--set export.height=64 --set export.width=128",
    "make_synthetic.py": "--num 4 --num_val 2 --num_test 1 --height 96 --width 192 --workers 1",
}
SEPARATOR = "\x1e"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def place_of(block: Block) -> str:
    return block.place


# Commands on a page with patches need the patched sources, and a console shows errors: both are executed only.
SHELL_BLOCKS = [block for page in DOCS for block in blocks(page) if block.language in COMMANDS[:2]
                and not any(other.language == "diff" for other in blocks(page))]
RUN_PAGES = [page for page in DOCS if any(block.marker == "test: run" for block in blocks(page))]
SLOW_PAGES = [page for page in DOCS if any(block.marker == "test: run slow" for block in blocks(page))]


# --- a small copy of the repository ---------------------------------------------------------------------------------

def copy_repository(folder: Path) -> Path:
    """Copies what a clone holds, goldens and pictures left out."""
    left_out = {ROOT / name for name in (".git", ".venv", "outputs", "docs", "tests/goldens/__pycache__")}
    left_out |= set(ROOT.glob("ascend310_infer/build*/")) | {ROOT / "ascend310_infer" / "out"}
    left_out -= {ROOT / "ascend310_infer" / "build.sh"}

    def ignore(parent: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(parent) / name in left_out or name == "__pycache__"
                or name.endswith(("_cache", ".npz"))]

    shutil.copytree(ROOT, folder, ignore=ignore)
    return folder


def link_repository(folder: Path) -> Path:
    """A folder of links to the repository, where nothing that stays in it is written."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "outputs", "data"):
            (folder / path.name).symlink_to(path)
    return folder


def add_program(folder: Path, name: str, text: str) -> None:
    """Writes a program into the environment that the scripts of a copy find first."""
    path = folder / ".venv" / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def add_small_python(folder: Path) -> None:
    """A Python that appends small sizes to the verbs; later words win."""
    cases = "".join(f"  {name}) set -- \"$@\" {words} ;;\n" for name, words in SMALL.items())
    add_program(folder, "python", f'#!/bin/bash\ncase "${{1##*/}}" in\n{cases}esac\nexec {sys.executable} "$@"\n')
    add_program(folder, "mindseg", f'#!/bin/bash\nexec {sys.executable} -m mindseg "$@"\n')
    files = ("requirements.txt", "requirements-deploy.txt", "pyproject.toml")
    requirements = b"".join((ROOT / name).read_bytes() for name in files)
    stamp = subprocess.run(["sha256sum"], input=requirements, capture_output=True, check=True).stdout.split()[0]
    (folder / ".venv" / "installed-run").write_bytes(stamp + b"\n")
    for name in ("msrun", "cmake", "ctest", "pip"):
        (folder / ".venv" / "bin" / name).symlink_to(Path(sys.executable).parent / name)


def add_recorder(folder: Path) -> Path:
    """Programs that note how they were called and do nothing; converters run, with ``--dry_run``."""
    record = folder / "record.txt"
    text = ('#!/bin/bash\nset -e\n'
            f'if [[ "$3" == convert-ascend ]]; then exec {sys.executable} "${{@:1:3}}" --dry_run "${{@:4}}"; fi\n'
            f'{sys.executable} -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@" >>"{record}"\n'
            'echo "mIoU 0.00 %, pixel accuracy 0.00 %"\n')
    for name in ("python", "msrun", "segment"):
        add_program(folder, name, text)
    add_program(folder, "npu-smi", "#!/bin/bash\necho '| 0       310P3     | OK              |'\n")
    return record


def add_data(folder: Path) -> None:
    """Small data sets where the pages have theirs: ``/data`` and ``data`` are one folder here; and photographs."""
    for name in ("photo.jpg", "photos/street.jpg"):
        write_image(folder / name, make_street(0, "test", 0, 96, 192).image[..., ::-1])
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            write_street(folder / "data" / "cityscapes", 0, split, index, 96, 192)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = []
        for i in range(4):
            write_image(folder / f"data/mine/images/{split}{i}.png", random_image(rng, 64, 128))
            write_image(folder / f"data/mine/labels/{split}{i}.png", random_label(rng, 64, 128, [0, 1, 2, 255]))
            lines.append(f"images/{split}{i}.png,labels/{split}{i}.png\n")
        (folder / f"data/mine/{split}.txt").write_text("".join(lines), encoding="utf-8")
    add_program(folder, "activate", "")


def add_export(folder: Path) -> None:
    """A manifest as an export at 1024x2048 leaves it, with model files that nobody opens."""
    export = folder / "export"
    export.mkdir()
    models = []
    for fmt in ("onnx", "mindir"):
        path = export / f"fast_scnn.{fmt}"
        path.write_bytes(b"not opened")
        models.append(ModelFile(fmt, path.name, 1, file_sha256(path)))
    manifest = make_manifest(export)
    spec = {**vars(manifest.input), "shape": (1, 3, 1024, 2048), "mean": MEAN, "std": STD,
            "resize": {"rule": "exact", "size": [1024, 2048], "pad": False}}
    output = {**vars(manifest.output), "shape": (1, 1024, 2048)}
    save_manifest(make_manifest(export, input=type(manifest.input)(**spec), output=type(manifest.output)(**output),
                                models=tuple(models)))


# --- commands that are checked without being executed ---------------------------------------------------------------

class Parsed(Exception):
    """Carries what a command line means out of a verb before it works."""


def parse(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> argparse.Namespace | None:
    """The options of a verb or tool; None if it takes no arguments.

    Fails if a flag is unknown, a value is not allowed or something is missing.
    """
    monkeypatch.syspath_prepend(ROOT / Path(script).parent)     # Python finds what stands beside a script
    module = command_module(script)
    original = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        module.main()
    except Parsed as found:
        return found.args[0]
    except SystemExit:
        pytest.fail(f"{script} {' '.join(words)}: {capsys.readouterr().err}")
    finally:
        monkeypatch.undo()


def check_python(words: list[str], block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A call of Python in ``folder``: the flags of a verb, its configuration and its overrides."""
    if words[:2] == ["-m", "mindseg"]:
        words = words[2:]
        assert words[0] in MINDSEG, f"{block.place}: mindseg has no command {words[0]}"
        script = f"{words[0]}.py"
    elif words[0] == "-m":
        assert words[1] == "pytest" or (words[1] in FOREIGN and block.marker.startswith("needs")), block.place
        return
    else:
        script = str(Path(words[0]))
        script = next(name for name in (script, str(Path(*Path(script).parts[-2:])), Path(script).name)
                      if not Path(name).is_absolute() and (ROOT / name).is_file())
    args = parse(script, words[1:], monkeypatch, capsys)
    config = getattr(args, "config", None)
    if config:
        protocol = getattr(args, "protocol", None)
        path = folder / config
        load_config(path if path.exists() else config, [*(protocol_overrides(protocol) if protocol else []), *args.set])


def check_script(variables: dict[str, str], words: list[str], folder: Path, record: Path) -> list[list[str]]:
    """A call of a shell script, with recorders for Python and msrun; returns how it called them."""
    script = words[0]
    assert (ROOT / script).is_file(), script
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    if Path(script).name in ("quickstart.sh", "setup.sh", "build.sh"):
        assert words[1:] in ([], ["run"], ["dev"], ["--test"])
        return []
    record.unlink(missing_ok=True)
    binaries = folder / ".venv" / "bin"
    values = {"RUNNER": f"{binaries}/segment", "PATH": f"{binaries}:{os.environ['PATH']}", "LOG_DIR": f"{folder}/logs"}
    values |= {name: value for name, value in variables.items() if name != "MS_LITE_HOME"}
    done = subprocess.run(["bash", script, *words[1:]], cwd=folder, env={**os.environ, **values}, text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return [json.loads(line) for line in lines]


def check_variables(variables: dict[str, str], block: Block) -> None:
    """Environment variables that a command sets are read somewhere."""
    files = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("src/**/*.py"), ROOT / "ascend310_infer/build.sh"]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    for name in variables:
        assert re.search(rf"\b{name}\b", text), f"{block.place}: {name} is read nowhere"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, Path]:
    """A linked copy with recorders, an export and data folders; and the record."""
    folder = link_repository(tmp_path_factory.mktemp("docs") / "links of it")
    add_export(folder)
    for name in ("camvid", "cityscapes", "mine", "streets"):
        (folder / "data" / name).mkdir(parents=True)
    (folder / "best.ckpt").touch()
    (folder / "export" / "fast_scnn_bs1.om").touch()
    manifest = load_manifest(folder / "export")
    converted = ModelFile("om", "fast_scnn_bs1.om", 1, "0" * 64)
    save_manifest(replace(manifest, models=(*manifest.models, converted)))
    return folder, add_recorder(folder)


def check_block(block: Block, recorded: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Fails if a command of a block could not be meant."""
    folder, record = recorded
    for variables, words in commands(block):
        check_variables(variables, block)
        words = [re.sub(r"(^|=)/data/", r"\1data/", PLACEHOLDERS.get(word, word)) for word in words
                 if PLACEHOLDERS.get(word, word) is not None]
        program = words[0]
        if program in FOREIGN:
            assert block.marker.startswith("needs"), f"{block.place}: {program} needs something"
            words = words[words.index("python"):] if "python" in words else []
        calls = []
        if words and words[0] == "python":
            calls = [words[1:]]
        elif program == "mindseg":
            calls = [["-m", *words]]
        elif program == "bash":
            calls = check_script(variables, words[1:], folder, record)
        elif program == "make":
            targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
            assert set(words[1:]) <= targets
        elif program == "ascend310_infer/out/segment":
            known = (ROOT / "ascend310_infer/src/options.cc").read_text(encoding="utf-8")
            assert words[1] in ("run", "bench", "info", "--help")
            assert all(f'"{word}"' in known for word in words[2:] if word.startswith("--")), words
        else:
            assert program in (*FOREIGN, *HARMLESS), f"{block.place}: {program} is not known here"
        for call in calls:
            start = next((i for i, word in enumerate(call) if word == "-m" or word.endswith(".py")), len(call))
            if start < len(call):
                check_python(call[start:], block, folder, monkeypatch, capsys)


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=place_of)
def test_commands_are_understood(block, recorded, monkeypatch, capsys):
    """Also of the blocks that are executed: this takes no time."""
    for other in blocks(block.page):
        if other.file.endswith(".yaml"):
            (recorded[0] / other.file).write_text(other.text, encoding="utf-8")
    imported = recorded[0] / "mine" / "mine.yaml"       # as mindseg import-labels names it
    imported.parent.mkdir(exist_ok=True)
    text = next(other.text for other in blocks(ROOT / "README.md") if other.file == "mine.yaml")
    imported.write_text(text.replace("_base_: configs", "_base_: ../configs"), encoding="utf-8")
    check_block(block, recorded, monkeypatch, capsys)


@pytest.mark.parametrize("text", [
    "python train.py --config C --sets data.root=D", "python train.py --config C --set data.rot=D", "make tset",
    "python train.py --config configs/none.yaml", "python tools/none.py", "bash scripts/none.sh", "none --help",
    "python eval.py --config C --ckpt_path X --protocol none", "bash scripts/run_eval.sh C", "atc --model=x",
    "bash scripts/run_eval.sh C best.ckpt D 0 --sets x", "NO_SUCH_SWITCH=1 make test"])
def test_wrong_commands_are_found(text, recorded, monkeypatch, capsys):
    block = Block(ROOT / "README.md", 1, "bash", text + "\n", "test: parse")
    with pytest.raises((Exception, pytest.fail.Exception)):
        check_block(block, recorded, monkeypatch, capsys)


# --- pages that are executed ----------------------------------------------------------------------------------------

def run_page(page: Path, folder: Path, markers: tuple[str, ...]) -> None:
    """Executes the blocks of a page in order: writes files, applies patches, runs code and commands.

    Blocks of one language that follow each other are one program, as a reader at one prompt has it.
    """
    group: list[Block] = []
    for block in blocks(page):
        if block.marker not in markers:
            continue
        if group and (block.language != group[0].language or block.file):
            run_group(group, folder)
            group = []
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "diff":
            done = subprocess.run(["git", "apply", "--whitespace=nowarn"], cwd=folder, input=block.text, text=True,
                                  capture_output=True)
            assert done.returncode == 0, f"{block.place}: the patch does not fit any more: {done.stderr}"
        else:
            group.append(block)
    if group:
        run_group(group, folder)


def run_group(group: list[Block], folder: Path) -> None:
    """Runs blocks as one program and compares what each printed with the page."""
    if group[0].language == "python":
        text = "".join(f"{block.text}\nprint({SEPARATOR!r})\n" for block in group)
        (folder / "page.py").write_text(text, encoding="utf-8")
        command = ["python", "-u", "page.py"]
    else:
        text = "set -eo pipefail\n"
        for block in group:
            shell = re.sub(r"(?<=[\s=])/data/", "data/", block.shell)
            text += f"set +e\n{shell}set -e\n" if block.language == "console" else shell
            text += f"printf '%s\\n' {SEPARATOR}\n"
        command = ["bash", "-c", text]
    binaries = folder / ".venv" / "bin"
    values = {"PATH": f"{binaries}:{os.environ['PATH']}", "DEVICE_TARGET": "CPU", "BACKEND": "openvino",
              "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "src")}
    if any("run_infer_310" in block.text or "quickstart" in block.text for block in group):
        values["RUNNER"] = str(build_folder() / "out" / "segment")
        command[-1] = command[-1].replace("ascend310_infer/out/segment", values["RUNNER"])
    done = subprocess.run(command, cwd=folder, env={**os.environ, **values}, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=1200)
    parts = done.stdout.split(f"{SEPARATOR}\n")
    assert done.returncode == 0, f"{group[min(len(parts), len(group)) - 1].place}:\n{done.stdout[-4000:]}"
    for block, printed in zip(group, parts, strict=False):
        check_output(block, printed)


def check_output(block: Block, printed: str) -> None:
    """Every line that the page shows was printed, numbers aside."""
    shown = block.output
    if block.language == "console":
        shown += "".join(f"{line}\n" for line in block.text.splitlines() if not line.startswith("$ "))
    for line in filter(str.strip, shown.splitlines()):
        assert re.search(output_pattern(line), printed), f"{block.place}: not printed: {line}\n{printed[-4000:]}"


@pytest.fixture
def small_copy(tmp_path) -> Path:
    folder = copy_repository(tmp_path / "clone")
    add_small_python(folder)
    add_data(folder)
    return folder


@pytest.mark.parametrize("page", RUN_PAGES, ids=name_of)
def test_page_runs(page, small_copy):
    run_page(page, small_copy, ("test: run",))


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name_of)
def test_page_runs_with_its_slow_blocks(page, small_copy):
    run_page(page, small_copy, ("test: run", "test: run slow"))


def test_the_backend_of_the_architecture_page_compiles(tmp_path):
    """Its syntax and its types, against the runner's headers; the slow test builds the program."""
    build = shutil.which(os.environ.get("CXX", "g++"))
    if build is None:
        pytest.skip("no C++ compiler here, install g++")
    (block,) = [block for block in blocks(ROOT / "docs" / "architecture.md") if block.language == "cpp"]
    (tmp_path / "backend.cc").write_text(block.text, encoding="utf-8")
    done = subprocess.run([build, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                           "-I", ROOT / "ascend310_infer", tmp_path / "backend.cc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
