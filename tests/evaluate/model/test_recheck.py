"""Recorded images asked once more: another model is refused, rounding is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluate import Settings, evaluate
from evaluate.model import recheck
from evaluate.model.identity import identity_of
from evaluate.model.recheck import Recheck
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.parse import parse_voting
from robustpatch.voting.rules import TopOne
from tests.attacks.toys import Level, Plain, images, smoothed, strip
from tests.evaluate.planted import image_set


def sampled(ablation):
    few = Sampling(5, 10, 5, alpha=0.5)
    return RandomizedClassifier(Level(3), ablation, num_classes=3, sampling=few, voting=TopOne(1e-6)).eval()


def pictures():
    return image_set(images(10, (4, 8)), torch.arange(10) % 3, 3)


def run_on(model, output, **settings):
    chosen = Settings(**{"num_images": 10, "batch_size": 5, "gallery": 0, **settings})
    return evaluate(model, pictures(), PatchThreat(2, 2), (), chosen, output)


MODELS = {
    "strip": lambda: strip((4, 8)),
    "level": lambda: smoothed(Level(3), Columns(1), 3),
    "sampled": lambda: sampled(Columns(2)),
    "sparse": lambda: sampled(SparseAblation(3)),
    "plain": lambda: Plain(32).eval(),
    "patchguard": lambda: parse_defense("patchguard:window=2x2").wrap(strip((4, 8)), num_classes=3).eval(),
    "scores": lambda: with_voting(strip((4, 8)), "scores"),
}


def with_voting(model, text):
    model.voting = parse_voting(text, None)
    return model


SIZES = [(kind, size) for kind in ("strip", "sampled") for size in (1, 3, 10)]


@pytest.mark.parametrize(
    ("kind", "size"), [*SIZES, *((kind, 3) for kind in MODELS if kind not in ("strip", "sampled"))]
)
def test_records_of_batches_of_any_size_are_those_of_the_model(kind, size, tmp_path):
    """Those of other batches are confirmed, and those of another model are not, by whatever model."""
    records = run_on(MODELS[kind](), tmp_path, batch_size=size)
    again = Recheck(MODELS[kind](), pictures(), PatchThreat(2, 2), Settings(10))
    again.check([(range(10), records)], "out")
    for field in ("prediction", "certified_exact"):
        if getattr(records[2], field) is not None:
            wrong = {"prediction": (records[2].prediction + 1) % 3, "certified_exact": not records[2].certified_exact}
            forged = [*records[:2], replace(records[2], **{field: wrong[field]}), *records[3:]]
            with pytest.raises(
                InvalidInput, match=f"output out has {field} .* of image 2, but the model at hand gives"
            ):
                again.check([(range(10), forged)], "out")


def test_votes_that_rounding_may_turn_over_are_forgiven_and_no_others(tmp_path):
    """A margin may be another by two for each vote within twice the guard; the prediction, by as narrow a lead."""
    model = smoothed(Level(2), Columns(1), 2)
    x = torch.zeros(2, 1, 4, 8)
    x[:, :, :, 0] = 128 / 255  # nearly as far from one level as from the other
    near = smoothed(Level(2), Columns(1), 2, TopOne(0.005))  # outside of the guard, and within twice that
    data = image_set(x, torch.zeros(2, dtype=torch.long), 2)
    for one, loose in ((model, 0), (near, 2)):
        records = evaluate(one, data, PatchThreat(2, 2), (), Settings(2), tmp_path / str(loose))
        again = Recheck(one, data, PatchThreat(2, 2), Settings(2))
        assert again._loose(one, 0) == 2 * loose
        for by in (-5, -4, -1, 1, 4, 5):
            margin = records[0].margin_exact
            assert margin is not None
            forged = [replace(records[0], margin_exact=margin + by), records[1]]
            if abs(by) <= 2 * loose:
                again.check([(range(2), forged)], "out")
            else:
                with pytest.raises(InvalidInput, match="margin_exact"):
                    again.check([(range(2), forged)], "out")


class Torn(torch.nn.Module):
    """Undefended: of grey images its two outputs are equal but for the order in which they are summed."""

    def forward(self, x):
        light = x.flatten(1).sum(dim=1) - 0.5 * x[0].numel()
        return torch.stack([light, -light], dim=1)


def test_an_answer_that_a_trace_of_noise_changes_is_forgiven(tmp_path):
    """Without votes: the grey image may have been of either class, the white one may not."""
    x = torch.ones(2, 1, 4, 8)
    x[0, :, :, ::2], x[0, :, :, 1::2] = 127 / 255, 128 / 255
    data = image_set(x, torch.zeros(2, dtype=torch.long), 2)
    records = evaluate(Torn().eval(), data, PatchThreat(2, 2), (), Settings(2), tmp_path)
    again = Recheck(Torn().eval(), data, PatchThreat(2, 2), Settings(2))
    for i, known in ((0, False), (1, True)):
        forged = [replace(one, prediction=1 - one.prediction) if one.index == i else one for one in records]
        if known:
            with pytest.raises(InvalidInput, match="prediction 1 of image 1"):
                again.check([(range(2), forged)], "out")
        else:
            again.check([(range(2), forged)], "out")


def test_a_few_images_are_asked_and_no_more(tmp_path, monkeypatch):
    """Eight, of as many batches as that takes, and before anything else is done."""
    asked = []
    original = recheck.evaluate_batch

    def batch(model, x, *rest):
        asked.append(len(x))
        return original(model, x, *rest)

    monkeypatch.setattr(recheck, "evaluate_batch", batch)
    run_on(strip((4, 8)), tmp_path / "a")
    assert asked == []
    run_on(strip((4, 8)), tmp_path / "a")
    assert asked == [1, 4, 1, 2]
    asked.clear()
    monkeypatch.setattr(recheck, "_SECONDS", 0.0)
    run_on(strip((4, 8)), tmp_path / "a")
    assert asked == [1]


def test_what_a_model_does_leaves_it_the_same(tmp_path):
    """Scoring, certifying and the choice of a chunk change nothing of ours."""
    for model in (strip((4, 8)), sampled(Columns(2)), sampled(SparseAblation(3)), Plain(32).eval()):
        before = identity_of(model)
        run_on(model, tmp_path / str(id(model)))
        assert identity_of(model) == before


def test_a_model_elsewhere_than_the_run_is_not_asked(tmp_path):
    """The guard of another device may be another, and so what is certified."""
    records = run_on(strip((4, 8)), tmp_path)
    forged = [replace(one, prediction=7) for one in records]
    Recheck(strip((4, 8)), pictures(), PatchThreat(2, 2), Settings(10, device="meta")).check(
        [(range(10), forged)], "out"
    )
