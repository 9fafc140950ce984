"""Read Markdown pages: blocks with their markers, headings, tables, links.

A fenced block of commands, Python, C++ or a patch has a marker on the line before it:

    <!-- test: run -->         executed by ``make test``, in page order, in a small copy of the repository
    <!-- test: run slow -->    likewise, by ``make test-all``
    <!-- test: parse -->       flags, files, configurations and keys are checked, nothing is executed
    <!-- needs: Ascend -->     (or other hardware or programs) likewise; converters are executed with --dry_run

A ``text`` block behind an executed one is its output, whose numbers may differ and where ``…`` stands for anything.
"""
import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "configs/README.md", ROOT / "weights/README.md",
                ROOT / "ascend310_infer/README.md"])
COMMANDS = ("bash", "sh", "console")
TESTED = (*COMMANDS, "python", "cpp", "diff")
_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
_MARKER = re.compile(r"^\s*<!-- (test: (?:run|run slow|parse)|needs: \S.*?) -->$")
_FILE = re.compile(r"^(?:#|//) file: (\S+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: The file that holds it.
        line: Line of its fence, from 1.
        language: Word behind the fence, or "".
        text: Its content.
        marker: Text of the comment before it, such as ``test: run``; "" without one.
        output: Content of the ``text`` block behind it, or "".
    """
    page: Path
    line: int
    language: str
    text: str
    marker: str
    output: str = ""

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str:
        """The file whose content this is (``# file: NAME`` on its first line), or ""."""
        match = _FILE.match(self.text.split("\n", 1)[0])
        return match[1] if match else ""

    @property
    def shell(self) -> str:
        """The commands without a console's prompts and output."""
        if self.language != "console":
            return self.text
        return "".join(f"{line[2:]}\n" for line in self.text.splitlines() if line.startswith("$ "))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, each with the output that follows it."""
    found: list[Block] = []
    marker, lines = "", page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        match = _FENCE.match(lines[number])
        if match is None:
            if lines[number].strip():
                comment = _MARKER.match(lines[number])
                marker = comment[1] if comment else ""
            number += 1
            continue
        end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
        text = "".join(f"{line.removeprefix(match[1])}\n" for line in lines[number + 1:end])
        if match[2] == "text" and found and is_next(lines, found[-1], number):
            found[-1] = Block(**{**vars(found[-1]), "output": text})
        else:
            found.append(Block(page, number + 1, match[2], text, marker))
        marker, number = "", end + 1
    return found


def is_next(lines: list[str], block: Block, number: int) -> bool:
    """True if only blank lines stand between a block and the fence in line ``number`` (from 0)."""
    end = block.line + block.text.count("\n") + 1
    return block.language in TESTED and not any(line.strip() for line in lines[end:number])


def commands(block: Block) -> list[tuple[dict[str, str], list[str]]]:
    """The commands of a shell block: assignments before each, and its words; without comments and bare assignments."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", block.shell).splitlines():
        words = shlex.split(line, comments=True)
        if words and re.match(r"^[a-z]\w*=", words[0]):
            continue
        for joined, group in itertools.groupby(words, ("&&", "||", "|", ";").__contains__):
            part, variables = list(group), {}
            while part and re.match(r"^[A-Z_]+=", part[0]):
                name, _, variables[name] = part.pop(0).partition("=")
            if part and not joined:
                found.append((variables, part))
    return found


def output_pattern(text: str) -> str:
    """A pattern for an output: numbers may differ, ``…`` is anything, runs of blanks are equal."""
    pattern = re.escape(" ".join(text.split())).replace("…", ".*?").replace(r"\ ", r"\s+")
    return re.sub(r"\d+(?:\\?[.,:]\d+)*(?:e\\?-\d+)?", r"[\\d.,:]+(?:e-?\\d+)?", pattern)


def headings(page: Path) -> list[tuple[int, str]]:
    """Level and text of every heading outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text, re.M)]


def anchors(page: Path) -> set[str]:
    """The anchors that a site makes of the headings: lower case, without punctuation, blanks become dashes."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


def tables(page: Path) -> list[list[list[str]]]:
    """The tables of a page as rows of cells, without the line of dashes."""
    found, rows = [], []
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
        elif rows:
            found.append([row for i, row in enumerate(rows) if i != 1])
            rows = []
    return found


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page, outside of blocks and code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))


def code_words(page: Path) -> list[str]:
    """The words between backquotes in the running text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)
