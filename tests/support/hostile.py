"""Checks for hostile input: one line that names the file, no traceback, no signal, nothing left behind."""
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from mindseg.errors import UserError
from tests.support import ROOT

Content = TypeVar("Content")
TIMEOUT = 60        # seconds; a guard against hanging, not a limit on speed
SEED, MINUTES = "MINDSEG_TEST_SEED", "MINDSEG_MUTATION_MINUTES"
EXAMPLES_PER_MINUTE = 35000
# Pieces that YAML, JSON and number readers give a meaning to.
EDITS = ["", *"\n\r\t\0:-?,[]{}#&*!|>'\"%@`~=<.\\", " ", "  ", ": ", "- ", "? ", " #", "---\n", "...\n", "null", "true",
         "yes", "0", "-1", "1e9", "1e400", ".inf", ".nan", "0x_", "1_0", "1:1", "9" * 30, "2024-13-45", "&a ", "*a",
         "<<: ", "!!int ", "! ", "\"\\x41\"", "\ufeff", "\x85", "\u2028", "\uffff", "é", "\U0001f600", "../", "/"]


def register_profiles() -> None:
    """Chooses the examples of Hypothesis.

    The fast profile draws the same few in every run. With ``MINDSEG_MUTATION_MINUTES`` above 0 each test draws about
    as many as fit into these minutes, fresh ones if ``MINDSEG_TEST_SEED`` is ``random`` or the number of a run.
    """
    checks = list(HealthCheck)
    settings.register_profile("fast", max_examples=60, derandomize=True, deadline=None, database=None,
                              suppress_health_check=checks)
    minutes = float(os.environ.get(MINUTES, "0"))
    settings.register_profile("nightly", max_examples=max(int(minutes * EXAMPLES_PER_MINUTE), 1), deadline=None,
                              derandomize=SEED not in os.environ, database=None, print_blob=True,
                              suppress_health_check=checks)
    settings.load_profile("nightly" if minutes > 0 else "fast")


def mutation_timeout() -> float:
    """Seconds for a process that makes all mutations of a test: a guard against hanging."""
    return TIMEOUT * (1 + 2 * float(os.environ.get(MINUTES, "0")))


def mutation_count(fast: int, per_minute: int) -> int:
    """Number of mutations that a test makes: ``fast`` in every run, and more with ``MINDSEG_MUTATION_MINUTES``.

    Args:
        fast: Mutations in the fast suite.
        per_minute: Mutations that take about a minute.
    """
    return fast + round(per_minute * float(os.environ.get(MINUTES, "0")))


def check_refused(read: Callable[[], object], *words: object) -> str:
    """Asserts that a reader refuses its input with a ``UserError`` of one line; returns the message.

    Args:
        read: Calls the reader.
        *words: Texts that the message must contain, such as the name of the file.
    """
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 1000, message
    for word in words:
        assert str(word) in message, message
    return message


def read_if_sound(read: Callable[[Path], Content], path: Path) -> Content | None:
    """Content of a file that may be sound or not; None if the reader refuses it, in one line that names the file.

    Args:
        read: Reader.
        path: The file.
    """
    try:
        return read(path)
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def files_below(folder: Path) -> dict[str, bytes | None]:
    """Content of all files below a folder by relative name; None for folders, links as their target."""
    content: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            content[str(path.relative_to(folder))] = os.fsencode(os.readlink(path))
        else:
            content[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return content


def run_program(*words: object, cwd: Path | None = None, stdin: bytes | None = None,
                env: dict[str, str] | None = None, timeout: float = TIMEOUT) -> subprocess.CompletedProcess:
    """Runs ``python -m mindseg WORDS`` (or another program, if the first word is an absolute path) with a time limit.

    Output that is not UTF-8 is kept readable with backslashes.
    """
    first = Path(str(words[0]))
    command = [str(word) for word in words] if first.is_absolute() else [sys.executable, "-m", "mindseg",
                                                                        *map(str, words)]
    return subprocess.run(command, cwd=cwd or ROOT, input=stdin, capture_output=True, timeout=timeout, check=False,
                          text=stdin is None, errors=None if stdin is not None else "backslashreplace",
                          env={**os.environ, **(env or {})})


def check_program_refuses(done: subprocess.CompletedProcess, *words: object, status: int = 1) -> str:
    """Asserts that a program ended with one ``error:`` line that contains ``words``; returns the line.

    Args:
        done: The finished program.
        *words: Texts that the line must contain.
        status: Exit status that it must have: never a signal.
    """
    shown = f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == status, shown
    assert "Traceback" not in done.stdout + done.stderr, shown
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, shown
    for word in words:
        assert str(word) in lines[0], shown
    return lines[0]


def mutations(texts: SearchStrategy[str]) -> SearchStrategy[str]:
    """Texts with up to six edits: characters of a dialect put in, taken out, doubled or exchanged.

    Args:
        texts: Sound texts to start from.
    """
    edit = st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(EDITS))

    def change(text: str, edits: list[tuple[float, int, str]]) -> str:
        for place, length, piece in edits:
            start = int(place * len(text))
            text = text[:start] + piece + text[start + length:]
        return text

    return st.builds(change, texts, st.lists(edit, min_size=1, max_size=6))
