"""Checks what a device computes and how fast, in under ten minutes, and writes one file to send back.

The file holds versions, chip and findings, but no names of users, hosts or folders. Without a card the CPU is checked.
"""
import getpass
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import mindspore as ms

from mindseg import chips
from mindseg.commands.arguments import create_parser
from mindseg.config import load_config
from mindseg.engine.doctor import CHECKS, FAIL, IMPOSSIBLE, Finding, Machine, impossible, run_check, training_losses
from mindseg.errors import UserError
from mindseg.files import write_json
from mindseg.outputs import check_new
from mindseg.runtime import configured_device, setup_runtime
from mindseg.version import __version__

EXAMPLES = """examples:
  mindseg doctor
  mindseg doctor --set runtime.device_id=3 --set runtime.hf32=true --output card3.json
  msrun --worker_num=8 --local_worker_num=8 --join=True python -m mindseg doctor --output cards.json
"""
PROGRAM = [sys.executable, "-m", "mindseg"]
SECONDS = 580.0             # of all checks
CHECK_SECONDS = 200.0       # of one, with the start of its process and the compilation
REFERENCE = "reference"     # what the process is asked for that computes the CPU's losses
CANN_FOLDERS = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")      # variables that CANN's set_env.sh sets
CANN_FILES = ("*/ascend_toolkit_install.info", "compiler/version.info", "version.info")
DRIVER = Path("/usr/local/Ascend/driver/version.info")


