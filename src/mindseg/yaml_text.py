"""YAML texts from outside: regular files only, bounded in size, depth and number of values."""
import re
from pathlib import Path
from typing import Any

import yaml

from mindseg.errors import UserError, shorten
from mindseg.files import check_regular

# Limits of the C++ reader of manifests too (ascend310_infer/src/manifest.cc).
LARGEST_FILE = 1 << 20
_DEEPEST = 64
_MOST_VALUES = 20000
_LONGEST_INTEGER = 1000     # characters; Python refuses to print integers of over 4300 digits


class YamlError(Exception):
    """A text is not the YAML that a reader takes.

    Args:
        line: Line of the mistake, counted from 1.
        problem: The mistake, in one line.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line, self.problem = line, " ".join(problem.split())


class PlainLoader(yaml.SafeLoader):
    """YAML loader for mappings, lists, texts, numbers, true, false and null.

    Tags, anchors, aliases, keys written twice, and more levels or values than a configuration can have are errors.
    Dates are texts.
    """

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "bool", "int", "float")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    depth = values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Checks the bounds, then reads the next value."""
        event = self.peek_event()
        self.values += 1
        if getattr(event, "anchor", None):
            self._fail("anchors and aliases are not read here; write the value itself", event)
        if getattr(event, "tag", None):
            self._fail(f"the tag {shorten(event.tag)} has no meaning here", event)
        if self.depth > _DEEPEST:
            self._fail(f"over {_DEEPEST} levels", event)
        if self.values > _MOST_VALUES:
            self._fail(f"over {_MOST_VALUES} values", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Converts a value; one that Python cannot convert is an error with a line."""
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_INTEGER:
            self._fail(f"an integer of over {_LONGEST_INTEGER} characters", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError):
            self._fail(f"{shorten(node.value)} is no number", node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Converts a mapping after a look at its keys."""
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._fail("found unhashable key: a key must be a text or a number", key)
            if key.tag == "tag:yaml.org,2002:null":
                self._fail("a key is empty", key)
            without_value = value.start_mark.index == value.end_mark.index
            if node.flow_style and without_value and key.start_mark.line != key.end_mark.line:
                self._fail("a key without a value spans lines", key)
            if key.value in seen:
                self._fail(f"key {shorten(key.value)} is written twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _fail(self, problem: str, place: Any) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


class PlainDumper(yaml.SafeDumper):
    """YAML writer for :class:`PlainLoader`: lists are never aliases, and the text ``1e3`` stands in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes no alias at all."""
        return True


# YAML 1.1, which PyYAML implements, reads 1e-4 as a text; YAML 1.2 and our users mean a number.
for _class in (PlainLoader, PlainDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(
        r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def read_text(path: Path, what: str, remedy: str, failure: type[UserError]) -> str:
    """Reads a UTF-8 file of at most 1 MiB. A folder, a pipe or a device is never opened.

    Args:
        path: File.
        what: Content that is expected, for messages, such as ``the manifest``.
        remedy: End of the messages.
        failure: Class of the errors.

    Raises:
        UserError: Of the class ``failure``: the file is missing, too large, or no text.
    """
    try:
        check_regular(path)
        with open(path, "rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise failure(f"{path}: is over 1 MiB, so it is not {what}; {remedy}")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        raise failure(f"{path}: cannot read {what} ({reason}); {remedy}") from None


def parse(text: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """Reads one YAML document.

    Args:
        text: YAML.
        loader: Class that decides which plain values are numbers.

    Raises:
        YamlError: The text is no YAML, or holds what :class:`PlainLoader` refuses.
    """
    place = None
    try:
        place = loader(text)
        return place.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"the character #x{error.character:04x} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, error.problem or error.context or "") from None
    except (ValueError, ArithmeticError):       # an escape such as "\UFFFFFFFF", a directive with a long number
        raise YamlError(place.line + 1 if place else 1, "a number is out of range") from None
    finally:
        if place is not None:
            place.dispose()
