"""The wheel's dependencies and the requirements files name the same packages in the same ranges."""
import sys

import pytest

from mindseg.runtime import NEWEST_TESTED
from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has none

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def listed(name: str) -> set[str]:
    """The requirements of a file, comments left out."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line for line in (line.split("#")[0].strip() for line in lines) if line}


@pytest.mark.parametrize(("file", "packages"), [
    ("requirements.txt", [*PROJECT["dependencies"], *EXTRAS["train"]]),
    ("requirements-deploy.txt", EXTRAS["deploy"]), ("requirements-convert.txt", EXTRAS["convert"])])
def test_requirements_are_those_of_the_wheel(file, packages):
    assert listed(file) == set(packages)


def test_the_newest_mindspore_that_may_be_installed_was_tested():
    major, minor = NEWEST_TESTED
    assert EXTRAS["train"][0] == f"mindspore>=2.7,<{major}.{minor + 1}"


def test_the_core_needs_neither_mindspore_nor_a_runtime():
    assert not [package for package in PROJECT["dependencies"] if package.startswith(("mindspore", "onnx", "openvino"))]
