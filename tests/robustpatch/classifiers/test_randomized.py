"""RandomizedClassifier: the same certificate from the module as from its votes, and the referee's own samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.randomized import Sampling, certify_randomized, predict_randomized
from robustpatch.classifiers import randomized
from robustpatch.classifiers.randomized import RandomizedClassifier, image_keys
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests import toys

FEW = Sampling(selection=60, estimation=300, prediction=200)
ONE = PatchThreat(1, 1)


def classifier(base=None, ablation=None, sampling=FEW, classes=toys.CLASSES, **options) -> RandomizedClassifier:
    base = toys.linear() if base is None else base
    return RandomizedClassifier(
        base, ablation or SparseAblation(3), num_classes=classes, sampling=sampling, **options
    ).eval()


class Seen(nn.Module):
    """Class 1 where the pixel in the corner is kept, class 0 where not: p_1 = k / d."""

    def forward(self, encoded):
        kept = encoded[:, :, 0, 0].sum(dim=1)
        return torch.stack([0.5 - kept, kept - 0.5], dim=1) * 4


@pytest.mark.parametrize("ablation", [Columns(2), Columns(3, 2)], ids=str)
@pytest.mark.parametrize("one_pass", [False, True])
def test_enumerable_ablations_are_scored_once_and_sampled_from(ablation, one_pass):
    """What it certifies and predicts is what its votes say, drawn by the images' own keys."""
    base = toys.strip(ablation) if one_pass else toys.linear()
    x, threat = toys.images(8), AnyOf([PatchThreat(2, 1), PatchThreat(1, 2)])
    model = classifier(base, ablation)
    votes = SmoothedClassifier(base, ablation, num_classes=toys.CLASSES, voting=TopOne()).eval().votes(x)
    expected = certify_randomized(votes, ablation, threat, toys.SIZE, sampling=FEW, keys=image_keys(x), guard=1e-4)
    found = model.certify(x, threat)
    for name in ("prediction", "certified", "margin", "close"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert (found.guard, found.confidence, found.threat) == (1e-4, 0.95, threat)
    assert torch.equal(model.predict(x), predict_randomized(votes, sampling=FEW, keys=image_keys(x)))
    assert torch.equal(model(x), model.enumerated()(x))
    assert len({*found.prediction.tolist(), *model.predict(x).tolist()}) > 1


def test_a_sparse_classifier_estimates_the_share():
    """A corner pixel is kept with a chance of 36/48: near that the bound, above 1/2 + τ or not by the patch's size."""
    model = classifier(Seen(), SparseAblation(36), Sampling(100, 4_000), 2)
    x = toys.images(5)
    found = model.certify(x, ONE)
    assert (found.prediction == 1).all()
    low = found.margin + 0.5 + 36 / 48
    assert ((low > 0.75 - 0.03) & (low < 0.76)).all()
    assert len(set(low.tolist())) > 1
    assert not found.certified.any()
    assert (model.predict(x) == 1).all()
    sure = classifier(toys.Fixed([3.0, 0.0]), SparseAblation(2), classes=2)
    assert sure.certify(x, ONE).certified.all()
    assert not sure.certify(x, PatchThreat(5, 6)).certified.any()


@pytest.mark.parametrize("ablation", [Columns(2), SparseAblation(3)], ids=str)
def test_an_image_is_treated_alike_in_any_company(ablation):
    """Alone, in a batch, in another order, twice; with another seed not."""
    model, x = classifier(ablation=ablation), toys.images(5)
    whole, predicted = model.certify(x, ONE), model.predict(x)
    assert torch.equal(model.certify(x.flip(0), ONE).margin.flip(0), whole.margin)
    assert torch.equal(model.certify(x[3:4], ONE).margin, whole.margin[3:4])
    assert torch.equal(model.certify(x, ONE).margin, whole.margin)
    assert torch.equal(torch.cat([model.predict(one) for one in x.split(1)]), predicted)
    other = classifier(ablation=ablation, sampling=replace(FEW, seed=1))
    assert not torch.equal(other.certify(x, ONE).margin, whole.margin)
    assert len(model.certify(x[:0], ONE).prediction) == len(model.predict(x[:0])) == 0


def test_samples_are_drawn_in_parts(monkeypatch):
    """Masks for 300 samples, no more than 7 at once, each part its own: the count is 300 and memory bounded."""
    drawn = []
    real = randomized.Draws
    monkeypatch.setattr(randomized, "Draws", lambda *args: drawn.append(real(*args)) or drawn[-1])
    monkeypatch.setattr(randomized, "_CELLS", 7 * 48)
    classifier(Seen(), SparseAblation(12), classes=2).predict(toys.images(1))
    parts = [draws for draws in drawn if draws.number <= 7]
    assert sum(draws.number for draws in parts) == 200
    assert len({draws.seed for draws in parts}) == len(parts) == 29


def test_the_gradient_of_forward():
    """Shares that add up to one, over the same views for every image, with the gradient of the mean softmax."""
    for ablation in (Columns(2), SparseAblation(3)):
        model, x = classifier(ablation=ablation, views=40), toys.images(3)
        shares = model(x.requires_grad_())
        assert torch.allclose(shares.sum(dim=1), torch.ones(3))
        assert torch.equal(shares, torch.cat([model(one) for one in x.detach().split(1)]))
        (gradient,) = torch.autograd.grad(shares[:, 1].sum(), x)
        assert gradient.abs().sum() > 0
    assert model.cost(*toys.SIZE) == (40, 200)
    assert classifier(ablation=Columns(2)).cost(*toys.SIZE) == (8, 8)


def test_the_referee_of_enumerable_ablations_enumerates_them():
    """The ideal classifier, which never errs nor abstains."""
    model, x = classifier(ablation=Columns(2)), toys.images(6)
    referee = model.referee()
    assert isinstance(referee, SmoothedClassifier)
    assert (referee.ablation, referee.voting, referee.base) == (Columns(2), TopOne(), model.base)
    assert not referee.training
    assert (referee.predict(x) >= 0).all()
    assert (model.judge_error, model.prediction_error) == (0.0, 0.001)


def test_the_referee_of_a_sparse_ablation_has_samples_of_its_own():
    """As many as the certificate, and none that any call has drawn before; the same each time."""
    model = classifier(Seen(), SparseAblation(24), classes=2)
    referee = model.referee()
    assert isinstance(referee, RandomizedClassifier)
    assert referee.sampling.prediction == FEW.estimation
    assert referee.sampling.seed == model.referee().sampling.seed != model.sampling.seed
    assert (model.judge_error, referee.ablation, referee.base) == (0.001, model.ablation, model.base)
    x = toys.images(80)
    mine, others = (some.certify(x, ONE).margin for some in (model, referee))
    assert abs(float(torch.corrcoef(torch.stack([mine, others]))[0, 1])) < 0.4  # 3.5 standard deviations


def test_a_smoothed_classifier_sampled():
    """`of` takes base, ablation, encoding and guard; the votes are top-1."""
    smoothed = toys.smoothed(voting=Threshold(0.4, 0.02), chunk=3)
    model = RandomizedClassifier.of(smoothed, FEW)
    assert (model.base, model.ablation, model.encoding, model.chunk) == (
        smoothed.base,
        smoothed.ablation,
        smoothed.encoding,
        3,
    )
    assert (model.voting, model.guard, model.sampling, model.training) == (TopOne(0.02), 0.02, FEW, False)
    assert list(model.state_dict()) == list(smoothed.state_dict())


@pytest.mark.parametrize("ablation", [Columns(2), SparseAblation(3)], ids=str)
def test_what_is_refused(ablation):
    """Images that are none, training mode, bases that couple images, and claims that need the votes."""
    model, x = classifier(ablation=ablation), toys.images(2)
    for call in (model.predict, lambda x: model.certify(x, ONE)):
        with pytest.raises(InvalidInput, match="divide by 255"):
            call(x * 255)
        with pytest.raises(InvalidInput, match="NaN"):
            call(x.masked_fill(x > 0.9, float("nan")))
        with pytest.raises(InvalidInput, match=r"pass \[batch, channels, height, width\]"):
            call(x[..., :0])
        model.train()
        with pytest.raises(InvalidInput, match="training mode"):
            call(x)
        model.eval()
    with pytest.raises(InvalidInput, match="larger than the image"):
        model.certify(x, PatchThreat(7, 1))
    for base in (toys.Coupled(), toys.Dropped()):
        with pytest.raises(InvalidInput, match="couples images or is random"):
            classifier(base.eval(), ablation).certify(x, ONE)
    found = model.certify(x, ONE)
    for claim in (lambda: found.by("margin"), found.largest_certified, lambda: found.save("nowhere")):
        with pytest.raises(InvalidInput, match=r"carries no votes .* samples that nobody keeps"):
            claim()


def test_bad_parameters():
    """The parameter, the value, the remedy."""
    with pytest.raises(InvalidInput, match="views is 0; it must be at least 1"):
        classifier(views=0)
    with pytest.raises(InvalidInput, match=r"voting is threshold:0.3; .* use TopOne\(\)"):
        classifier(voting=Threshold(0.3))
    with pytest.raises(InvalidInput, match="num_classes is 1"):
        classifier(classes=1)
    with pytest.raises(InvalidInput, match="chunk is 0"):
        classifier(chunk=0)
    with pytest.raises(
        InvalidInput, match="the base was built for ablation columns:2, but ablation is 256 draws of sp"
    ):
        classifier(toys.strip(Columns(2)))
    with pytest.raises(InvalidInput, match="sparse keep is 60, more than the image's 48 pixels"):
        classifier(ablation=SparseAblation(60)).predict(toys.images(1))
