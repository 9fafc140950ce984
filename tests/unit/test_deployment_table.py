"""The table of docs/deployment.md: its form, its limits, its place on the page."""
import pytest

from mindseg.errors import UserError
from mindseg.manifest import load_manifest, save_manifest
from tests.support.deploy import make_manifest
from tools import deployment_table

PAGE = "before\n<!-- deployment table: begin -->\nold\n<!-- deployment table: end -->\nafter\n"


def scores(**mious):
    return {route: {"miou": miou, "pixel_accuracy": 0.9} for route, miou in mious.items()}


def test_a_row_for_every_network_and_a_column_for_every_route_in_order():
    text = deployment_table.table({"one": scores(checkpoint=0.5, int8=0.49, runner=0.5004),
                                   "two": scores(checkpoint=0.25, runner=0.25)})
    names = "checkpoint, MindSpore", "C++ runner, OpenVINO f32", "int8, C++ runner, OpenVINO"
    assert text.splitlines() == [
        f"| network | {' | '.join(names)} |", "|---|---|---|---|",
        "| one | 50.00 | 50.04 | 49.00 |", "| two | 25.00 | 25.00 |  |"]


def test_reduced_precision_is_not_held_against_the_float_routes():
    spread, loss = deployment_table.differences(scores(checkpoint=0.5, mindir=0.501, onnx=0.4985, bf16=0.4, int8=0.493))
    assert spread == pytest.approx(0.0015)
    assert loss == pytest.approx(0.007)


def test_the_page_keeps_what_is_around_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    deployment_table.write_document(page, "| new |")
    assert page.read_text(encoding="utf-8") == PAGE.replace("old", "| new |")
    page.write_text("no table here\n", encoding="utf-8")
    with pytest.raises(UserError, match="deployment table: begin"):
        deployment_table.write_document(page, "| new |")


def test_a_simulated_om_names_its_onnx_twin(tmp_path):
    manifest = make_manifest(tmp_path / "export")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "net.onnx").write_bytes(b"abc")
    save_manifest(manifest)
    twin = deployment_table.simulated_om(manifest, tmp_path / "export_om")
    assert load_manifest(tmp_path / "export_om") == twin
    assert [entry.format for entry in twin.models] == ["om"]
    text = (tmp_path / "export_om" / "net.om").read_text(encoding="utf-8")
    assert text == "SIMULATED OM\nonnx: ../export/net.onnx\n"
