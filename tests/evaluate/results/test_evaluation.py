"""What `evaluate` returns: records with a summary, a flat table, a figure and what a notebook shows."""

from __future__ import annotations

import re
import sys

import pytest

from evaluate import Evaluation, evaluate, summarise
from robustpatch import InvalidInput
from tests import toys


@pytest.fixture(scope="module")
def found():
    x = toys.images(6)
    model = toys.smoothed()
    return evaluate(model, (x, model.predict(x)), "1x1,1x2", "pgd:1,sparse-rs:20")


def test_it_is_the_records_and_their_summary(found):
    assert found == list(found)
    assert found.summary == summarise(list(found))
    assert found.verdict.partition(":")[0].lower() == found.summary.verdict
    assert found.title == "6 images test images, 1x1,1x2 patch"
    names = [line.name for line in found.lines]
    assert names[0] == "clean"
    assert names[-3:] == ["under pgd-1", "under sparse-rs", "under all attacks"]
    for line in found.lines:
        assert line.share is not None
        assert line.share.total == 6


def test_a_row_for_each_image_attack_and_threat(found):
    """Values are those of the records; an image that needs no attack has a row of its own."""
    flat = found.to_arrow().to_pylist()
    expected = [(record, attack) for record in found for attack in record.attacks or [None]]
    assert len(flat) == len(expected)
    for row, (record, attack) in zip(flat, expected, strict=True):
        assert row["index"] == record.index
        assert row["margin_exact"] == record.margin_exact
        assert row["attack"] == (attack and attack.attack)
        assert row["attack_prediction"] == (attack and attack.prediction)
    none = Evaluation([])
    assert none.to_arrow().num_rows == 0
    assert none.to_arrow().schema == found.to_arrow().schema
    assert (repr(none), none._repr_html_()) == ("Evaluation([])", "<p>no records</p>")


def test_pandas_is_asked_for_by_name(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInput, match="pip install pandas, or take to_arrow"):
        found.to_pandas()


def test_as_text_html_and_latex(found):
    clean = f"{found.summary.clean.value:.1%}"
    for text in (repr(found), found._repr_html_()):
        assert clean in text
        assert "under all attacks" in text
        assert found.verdict.partition(":")[0] in text
    latex = found.table.latex()
    assert clean.replace("%", "\\%") in latex
    assert latex.count("\\\\") == len(found.lines) + 1
    marked = Evaluation(found, "<b>50 % & more</b> $x$")
    assert "<b>" not in marked._repr_html_()
    assert "50 % & more" in repr(marked)


def test_the_figure_shows_each_accuracy(found):
    axes = found.plot().axes[0]
    assert [bar.get_width() for bar in axes.patches] == [100 * line.share.value for line in found.lines[::-1]]
    assert [re.sub("^ ", "", label.get_text()) for label in axes.get_yticklabels()] == [
        line.name for line in found.lines[::-1]
    ]
