"""Figures for papers: what is drawn are the numbers of the records and certificates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from evaluate.plots import attacks_against_bound, by_size, margins_by_place
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.results.test_metrics import attack, record
from tests.evaluate.runs.test_runner import classifier, scene


def test_certified_accuracy_by_size():
    """A line for each run, from side 1 to the first that none is certified against."""
    records = [replace(record(i, exact=True), largest_certified=side) for i, side in enumerate((3, 1, 0, 2))]
    axes = by_size({"ours": records, "_theirs": records[:2]})
    first, second = axes.get_lines()
    assert np.allclose(first.get_xydata(), [(1, 75), (2, 50), (3, 25), (4, 0)])
    assert np.allclose(second.get_xydata(), [(1, 100), (2, 50), (3, 50), (4, 0)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", " _theirs"]
    with pytest.raises(InvalidInput, match="run bare has no certificates from votes"):
        by_size({"bare": [replace(records[0], largest_certified=None)]})


def test_margins_by_place():
    """One cell a place, at the patch's centre, red exactly where the margin is negative; drawn where one is told to."""
    model, (x, _) = classifier(), scene().batch(range(4))
    threat = PatchThreat(2, 3)
    certificate = model.certify(x, threat)
    (mine,) = Figure().subplots(1, 1, squeeze=False).flat
    axes = margins_by_place(certificate, threat, x, 1, mine)
    assert axes is mine
    heat = axes.get_images()[1]
    shape = (x.shape[2] - 1, x.shape[3] - 2)
    margins = certificate.placement_margin[1].div(certificate.unit, rounding_mode="floor").view(shape)
    assert torch.equal(torch.as_tensor(np.asarray(heat.get_array())).long(), margins.long())
    left, right, bottom, top = heat.get_extent()
    assert (left, top) == (1 - 0.5, 0.5 - 0.5), "the centre of a 2x3 patch in the corner"
    assert (right - left, bottom - top) == (shape[1], shape[0])
    colours = heat.cmap(heat.norm(np.array([-1, 0])))
    assert colours[0, 0] > colours[0, 2], "red"
    assert colours[1, 0] < colours[1, 2], "blue"
    with pytest.raises(InvalidInput, match="no margin for each place of 2\\*1x1"):
        margins_by_place(model.certify(x, PatchThreat(1, 1, 2)), PatchThreat(1, 1, 2), x)


def test_attacks_against_the_bound():
    """A dot for each attack and for all, and lines at certified and clean accuracy."""
    records = [
        record(0, exact=True, attacks=[attack(name="a"), attack(name="b")]),
        record(1, attacks=[attack(name="a", broken=True), attack(name="b")]),
        record(2, attacks=[attack(name="a"), attack(name="b", broken=True)]),
        record(3, correct=False, attacks=[attack(name="a"), attack(name="b")]),
    ]
    axes = attacks_against_bound(records)
    dots = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["all together", "b", "a"]
    assert np.allclose(dots, [25, 50, 50])
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.get_lines()}
    assert (lines["certified"], lines["clean"]) == (25, 75)
    with pytest.raises(InvalidInput, match="records are of no attack"):
        attacks_against_bound([record(0)])
