"""Errors that a user can mend, and how a command line reports them."""
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input or environment. The message is one line: what, where (file, value), and the remedy."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A data set, an image or a label file is wrong."""


def first_line(error: BaseException) -> str:
    """Line of an exception's text that says most; MindSpore's messages run over many, and one may begin with [ERROR].

    Args:
        error: The exception.
    """
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip(" -\t")]
    marked = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    return (marked or lines or [type(error).__name__])[0][:300]


def shorten(value: object, limit: int = 80) -> str:
    """A value as text in quotes on one line, cut to a length, for a message.

    Args:
        value: Anything with a ``repr``.
        limit: Characters to keep.
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit - 3]}..."


def printable(text: str) -> str:
    """A text that any terminal, log or JSON reader takes: bytes of a file name that are not UTF-8 become escapes."""
    return text.encode(errors="backslashreplace").decode()


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a command's ``main`` and exits; a ``UserError`` becomes one line on stderr and status 1.

    Args:
        main: Parses arguments and works; returns the exit status (``None`` means 0).
    """
    sys.stdout.reconfigure(errors="backslashreplace")       # for file names that are not UTF-8
    try:
        status = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except BrokenPipeError:
        status = 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
