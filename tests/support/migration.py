"""Read docs/migration.md and do what its rows say, on small data.

A row promises by code spans, and each span is checked by its form (``KINDS``): a command is run, ``section.key=value``
must stand in the older project's configuration, ``--set …`` must load, a path must exist, and so on. The letters of the
commands (D, RUN, X, M …) are made when a row asks for them, by the commands of the page itself.
"""
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from mindseg.__main__ import COMMANDS, MODULES
from mindseg.compat import get_mode, set_mode
from mindseg.config import Config, load_config, load_schema, parse_override
from mindseg.logs import log
from mindseg.models import create_model
from mindseg.platforms import MODELARTS_FLAGS
from mindseg.runtime import Runtime, set_seed
from tests.goldens import rule
from tests.goldens.rule import GOLDENS
from tests.support import ROOT
from tests.support.distributed import free_port
from tests.support.networks import vgg_state
from tests.support.runner import build_folder
from tools.synthetic import write_street, write_voc, write_voc_lists

PAGE = ROOT / "docs" / "migration.md"
PACKAGE = ROOT / "src" / "mindseg"
SECTIONS = "model|data|loss|optim|train|eval|export|runtime"
LETTERS = "RUN|BINS|RESULT|WORK|OUT|SBD|C|D|X|M|L"
KINDS = {
    "verb": r"mindseg [\w-]+",                                       # a command of the package
    "command": r"([A-Z_]+=\S+ )*(python|mindseg|bash|mpirun|tail|ascend310_infer/out/segment) .+",
    "option": r"--set .+",                                          # must load
    "flag": r"--\w+( \S+)?",                                        # some program has it
    "line": rf"({SECTIONS})\.\w+=.+",                               # stands in the configuration C
    "key": rf"({SECTIONS})\.(?!py\b)\w+",                           # exists
    "variable": r"[A-Z_]+=\S+",                                     # some script reads it
    "made": rf"({LETTERS})/\S+",                                    # is there after the commands
    "call": r"create_model\(.+\)",                                  # makes a network
    "path": r"[\w.]*/[\w./*-]+|[\w-]+\.(py|md|txt)|LICENSE",        # exists in the repository
    "name": r"[A-Za-z]\w+",                                         # of the Python interface
}


@dataclass(frozen=True)
class Row:
    """One promise: its id, what stood in the older project, what takes its place, and the state."""
    id: str
    old: str
    new: str
    state: str

    @property
    def project(self) -> str:
        """Which table: FS, FG, FC, EN or BS."""
        return self.id[:2]

    @property
    def spans(self) -> list[str]:
        """The code of the third column, commands first: other spans speak of what they leave."""
        return sorted(re.findall(r"`([^`]+)`", self.new), key=lambda span: kind_of(span) != "command")


def kind_of(span: str) -> str:
    """Return the kind of a code span by its form; "" if it cannot be checked."""
    return next((kind for kind, form in KINDS.items() if re.fullmatch(form, span)), "")