def main() -> int:
    """Runs the checks, each in a process of its own, writes the file and prints a table."""
    parser = create_parser(__doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, default=Path("doctor.json"), help="file to write (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="overrides a configuration key, such as runtime.device_id; repeatable")
    internal = parser.add_argument_group("used by this command itself")
    internal.add_argument("--checks", nargs="+", help="checks to run in this process")
    internal.add_argument("--result", type=Path, help="file for their findings")
    internal.add_argument("--reference", nargs="*", type=float, help="losses of the CPU")
    args = parser.parse_args()
    if args.checks:
        work(args.checks, args.result, args.set, args.reference)
        return 0
    cfg = load_config("defaults", args.set)
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        setup_runtime(cfg.runtime)      # does not return before the job ends
        return 0
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        raise UserError("OMPI_COMM_WORLD_SIZE is set: processes of mpirun cannot share a report; start them with msrun")
    job = "MS_ROLE" in os.environ
    machine = Machine(configured_device(cfg.runtime), chips.installed_chip(), tuple(args.set),
                      int(os.environ["MS_WORKER_NUM"]) if job else 1, int(os.environ.get("RANK_ID", "0")) if job else 0)
    if machine.rank > 0:
        run_process(names_for(machine), machine, SECONDS)
        return 0
    check_new(args.output, args.overwrite)
    start = time.perf_counter()
    findings = examine(machine)
    checks = [{"name": name, "risk": CHECKS[name].risk, **asdict(found)} for name, found in findings.items()]
    report = {"machine": describe(machine), "seconds": time.perf_counter() - start, "checks": checks}
    write_json(args.output, {"versions": versions(), **without_names(report)})
    if machine.target == "CPU":
        print("No Ascend was used: the findings are about this CPU, and say nothing of a chip.")
    print(f"{args.output}: written, to send back")
    return 1 if any(found.status == FAIL for found in findings.values()) else 0


def work(names: Sequence[str], result: Path, settings: Sequence[str], reference: Sequence[float] | None) -> None:
    """Runs checks in this process, and writes the findings after each, in case the next one ends the process.

    Args:
        names: Keys of ``CHECKS``, or ``REFERENCE`` alone.
        result: File to write.
        settings: ``section.key=value`` texts.
        reference: Losses of the CPU.
    """
    runtime = setup_runtime(load_config("defaults", settings).runtime)
    machine = Machine(runtime.device_target, chips.installed_chip(), tuple(settings), runtime.size, runtime.rank,
                      tuple(reference or ()))
    found: dict[str, Any] = {}
    for name in names:
        found[name] = training_losses(machine) if name == REFERENCE else asdict(run_check(name, machine))
        write_json(result, found)


def names_for(machine: Machine) -> list[str]:
    """Names of the checks that are possible on a machine."""
    return [name for name, check in CHECKS.items() if not impossible(check, machine)]


def examine(machine: Machine) -> dict[str, Finding]:
    """Runs all checks and prints a line for each.

    Each has a process of its own, which may crash. Those of several devices share one, because a process joins the
    others only once.

    Args:
        machine: This machine.
    """
    end, findings = time.monotonic() + SECONDS, {}
    for name, check in CHECKS.items():
        if reason := impossible(check, machine):
            findings[name] = Finding(IMPOSSIBLE, note=reason)
        elif name not in findings:
            names = [name] if machine.size == 1 else names_for(machine)
            findings |= examine_together(names, machine, end - time.monotonic())
        print(table_row(name, findings[name]), flush=True)
    return findings


def examine_together(names: list[str], machine: Machine, seconds: float) -> dict[str, Finding]:
    """Runs checks in one other process; what it does not deliver has failed.

    Args:
        names: Keys of ``CHECKS``.
        machine: This machine.
        seconds: Time that is left.
    """
    if seconds <= 0:
        return {name: Finding(IMPOSSIBLE, note="the time for all checks was over") for name in names}
    start, reference = time.monotonic(), []
    if "training" in names:
        found, reason = run_process([REFERENCE], replace(machine, target="CPU"), min(seconds, CHECK_SECONDS))
        reference = found.get(REFERENCE) or []
        if not reference or None in reference:
            return {"training": Finding(FAIL, note=f"no losses of the CPU to compare with: {reason or 'an overflow'}")}
    found, reason = run_process(names, machine, min(seconds + start - time.monotonic(), CHECK_SECONDS), reference)
    missing = Finding(FAIL, note=reason, seconds=time.monotonic() - start)
    return {name: Finding(**found[name]) if name in found else missing for name in names}


def run_process(names: Sequence[str], machine: Machine, seconds: float,
                reference: Sequence[float] = ()) -> tuple[dict, str]:
    """Runs checks in another process.

    Args:
        names: As in :func:`work`.
        machine: This machine; its target and settings are passed on.
        seconds: Time after which the process is ended.
        reference: As there.

    Returns:
        What it wrote by name, and why there is not more; empty if there is all.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder) / "result.json", Path(folder) / "output.txt"
        words = [*(word for text in machine.settings for word in ("--set", text)), "--result", result,
                 "--reference", *reference, "--checks", *names]
        with open(output, "wb") as stream:
            process = subprocess.Popen([*PROGRAM, "doctor", *map(str, words)], stdout=stream, stderr=stream,
                                       start_new_session=True, env={**os.environ, "DEVICE_TARGET": machine.target})
        try:
            process.wait(timeout=max(seconds, 1))
            reason = last_words(process.returncode, output) if process.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"no result within {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):      # processes that compile kernels may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    return found, reason


def last_words(code: int, output: Path) -> str:
    """Reason for the end of a process: signal or status, and the line of its output that says most.

    Args:
        code: Its exit status, below 0 for a signal.
        output: File with what it printed.
    """
    ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    text = output.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return ": ".join([ending, *(errors or lines)[-1:]])[:400]


def table_row(name: str, found: Finding) -> str:
    """One line about a finding, and a second one for a note beside a value.

    Args:
        name: Key of ``CHECKS``.
        found: Its finding.
    """
    value = ", ".join(f"{key} {number:.4g}" if isinstance(number, float) else f"{key} {number}"
                      for key, number in found.value.items())
    line = f"{found.status:<18}{name:<24}{value or found.note}" + (f"  ({found.expected})" if found.expected else "")
    return line + (f"\n{'':<42}{found.note}" if value and found.note else "")


def describe(machine: Machine) -> dict[str, object]:
    """Chip and processors."""
    try:
        soc = chips.soc_from_npu_smi()
    except UserError:
        soc = "unknown" if chips.has_driver() else "none"
    return {"device": machine.target, "devices": machine.size, "soc": soc, "system": platform.system(),
            "processor": platform.machine(), "cores": len(os.sched_getaffinity(0)), "settings": machine.settings}


def versions() -> dict[str, str]:
    """Versions of everything that takes part; empty texts for what cannot be read."""
    cann = [path for name in CANN_FOLDERS if name in os.environ for pattern in CANN_FILES
            for path in Path(os.environ[name]).glob(pattern)]
    return {"mindseg": __version__, "mindspore": ms.__version__, "cann": _read_version(cann),
            "driver": _read_version([DRIVER]), "python": platform.python_version(), "numpy": np.__version__}


def _read_version(paths: list[Path]) -> str:
    """Version in the first of some files that has one, such as ``Version=25.2.0``."""
    for path in paths:
        with suppress(OSError, UnicodeError):
            if match := re.search(r"(?im)^\s*version\s*=\s*([\w.-]+)", path.read_text(encoding="utf-8")):
                return match[1]
    return ""


def without_names(tree: Any) -> Any:
    """A report without paths, addresses, and names of user and host; paths to files keep the file's name.

    Args:
        tree: Dicts, lists, texts and numbers.
    """
    if isinstance(tree, dict):
        return {key: without_names(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_names(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    text = re.sub(r"(?<![\w.])~?/(?:[^\s/'\":,]+/)*([^\s/'\":,]*)", _last_part, tree)
    text = re.sub(r"\d{1,3}(?:\.\d{1,3}){3}", "<address>", text)
    for name, stands_for in ((socket.gethostname(), "<host>"), (_user(), "<user>")):
        if name:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stands_for, text)
    return text


def _last_part(path: re.Match) -> str:
    """Name of a file, but not of a folder, which could be that of a user."""
    return f".../{path[1]}" if re.search(r"\.\w{1,6}$", path[1]) else "<path>"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):     # no name for this number
        return ""
