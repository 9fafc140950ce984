"""Cells of CSV files, which spreadsheets open."""
import csv
from types import SimpleNamespace

import pytest

from mindseg.commands import evaluate
from mindseg.files import csv_cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_texts_that_are_formulas_are_quoted(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["", "a=b", "f000", "'=", 0, -1, -0.5])
def test_other_cells_stay(value):
    assert csv_cell(value) == value


def test_names_and_classes_in_images_csv(tmp_path):
    request = SimpleNamespace(csv=True, output=tmp_path)
    evaluate._write_csv(SimpleNamespace(size=1, rank=0), request, ("road", "=class"), [["-name", "0.5", "1", "", "0"]])
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as stream:
        header, row = csv.reader(stream)
    assert header == ["name", "miou", "pixel_accuracy", "road", "'=class"]
    assert row == ["'-name", "0.5", "1", "", "0"]