def read_rows() -> list[Row]:
    """Every row of the page that has an id."""
    lines = re.findall(r"^\| ([A-Z]{2}-\d\d) \| (.*) \| (.*) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return [Row(*line) for line in lines]


def read_file_tables() -> list[str]:
    """Our side of the tables of files."""
    cells = re.findall(r"^\| `.* \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return [span for cell in cells for span in re.findall(r"`([^`]+)`", cell) if kind_of(span) == "path"]


# What makes the work of each project small: given before the row's own --set, which win, and FORCED after them.
# PyNative saves most of the time, which is compilation; the other tests run graphs.
SMALL = {"data.num_workers": 1, "data.crop_size": [64, 64], "train.global_batch": 2, "train.steps": 2,
         "train.log_interval": 1, "train.save_interval_epochs": 1, "train.save_interval_steps": 1,
         "train.eval_start": 1, "train.eval_interval": 1, "eval.scales": [1.0], "runtime.threads": 1,
         "runtime.mode": "pynative"}
FORCED = {"export.height": 64, "export.width": 128}
PROJECTS = {
    "FS": ("configs/fast_scnn/fast_scnn_cityscapes_modelzoo.yaml",
           {"eval.resize": "{rule: short_side, size: 64, center_crop: [64, 64]}"}),
    "FG": ("configs/fast_scnn/fast_scnn_cityscapes.yaml", {}),
    "FC": ("configs/fcn8s/fcn8s_voc_modelzoo.yaml",
           {"train.steps": 1, "model.fc_channels": 16, "train.amp_level": "O0",
            "eval.resize": "{rule: long_side, size: 64, pad: true}"}),
    "EN": ("configs/enet/enet_cityscapes_staged.yaml",
           {"train.steps": 1, "data.resize": [64, 64], "eval.resize": "{rule: exact, size: [64, 128]}"}),
    "BS": ("configs/bisenetv2/bisenetv2_cityscapes_modelzoo.yaml", {"model.head_channels": 32, "eval.resize": "null"}),
}
# In the place of msrun: print the command and end.
NO_MSRUN = 'setsid() { printf "%s\\n" "$@"; }\n'
NPU_SMI = '#!/bin/bash\necho "| 0       310P3     | OK              | 15.8         42                0    / 0   |"\n'


def as_words(settings: dict) -> list[str]:
    """``--set`` words of a command line."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


class Bench:
    """One project: its configuration, and a folder in which letters and results appear.

    Args:
        project: FS, FG, FC, EN or BS.
        folder: Work folder.
        rows: All rows of the page; their commands make the letters.
    """

    def __init__(self, project: str, folder: Path, rows: list[Row]) -> None:
        self.project, self.folder = project, folder
        config, more = PROJECTS[project]
        self.config = ROOT / config
        self.recipe = load_config(self.config)
        self.small = SMALL | more
        own_first = sorted(rows, key=lambda row: row.project != project)
        self.commands = [span for row in own_first for span in row.spans if kind_of(span) == "command"]
        self.letters: dict[str, Path] = {"C": self.config}
        self.done: dict[str, tuple[str, Path]] = {}     # command -> what it printed, its folder
        self.out = folder                               # folder of the last command
        folder.mkdir()

    # What a span says, by its form.

    def check(self, span: str) -> None:
        """Do what a span says, or compare it with the code; fail if it is not true."""
        getattr(self, f"check_{kind_of(span)}")(span)

    def check_command(self, span: str) -> None:
        self.run(span)

    def check_verb(self, span: str) -> None:
        assert span.split()[1] in COMMANDS, span

    def check_option(self, span: str) -> None:
        words = shlex.split(span)
        assert set(words[0::2]) == {"--set"}, span
        load_config(self.config, words[1::2])

    def check_flag(self, span: str) -> None:
        flag = span.split()[0]
        programs = [*PACKAGE.glob("commands/*.py"), *ROOT.glob("tools/*.py"),
                    ROOT / "ascend310_infer" / "src" / "options.cc"]
        assert flag[2:] in MODELARTS_FLAGS or any(f'"{flag}"' in path.read_text() for path in programs), span

    def check_line(self, span: str) -> None:
        section, key, value = parse_override(span, load_schema())
        assert self.recipe[section][key] == value, f"{self.config}: {section}.{key} = {self.recipe[section][key]}"

    def check_key(self, span: str) -> None:
        section, key = span.split(".")
        assert key in load_schema()[section], span

    def check_variable(self, span: str) -> None:
        programs = [*ROOT.glob("scripts/*.sh"), PACKAGE / "runtime.py", PACKAGE / "platforms.py"]
        assert any(re.search(rf"\b{span.partition('=')[0]}\b", path.read_text()) for path in programs), span

    def check_made(self, span: str) -> None:
        letter, _, rest = span.partition("/")
        assert list(self.letter(letter).glob(rest)), f"{self.letter(letter)} has no {rest}"

    def check_call(self, span: str) -> None:
        narrow = {"fc_channels": 16} if "fcn8s" in span else {}     # its 4096 channels are half a gigabyte
        assert eval(span, {"create_model": lambda *words, **options: create_model(*words, **options, **narrow)})

    def check_path(self, span: str) -> None:
        assert list(ROOT.glob(span)), span

    def check_name(self, span: str) -> None:
        homes = ("config", "data.loader", "models", "losses", "optim", "engine.trainer")
        assert any(hasattr(importlib.import_module(f"mindseg.{home}"), span) for home in homes), span

    # The letters and files of the commands.

    def letter(self, name: str) -> Path:
        """Return the path of a letter or of a file that a command names; make it if it is missing."""
        if name == "OUT":
            return self.out
        if name not in self.letters:
            self.letters[name] = getattr(self, f"make_{name.split('.')[0]}", lambda: self.make_by_output(name))()
        return self.letters[name]

    def make_by_output(self, name: str) -> Path:
        """Run the first command of the page that writes a letter; the project's own commands come first."""
        self.run(next(command for command in self.commands if re.search(rf" --output {name}\b", command)))
        return self.place(name)

    def place(self, name: str) -> Path:
        """Return the path at which a command writes a letter."""
        return {"OUT": self.out, "X": self.folder / "X.ckpt", "L": self.folder / "made_list.txt"}.get(
            name, self.folder / name)

    def make_D(self) -> Path:
        """One epoch of training images, and a few others."""
        root = self.folder / "data set"
        counts = {"train": self.small["train.steps"] * self.small["train.global_batch"], "val": 3, "test": 2}
        write = write_voc if self.project == "FC" else write_street
        for split, count in counts.items():
            for index in range(count):
                write(root, 1, split, index, 64, 128)
        if self.project == "FC":
            write_voc_lists(root, counts)
        return root

    def make_L(self) -> Path:
        """A list of names for VOC, of pairs for Cityscapes."""
        root = self.letter("D")
        if self.project == "FC":
            return root / "ImageSets" / "Segmentation" / "train.txt"
        lines = []
        for image in sorted(root.glob("leftImg8bit/train/*/*.png")):
            path = image.relative_to(root).as_posix()
            label = path.replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds")
            lines.append(f"{path}\t{label}\n")
        (root / "train.lst").write_text("".join(lines))
        return root / "train.lst"

    def make_SBD(self) -> Path:
        """An archive with one image that is new and one that VOC's val holds."""
        import scipy.io
        folder, voc = self.folder / "benchmark_RELEASE" / "dataset", self.letter("D")
        for name in ("cls", "img"):
            (folder / name).mkdir(parents=True)
        val = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[0]
        for name in ("2008_000001", val):
            scipy.io.savemat(folder / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": np.ones((64, 128), np.uint8)}})
            shutil.copy(voc / "JPEGImages" / f"{val}.jpg", folder / "img" / f"{name}.jpg")
        (folder / "train.txt").write_text(f"2008_000001\n{val}\n")
        (folder / "val.txt").write_text("")
        return folder.parent

    def make_RUN(self) -> Path:
        """A training with evaluation, and afterwards an evaluation that writes into its folder."""
        train = next(command for command in self.commands if "--run_eval" in command)
        self.run(train)
        (config,) = self.done[train][1].glob("runs/*/*/config.yaml")
        self.letters["RUN"] = config.parent
        evals = [c for c in self.commands if c.startswith("python eval.py --config C ") and "--output" not in c
                 and "s3://" not in c]
        self.run(next((command for command in evals if "--report" in command), evals[0]))
        return config.parent

    def make_X(self) -> Path:
        """The converted weights of the guide; the best checkpoint of a run of the others."""
        if self.project == "FG":
            return self.make_by_output("X")
        last_stage = "stage3" if self.project == "EN" else ""
        return self.letter("RUN") / last_stage / "ckpt" / "best.ckpt"

    def make_WORK(self) -> Path:
        script = next(command for command in self.commands if command.startswith("bash scripts/run_infer_310.sh"))
        self.run(script)
        return self.done[script][1]

    def make_fast_scnn_segmentron(self) -> Path:
        return save_torch(self.folder / "fast_scnn_segmentron.pth", rule.state_dict(GOLDENS / "fast_scnn_segmentron"))

    def make_vgg16_bn(self) -> Path:
        return save_torch(self.folder / "vgg16_bn.pth", vgg_state(np.random.default_rng(1)))

    def make_fusion_switch(self) -> Path:
        path = self.folder / "fusion_switch.cfg"
        path.write_text("ConvBatchnormFusionPass:off\n")
        return path

    # Commands.

    def run(self, command: str) -> str:
        """Run a command of the page once; return what it printed. It must succeed."""
        if command not in self.done:
            out = self.folder / f"out{len(list(self.folder.glob('out*')))}"
            out.mkdir()
            words = shlex.split(command)
            variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            words = [self.fill(word, before, out) for before, word in zip(["", *words], words, strict=False)
                     if not re.match(r"[A-Z_]+=", word)]
            self.done[command] = self.dispatch(words, variables, out), out
        printed, self.out = self.done[command]
        return printed

    def fill(self, word: str, before: str, out: Path) -> str:
        """Put paths for the letters of a word."""
        def path(match: re.Match) -> str:
            name = match[2]
            written = name == "OUT" or before == "--output"
            return match[1] + str(out if name == "OUT" else self.place(name) if written else self.letter(name))

        if word in ("fast_scnn_segmentron.pth", "vgg16_bn.pth", "fusion_switch.cfg"):
            return str(self.letter(word))
        return re.sub(rf"(^|=)({LETTERS})(?=/|$)", path, word)

    def dispatch(self, words: list[str], variables: dict[str, str], out: Path) -> str:
        """Find out how a command can be run here."""
        settings = self.small | {"runtime.output_dir": out / "runs"}
        if words[0] == "mindseg":
            return run_python(words[1], words[2:])
        if words[0] == "python":
            small, forced = (as_words(settings), as_words(FORCED)) if "--config" in words else ([], [])
            small, forced = ([], []) if words[1].startswith("tools/") else (small, forced)
            with self.bucket(any("s3://" in word for word in words)):
                return run_python(words[1], [*small, *words[2:], *forced])
        if words[0] == "mpirun":
            return parse_train(words[words.index("train.py") + 1:])
        if words[0] == "tail":
            return Path(words[2]).read_text()
        if words[0] == "ascend310_infer/out/segment":
            return run_shell([build_folder() / "out" / "segment", *words[1:]])
        if words[1] == "ascend310_infer/build.sh":
            return str(build_folder())
        return self.run_script(words, variables, out, settings)

    def run_script(self, words: list[str], variables: dict[str, str], out: Path, settings: dict) -> str:
        """Run one of scripts/, with what stands in for msrun and for programs of CANN."""
        name = words[1]
        env = {"DEVICE_TARGET": "CPU", "PYTHON": sys.executable, "OUTPUT": str(out),
               "RUNNER": str(build_folder() / "out" / "segment") if "infer" in name else "", **variables}
        if "distribute" in name:
            (self.folder / "no_msrun.sh").write_text(NO_MSRUN)
            printed = run_shell(words, {"MASTER_PORT": str(free_port())} | env | {
                "BASH_ENV": str(self.folder / "no_msrun.sh"), "LOG_DIR": str(out)})
            lines = printed.splitlines()
            assert f"--worker_num={words[3]}" in lines
            return parse_train(lines[lines.index(str(ROOT / "train.py")) + 1:])
        if "convert_om" in name:
            assert "--dry_run" in words, words
            (out / "npu-smi").write_text(NPU_SMI)
            (out / "npu-smi").chmod(0o755)
            return run_shell(words, env | {"PATH": f"{out}:{os.environ['PATH']}"})
        if "train" in name or "eval" in name:
            first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
            words = [*words[:first], *as_words(settings), *words[first:]]
        return run_shell(words, env)

    @contextmanager
    def bucket(self, needed: bool) -> Iterator[None]:
        """A stand-in for ModelArts' package moxing, whose bucket holds data and a checkpoint; results must come out."""
        if not needed:
            yield
            return
        store = self.folder / "bucket"
        if not store.exists():
            shutil.copytree(self.letter("D"), store / "data")
            shutil.copy(self.letter("X"), store / "best.ckpt")

        def local(url: str) -> Path:
            return store / url.removeprefix("s3://bucket/") if url.startswith("s3://") else Path(url)

        moxing = types.ModuleType("moxing")
        moxing.file = types.SimpleNamespace(
            is_directory=lambda url: local(url).is_dir(),
            copy=lambda source, target: shutil.copy(local(source), local(target)),
            copy_parallel=lambda source, target: shutil.copytree(local(source), local(target), dirs_exist_ok=True))
        cache = {"MODELARTS_CACHE": str(self.folder / "cache")}
        with mock.patch.dict(sys.modules, {"moxing": moxing}), mock.patch.dict(os.environ, cache):
            yield
        results = [path for name in ("out", "results") for path in (store / name).glob("*/*/*.*")]
        assert {"config.yaml", "eval.json"} & {path.name for path in results}
        for name in ("out", "results"):
            shutil.rmtree(store / name, ignore_errors=True)


def save_torch(path: Path, state: dict[str, np.ndarray]) -> Path:
    """A ``.pth`` file; without PyTorch an ``.npz`` of that content."""
    try:
        import torch
    except ImportError:
        np.savez(path.with_suffix(".npz"), **state)
        return path.with_suffix(".npz")
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, path)
    return path


def run_shell(words: list, env: dict[str, str] | None = None) -> str:
    """Run a command in a process of its own. A device that is not here must be refused in one line."""
    env = {key: value for key, value in (env or {}).items() if value}
    done = subprocess.run([str(word) for word in words], cwd=ROOT, env=os.environ | env, capture_output=True, text=True,
                          timeout=600, check=False)
    if env.get("DEVICE_TARGET", "CPU") != "CPU" and "distribute" not in str(words[1]):
        assert done.returncode == 1
        assert re.search(rf"error: runtime\.device_target = {env['DEVICE_TARGET']}: (device 0 cannot be used|no Ascend "
                         r"device on this machine)", done.stderr), done.stderr
    else:
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def this_process(cfg_runtime: Config, training: bool = False) -> Runtime:
    """In the place of ``setup_runtime``, which wants a process in which no kernel has run."""
    set_mode(cfg_runtime.mode)
    set_seed(cfg_runtime.seed)
    return Runtime("CPU", 0)


def command_module(script: str) -> types.ModuleType:
    """The module behind ``train.py``, ``tools/x.py`` or the ``mindseg`` command ``check-dataset``."""
    name, home = Path(script).stem.replace("-", "_"), Path(script).parent.name
    return importlib.import_module(f"{home}.{name}" if home else f"mindseg.commands.{MODULES.get(name, name)}")


def run_python(script: str, words: list[str]) -> str:
    """Run a root verb, a command or a tool in this process; return what it printed."""
    module = command_module(script)
    runtime = mock.patch.object(module, "setup_runtime", this_process) if hasattr(module, "setup_runtime") else \
        nullcontext()
    printed, mode = io.StringIO(), get_mode()
    try:
        with mock.patch.object(sys, "argv", [script, *words]), runtime, redirect_stdout(printed):
            assert not module.main(), printed.getvalue()
    finally:
        set_mode(mode)
        for handler in list(log.handlers):      # they write into the captured output and the run folder
            log.removeHandler(handler)
            handler.close()
    return printed.getvalue()


def parse_train(words: list[str]) -> str:
    """Check the command line of a training without running it."""
    train = command_module("train.py")
    with mock.patch.object(sys, "argv", ["train.py", *words]):
        args = train.parse_args()
    load_config(args.config, args.set)
    return shlex.join(words)
