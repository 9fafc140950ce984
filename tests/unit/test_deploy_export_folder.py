"""Folders of exports: whole after a kill at any step, without leftovers, and with foreign files untouched."""
import os
import shutil

import pytest

from mindseg.deploy.export_folder import open_folder, staging
from mindseg.errors import UserError
from mindseg.files import file_sha256
from mindseg.manifest import ModelFile, load_manifest, save_manifest
from mindseg.outputs import RECORD_NAME
from tests.support.deploy import make_manifest

NAMES = ["a.onnx", "b.mindir", "deploy.yaml"]


def export(folder, text, overwrite=False):
    """Writes two models and their manifest, whose content is ``text``."""
    with open_folder(folder, overwrite) as opened, staging(opened, NAMES) as place:
        entries = []
        for name in NAMES[:2]:
            (place / name).write_text(text)
            entries.append(ModelFile(name.rpartition(".")[2], name, 2, file_sha256(place / name)))
        save_manifest(make_manifest(place, models=tuple(entries)))


def content(folder):
    """The text of both models, if the manifest fits them."""
    manifest = load_manifest(folder)
    texts = {manifest.model_path(entry).read_text() for entry in manifest.models}
    assert len(texts) == 1
    return texts.pop()


def killed_at(step, folder, text):
    """Exports in a process that ends at its ``step``-th rename; returns its status, 0 if it came to the end."""
    pid = os.fork()
    if pid == 0:
        renames = {name: getattr(os, name) for name in ("replace", "rename")}
        done = []

        def counting(name):
            def rename(*paths):
                if len(done) == step:
                    os._exit(9)
                done.append(paths)
                renames[name](*paths)
            return rename

        for name in renames:
            setattr(os, name, counting(name))
        try:
            export(folder, text)
            os._exit(0)
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_kill_at_any_rename_leaves_the_old_files_or_the_new_ones(tmp_path):
    found, step, status = [], 0, 9
    while status:
        folder = tmp_path / str(step)
        export(folder, "old")
        status = killed_at(step, folder, "new")
        assert status in (0, 9)
        found.append(content(folder))
        export(folder, "newer")
        assert content(folder) == "newer"
        assert sorted(path.name for path in folder.iterdir()) == [RECORD_NAME, *NAMES]
        step += 1
    assert step > 4
    assert found == sorted(found, reverse=True)     # "old" up to some step, "new" from there on
    assert set(found) == {"old", "new"}


def test_a_foreign_file_is_replaced_with_overwrite_only(tmp_path):
    (tmp_path / "b.mindir").write_text("foreign")
    with pytest.raises(UserError, match=r"b\.mindir: exists and was not written by mindseg"):
        export(tmp_path, "new")
    assert (tmp_path / "b.mindir").read_text() == "foreign"
    assert not (tmp_path / "deploy.yaml").exists()
    assert not list(tmp_path.glob(".export-*"))
    with open_folder(tmp_path) as folder, pytest.raises(UserError, match="not written by mindseg"), \
            staging(folder, ["b.mindir"]):
        pytest.fail("the work began")
    export(tmp_path, "new", overwrite=True)
    assert content(tmp_path) == "new"


def test_an_export_of_an_earlier_version_is_known_by_its_hashes(tmp_path):
    export(tmp_path, "old")
    (tmp_path / RECORD_NAME).unlink()
    export(tmp_path, "new")
    assert content(tmp_path) == "new"
    (tmp_path / RECORD_NAME).unlink()
    (tmp_path / "b.mindir").write_text("foreign")
    with pytest.raises(UserError, match=r"b\.mindir: exists"):
        export(tmp_path, "newer")
    assert (tmp_path / "b.mindir").read_text() == "foreign"


def test_leftovers_go_and_folders_of_users_stay(tmp_path):
    for name in (".export-abcd1234", ".export-mine", ".export-of-my-photos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    export(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.glob(".export-*")) == [".export-mine", ".export-of-my-photos"]
    (tmp_path / ".deploy.yaml.ready").mkdir()
    shutil.copy(tmp_path / "a.onnx", tmp_path / ".deploy.yaml.ready")
    assert content(tmp_path) == "new"
    assert not (tmp_path / ".deploy.yaml.ready").exists()
