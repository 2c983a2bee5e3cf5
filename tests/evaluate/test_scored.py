"""Summed scores through the evaluator: records and pictures in whole votes, and one scoring for rules of one link."""

from __future__ import annotations

import pytest
import torch

from attacks import PatchPGD
from evaluate import Settings
from evaluate.model.load import _with_theta, load_model
from evaluate.runs.batch import evaluate_batch
from evaluate.runs.counterexample import Counterexample, load_counterexample, save_counterexample
from evaluate.sweep.records import margin_column, top_column
from evaluate.sweep.runner import SweepSettings, certify_scores, sweep
from robustpatch.checkpoints import load_checkpoint
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import ClippedTanh, SigmoidThreshold, SummedScores
from tests import toys
from tests.evaluate import sweeps

THREAT = PatchThreat(2, 2)


def test_records_and_exhibits_are_in_whole_votes():
    """Margins as fractions of a vote, ≥ 0 exactly where certified; leads, counts, maps rounded down; no close votes."""
    model, x = toys.smoothed(toys.strip(), voting=SummedScores()), toys.images(12)
    found = evaluate_batch(
        model, x, model.predict(x), 0, THREAT, [PatchPGD(steps=3, restarts=2)], Settings(12, batch_size=12)
    )
    margin = model.certify(x, THREAT).margin
    assert margin is not None
    assert [record.margin_exact for record in found.records] == (margin.double() / 2**16).tolist()
    assert not found.counterexamples
    for record in found.records:
        assert record.margin_exact is not None
        assert record.certified_exact == (record.margin_exact >= 0)
        assert (record.close_votes, record.votes) == (0, 0)
        assert not (record.certified_exact and record.refuted)
        for attack in record.attacks:
            assert attack.lead is not None
            assert attack.broken == (attack.lead < 0)
    for shown in found.exhibits:
        assert shown.votes is not None
        assert shown.votes.max() <= toys.SIZE[1]
        assert (int(shown.maps[0].margins.min()) < 0) == (not found.records[shown.index].certified_exact)


def test_a_counterexample_keeps_the_units(tmp_path):
    model, x = toys.smoothed(toys.strip(), voting=SummedScores()), toys.images(1)
    example = Counterexample(x[0], x[0], torch.zeros(1, 2).long(), 0, 1, "pgd", THREAT, {})
    name = save_counterexample(tmp_path, model, example)
    assert torch.equal(load_counterexample(tmp_path / name).x, x[0])


def test_a_sweep_scores_once_for_rules_of_one_link_alone(tmp_path):
    """Summed softmax beside thresholds, as `certify` says it; a checkpoint of another link is refused at once."""
    checkpoint = sweeps.make(tmp_path / "one.safetensors")
    model, x = checkpoint.smoothed, sweeps.scene().batch(range(5))[0]
    scores, y = model.certifiable_scores(x), torch.arange(len(x)) % sweeps.CLASSES
    columns = certify_scores(model, scores, sweeps.SIZE, SummedScores(), [THREAT], labels=y, top_k=[2])
    with pytest.raises(InvalidInput, match="labels is None"):
        certify_scores(model, scores, sweeps.SIZE, SummedScores(), [THREAT], top_k=[2])
    model.voting = SummedScores()
    margin = model.certify(x, THREAT).margin
    assert margin is not None
    assert torch.equal(columns[margin_column("exact", THREAT)], torch.div(margin, 2**16, rounding_mode="floor"))
    top = torch.div(model.certify_top_k(x, y, THREAT, 2).margin, 2**16, rounding_mode="floor")
    assert torch.equal(columns[top_column(2, THREAT)], top)
    model.voting = SigmoidThreshold()
    settings = SweepSettings(num_images=5, votings=(Threshold(),), patches=(THREAT,))
    with pytest.raises(InvalidInput, match="makes other scores"):
        sweep({"one": checkpoint}, sweeps.scene(), settings, tmp_path / "sweep")


def test_scores_are_summed_where_the_command_line_asks(checkpoint):
    """`--voting tanh` certifies the checkpoint's network with its logits clipped, under its guard or another."""
    x = toys.images(5, size=(28, 28))
    for guard in (None, 0.03):
        asked = load_model(str(checkpoint), voting="tanh:1:2", guard=guard).smoothed
        clipped = load_checkpoint(checkpoint).smoothed
        clipped.voting = ClippedTanh(1.0, 2.0, guard)
        one, other = (model.certify(x, THREAT) for model in (asked, clipped))
        assert asked.voting == clipped.voting
        assert one.unit == 2**16
        assert torch.equal(one.placement_margin, other.placement_margin)  # type: ignore[arg-type]


def test_a_threshold_from_the_command_line_keeps_the_link():
    assert _with_theta(SigmoidThreshold(0.5, 0.01), 0.4) == SigmoidThreshold(0.4, 0.01)
    assert _with_theta(TopOne(), 0.4) == Threshold(0.4)
    with pytest.raises(InvalidInput, match="have no threshold"):
        _with_theta(ClippedTanh(), 0.4)
