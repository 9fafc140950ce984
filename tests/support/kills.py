"""Programs that are killed, or whose disk is full, while they replace an old result by a new one."""
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support import ROOT

TIMEOUT = 120       # seconds; a guard against hanging


@dataclass
class Writer:
    """A program that writes, with two inputs, so that its old and its new result differ.

    Attributes:
        command: Command line that writes the result of input ``old`` or ``new`` into a folder.
        check: Asserts that a folder holds whole results; gets the folder and the undisturbed folders ``old`` and
            ``new``.
        same: Asserts that a folder holds the new result and nothing else of this program.
        status: Exit statuses of a run that was not disturbed.
    """
    command: Callable[[str, Path], list]
    check: Callable[[Path, Path, Path], None]
    same: Callable[[Path, Path], None]
    status: tuple[int, ...] = (0,)


def run(command: list) -> subprocess.CompletedProcess:
    """Run a program to its end."""
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT,
                          check=False)


def python(*words: object) -> list:
    """Command line of a module or script in this Python."""
    return [sys.executable, *words]


def snapshot(folder: Path) -> frozenset:
    """Names, sizes and times of all files below a folder."""
    found = set()
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                facts = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            found.add((path, name, facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return frozenset(found)


def watch(command: list, folder: Path, seconds: float | None = None, changes: int | None = None) -> tuple[float, int]:
    """Run a program and kill it after a time or a number of changes in a folder, whichever comes.

    Returns:
        Seconds it ran, and changes that were seen.
    """
    seen, before, started = 0, snapshot(folder), time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    try:
        while process.poll() is None:
            now = snapshot(folder)
            seen, before = seen + (now != before), now
            elapsed = time.perf_counter() - started
            if elapsed > (TIMEOUT if seconds is None else seconds) or (changes is not None and seen >= changes):
                break
            time.sleep(0.0005)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return time.perf_counter() - started, seen


def undisturbed(writer: Writer, root: Path) -> tuple[Path, Path, float, int]:
    """Results ``old`` and ``new`` of runs that nobody disturbed, and time and changes of replacing one by the other."""
    for name in ("old", "new"):
        done = run(writer.command(name, root / name))
        assert done.returncode in writer.status, done.stderr
    measured = root / "measured"
    shutil.copytree(root / "old", measured, symlinks=True)
    seconds, changes = watch(writer.command("new", measured), measured)
    writer.same(measured, root / "new")
    return root / "old", root / "new", seconds, changes


def kill_and_repeat(writer: Writer, root: Path, rng: np.random.Generator, count: int) -> None:
    """Kill the program at ``count`` random moments, half of them at a change of its folder; then run it to its end."""
    old, new, seconds, changes = undisturbed(writer, root)
    for number in range(count):
        folder = root / f"killed{number}"
        shutil.copytree(old, folder, symlinks=True)
        moment = {"seconds": rng.uniform(0, seconds)}
        if number % 2 == 0:
            moment = {"changes": int(rng.integers(1, changes + 1))}
        watch(writer.command("new", folder), folder, **moment)
        left = sorted(path.name for path in folder.rglob("*"))
        print(f"killed at {moment} of {seconds:.2f} s and {changes} changes: {left}")
        writer.check(folder, old, new)
        done = run(writer.command("new", folder))
        assert done.returncode in writer.status, done.stderr
        writer.same(folder, new)
        shutil.rmtree(folder)


def fill_and_repeat(writer: Writer, root: Path, disk: Path, steps: int) -> None:
    """Run the program on a disk with too little room, in growing steps; then with room enough.

    Args:
        writer: Program.
        root: Folder for the undisturbed results.
        disk: Empty file system.
        steps: Number of sizes to try, from nothing to as much as the result takes.
    """
    old, new, _, _ = undisturbed(writer, root)
    need = sum(path.stat().st_size for path in new.rglob("*") if path.is_file() and not path.is_symlink())
    for number in range(steps):
        folder = disk / f"full{number}"
        shutil.copytree(old, folder, symlinks=True)
        ballast = disk / "ballast"
        with open(ballast, "wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(disk).free - need * number // steps))
        done = run(writer.command("new", folder))
        shown = f"{need * number // steps} of {need} bytes free\n{done.stdout}\n{done.stderr}"
        assert done.returncode >= 0, shown
        assert "Traceback" not in done.stdout + done.stderr, shown
        if done.returncode not in writer.status:
            assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, shown
        writer.check(folder, old, new)
        ballast.unlink()
        done = run(writer.command("new", folder))
        assert done.returncode in writer.status, done.stderr
        writer.same(folder, new)
        shutil.rmtree(folder)
