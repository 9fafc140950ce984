"""Files that are written completely or not at all, alone and as sets."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindseg import files
from mindseg.errors import UserError
from mindseg.files import finish_set, remove_leftovers, replace_set, temporary_name
from tests.support.hostile import files_below

OLD, NEW = {"a": b"old", "b": b"old", "c": b"old"}, {"a": b"new", "b": b"new"}


def make(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_set_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "out", OLD | {"mine": b"precious"})
    replace_set(make(folder / ".staging", NEW), folder / "a", remove=["a", "c"])
    assert files_below(folder) == NEW | {"mine": b"precious"}


WORKER = """
import os, sys
from pathlib import Path
from mindseg.files import replace_set
def stop(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "open") and "out" in str(arguments[0]):
        left -= 1
        if left < 0:
            os._exit(9)
left = int(sys.argv[1])
sys.addaudithook(stop)
replace_set(Path("out/.staging"), Path("out/a"), remove=["a", "b", "c"])
"""


def test_killed_at_each_of_its_steps(tmp_path: Path) -> None:
    """The process ends before its n-th change of the disk, for every n; the reader sees the old set or the new one."""
    seen = []
    for step in range(100):
        place = tmp_path / str(step)
        place.mkdir()
        folder = make(place / "out", OLD)
        make(folder / ".staging", NEW)
        status = subprocess.run([sys.executable, "-c", WORKER, str(step)], cwd=place, check=False).returncode
        finish_set(folder / "a")
        found = {name: data for name, data in files_below(folder).items() if "staging" not in name}
        assert found in (OLD, NEW), step
        seen.append(found == NEW)
        if status == 0:
            break
        assert status == 9
    assert seen == sorted(seen)         # old before, new after
    assert 3 < seen.index(True) < len(seen) - 3
    assert seen[-1]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = make(tmp_path / ".a.ready", NEW | {".remove": b"[]"})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(UserError, match=r"\.a\.ready: the files of an interrupted program cannot be moved"):
        finish_set(tmp_path / "a")
    assert len(list(ready.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"3", b"[1]", b'["../../x"]', b"\xff"])
def test_hostile_lists_of_old_files(tmp_path: Path, content: bytes) -> None:
    outside = tmp_path / "x"
    outside.write_text("precious")
    folder = make(tmp_path / "deep", {})
    make(folder / "out", {})
    make(folder / "out" / ".a.ready", {"a": b"new", ".remove": content})
    if b"x" in content:
        finish_set(folder / "out" / "a")
    else:
        with pytest.raises(UserError):
            finish_set(folder / "out" / "a")
    assert outside.read_text() == "precious"


def test_leftovers_of_dead_processes_only(tmp_path: Path) -> None:
    dead = next(number for number in range(4_000_000, 5_000_000) if not Path(f"/proc/{number}").exists())
    for name in (f".a.mindseg-{dead}.tmp.png", f".a.mindseg-{dead}.tmp", temporary_name(tmp_path / "b.png").name,
                 f".a.{dead}.tmp", f"a.mindseg-{dead}.tmp", ".a.mindseg-1.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([temporary_name(tmp_path / "b.png").name, f".a.{dead}.tmp",
                                                   f"a.mindseg-{dead}.tmp", ".a.mindseg-1.tmp"])
