"""Learning curves: of what a checkpoint keeps of its training, over all its stages."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from evaluate.learning import Learning, app, read_learning
from robustpatch.checkpoints import load_checkpoint, names


def rows(*epochs):
    return [{"epoch": epoch, "seconds": 30.0, "clean": 0.5, "certified_margin": None} for epoch in epochs]


def test_stages_begin_where_epochs_are_counted_anew():
    training = Learning("one", rows(1, 2, 3, 1, 2, 1))
    assert training.stages == [3, 5]
    assert training.minutes == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert Learning("short", rows(1)).stages == []


def test_a_history_is_drawn(tmp_path):
    """Of a smoothed classifier, with its stages, and of one that certifies nothing, together."""
    both = ["mnist-columns2-rows2", "mnist-undefended"]
    result = CliRunner().invoke(app, [*both, "--output", str(tmp_path / "curve.svg")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
    assert set(both) <= set(names())
    assert read_learning(both[0]).rows == load_checkpoint(both[0]).config["history"]


@pytest.mark.parametrize(("ending", "said"), [("curve.gif", "let it end in .png"), ("curve.png", "keeps no history")])
def test_what_cannot_be_drawn_is_refused(checkpoint, tmp_path, ending, said):
    result = CliRunner().invoke(app, [str(checkpoint), "--output", str(tmp_path / ending)])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
