"""Numbers as texts: unit, direction, change; tables as Markdown, LaTeX, CSV; the map of a grid."""

from __future__ import annotations

import csv
import io
import math
import struct

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.heat_map import plot_heat_map
from s3prl_ext.evaluation.result_tables import _interval, _signed, number, relative_change
from s3prl_ext.evaluation.utterance_comparison import Difference
from s3prl_ext.metrics import METRICS, heading
from s3prl_ext.tables import Table, counted, csv_text, escape, latex, markdown


@pytest.mark.parametrize(
    ("name", "head", "value", "text"),
    [
        ("wer", "WER (%) ↓", 9.25, "9.25"),
        ("per", "PER (%) ↓", 0.0245, "2.45"),
        ("acc", "accuracy (%) ↑", 0.991, "99.10"),
        ("slot_type_f1", "slot type F1 (%) ↑", 0.8487, "84.87"),
        ("loss", "loss (nats) ↓", 0.123456, "0.1235"),
        ("wer", "WER (%) ↓", math.nan, "NaN"),
        ("wer", "WER (%) ↓", None, "-"),
    ],
)
def test_units_and_directions(name, head, value, text):
    assert heading(name) == head and number(value, name) == text


def test_every_metric_has_a_heading_and_an_unknown_one_is_refused():
    assert all(("↑" in heading(name)) == METRICS[name].higher_is_better for name in METRICS)
    with pytest.raises(UsageError, match="unknown metric"):
        heading("accuracy")


@pytest.mark.parametrize(
    ("value", "baseline", "change"),
    [
        (8.63, 9.25, -6.7027),
        (9.25, 8.63, 7.1842),
        (1.0, 0.0, None),
        (-1.0, -2.0, None),
        (math.nan, 1.0, None),
        (1.0, math.inf, None),
    ],
)
def test_relative_change(value, baseline, change):
    found = relative_change(value, baseline)
    assert found == (None if change is None else pytest.approx(change, abs=1e-4))


def test_no_change_is_not_negative():
    """A difference of rounding is +0.00, not -0.00."""
    assert _signed(-0.001) == "+0.00" and _signed(-0.01) == "-0.01"
    assert _interval(Difference(-1e-9, 0.0, 3, 3, "wer")) == "[+0.00, +0.00]"


def test_numbers_with_a_noun():
    assert counted([1], "table") == "1 table" and counted([], "table") == "0 tables"


TABLE = Table("λ of a_b & c", ["", "WER (%) ↓"], [["x|y", "9.25 ± 0.10"]], ["a note"], [{"row": "x,y", "std": None}])


def test_markdown():
    assert markdown(TABLE).splitlines() == [
        "## λ of a_b & c", "", "|  | WER (%) ↓ |", "| --- | ---: |", r"| x\|y | 9.25 ± 0.10 |", "", "- a note"
    ]  # fmt: skip


def test_latex():
    text = latex(TABLE, "tab:one")
    assert r"\caption{$\lambda$ of a\_b \& c}" in text and r"\label{tab:one}" in text
    assert r"x|y & 9.25 $\pm$ 0.10 \\" in text
    assert escape(r"\{}") == r"\textbackslash{}\{\}"


def test_csv_quotes_and_leaves_empty():
    (row,) = csv.DictReader(io.StringIO(csv_text([TABLE, Table("empty", [], [])])))
    assert row == {"table": "λ of a_b & c", "row": "x,y", "std": ""}


@pytest.mark.parametrize("values", [[[9.0, None], [8.0, 100.0]], [[1.0, 1.0], [1.0, 1.0]]])
def test_heat_map(tmp_path, values):
    path = tmp_path / "map.png"
    plot_heat_map(["0-1", "all"], ["0", "0.1"], values, path, "title", "WER (%)", higher_is_better=False)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width > 400 and height > 200 and [p.name for p in tmp_path.iterdir()] == ["map.png"]


def test_what_others_wrote_runs_nowhere():
    table = Table(
        "<img src=x>", ("name", "p"), [("<img src=x onerror=alert(1)>", "p < 0.01")], notes=["</td>"],
        values=[{"name": "=HYPERLINK(1)", "other": "@x", "value": -1.5, "text": "-1.5e-3", "none": "-"}],
    )  # fmt: skip
    text = markdown(table)
    assert "<img" not in text and "</td" not in text and "p < 0.01" in text
    assert csv_text([table]).splitlines()[1] == "<img src=x>,'=HYPERLINK(1),'@x,-1.5,-1.5e-3,-"
