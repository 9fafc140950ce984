"""The manifests of tests/manifests, which this package and the C++ runner accept or refuse alike."""
from pathlib import Path

import pytest

from mindseg.manifest import ManifestError, load_manifest

FOLDER = Path(__file__).resolve().parents[1] / "manifests"


def manifests(kind: str) -> list:
    files = sorted((FOLDER / kind).glob("*.yaml"))
    assert files
    return [pytest.param(path, id=path.stem) for path in files]


@pytest.mark.parametrize("path", manifests("accepted"))
def test_accepted(path):
    assert load_manifest(path).models


@pytest.mark.parametrize("path", manifests("refused"))
def test_refused_in_one_line_that_names_file_and_key(path):
    """The first line of each file is ``# KEY: reason``; the message must name the key."""
    key = path.read_bytes().split(b"\n")[0].decode().removeprefix("# ").partition(":")[0]
    with pytest.raises(ManifestError) as error:
        load_manifest(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert key in message.removeprefix(f"{path}: ")
