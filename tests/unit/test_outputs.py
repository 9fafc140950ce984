"""Output folders: names that stay inside, files of others that are kept."""
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindseg.errors import UserError
from mindseg.outputs import RECORD_NAME, OutputFolder, check_apart, check_new, output_path, result_names

OUTSIDE = ["", ".", "..", "/etc/x", "../x", "a/../../x", "a//b", "a/./b", "a/", "C:x", "c:/x", "a\\b", "..\\x", "a\nb",
           "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^list\.txt:3: the name ") as caught:
        output_path("out", name, "list.txt:3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a/b.png", "..a", "a..b/c", ".hidden", "ä b/ç.png"])
def test_other_names_are_joined(name: str) -> None:
    assert output_path("out", name, "x") == Path("out") / name


@pytest.mark.parametrize(("source", "output", "word"), [
    ("photos", "photos", "is the folder of"), ("photos", ".", "lies above"), ("photos", "link", "is the folder of"),
    ("photos/a.jpg", "photos", "is the folder of"), ("photos/sub", "photos", "lies above"),
    ("photos/sub/b.jpg", ".", "lies above")])
def test_input_and_output_may_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, output: str,
                                       word: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos/sub").mkdir(parents=True)
    Path("photos/a.jpg").touch()
    Path("photos/sub/b.jpg").touch()
    Path("link").symlink_to("photos")
    with pytest.raises(UserError, match=f"--output {output}: {word} the input {source}"):
        check_apart(source, output)


def test_output_beside_or_inside_the_input_is_fine(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    check_apart(tmp_path / "photos", tmp_path / "photos-out")
    check_apart(tmp_path / "photos", tmp_path / "photos" / "out")


def test_equal_stems_keep_their_suffix() -> None:
    paths = [Path(text) for text in ("x.png", "x.jpg", "a/x.png", "b/x.png", "y.jpg", "y.png", "y.jpg.png", "z.avi")]
    assert result_names(paths) == {
        Path("x.png"): "x.png", Path("x.jpg"): "x.jpg", Path("a/x.png"): "a/x", Path("b/x.png"): "b/x",
        Path("y.jpg"): "y.jpg", Path("y.png"): "y.png", Path("y.jpg.png"): "y.jpg.png", Path("z.avi"): "z"}


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with OutputFolder(out) as folder:
        folder.claim(out / "a.png", out / "sub" / "b.png")
        (out / "a.png").write_text("old")
    (out / "mine.png").write_text("precious")
    with OutputFolder(out) as folder:
        folder.claim(out / "a.png")
        with pytest.raises(UserError, match=r"mine\.png: exists and was not written by mindseg; choose another"):
            folder.claim(out / "mine.png")
    with OutputFolder(out, overwrite=True) as folder:
        folder.claim(out / "mine.png")


def test_a_dangling_link_of_the_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere")
    with OutputFolder(tmp_path) as folder, pytest.raises(UserError, match="exists and was not written"):
        folder.claim(tmp_path / "a.png")


def test_no_two_results_of_one_name(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.claim(tmp_path / "a.png")
        with pytest.raises(UserError, match="two results would have this name"):
            folder.claim(tmp_path / "a.png")


def test_folder_without_results_keeps_no_record(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.claim(tmp_path / "never_written.png")
    assert not (tmp_path / RECORD_NAME).exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_record_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    record, outside = tmp_path / "out" / RECORD_NAME, tmp_path / "outside"
    record.parent.mkdir()
    {"link": lambda: record.symlink_to(outside), "pipe": lambda: os.mkfifo(record), "folder": record.mkdir}[kind]()
    with pytest.raises(UserError, match=r"out: cannot be written .*; choose another --output"):
        OutputFolder(record.parent)
    assert not outside.exists()


def test_a_full_disk_leaves_no_half_name(tmp_path: Path, small_disk: Callable[[float], Path]) -> None:
    out = small_disk(0.05) / "out"
    names = [out / f"{'n' * 200}{number}" for number in range(1000)]
    with OutputFolder(out) as folder:
        folder.claim(names[0])
        names[0].touch()
        with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
            folder.claim(*names[1:])
    assert (out / RECORD_NAME).read_text() == f"{names[0].name}\n"


def test_two_processes_cannot_write_into_one_folder(tmp_path: Path) -> None:
    code = ("import sys, time; from mindseg.outputs import OutputFolder; folder = OutputFolder(sys.argv[1]); "
            "print('open', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "open\n"
            with pytest.raises(UserError, match="another process writes results there"):
                OutputFolder(tmp_path)
            OutputFolder(tmp_path, shared=True).close()
        finally:
            other.kill()
    OutputFolder(tmp_path).close()


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"out: cannot be written \(.*\); choose another --output"):
        OutputFolder(tmp_path / "out")


def test_a_single_file_is_replaced_only_if_asked(tmp_path: Path) -> None:
    check_new(tmp_path / "new.html")
    (tmp_path / "mine.html").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"mine\.html: exists already; choose another --output or give --overwrite"):
        check_new(tmp_path / "mine.html")
    check_new(tmp_path / "mine.html", overwrite=True)
