"""The smoothed classifier answers alike however it is asked: ties, precision, chunks, index, order, gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.encoding import ComplementChannels, MaskChannel
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import GUARD_FLOAT32, GUARD_REDUCED, Threshold, TopOne, first_argmax
from robustpatch.voting.scored import SummedScores
from tests import toys


def models():
    """Enumeration and one pass, columns, rows and blocks, both votings and encodings."""
    return {
        "enumeration": toys.smoothed(chunk=5),
        "blocks": toys.smoothed(ablation=Blocks(2, 3), voting=TopOne()),
        "mask": toys.smoothed(ablation=Rows(2), encoding=MaskChannel(), voting=Threshold(0.4)),
        "one pass": toys.smoothed(toys.strip(Columns(2))),
        "one pass, rows": toys.smoothed(toys.strip(Rows(3, 2)), Rows(3, 2), voting=TopOne()),
    }


MODELS = list(models())


@pytest.fixture(params=MODELS)
def model(request):
    return models()[request.param]


@pytest.mark.parametrize(
    ("logits", "voting", "expected"),
    [
        ([-9.0, 5.0, 5.0, -9.0], Threshold(0.3), 1),
        ([0.0, 0.0, 0.0, 0.0], Threshold(0.3), 0),
        ([0.0, 0.0, 0.0, 0.0], Threshold(0.25), 0),
        ([-9.0, -9.0, 5.0, 5.0], Threshold(0.3), 2),
        ([-9.0, 5.0, 5.0, 5.0], TopOne(), 1),
        ([0.0, 0.0, 0.0, 9.0], TopOne(), 3),
    ],
)
def test_ties_go_to_the_lowest_index_everywhere(logits, voting, expected):
    """`predict`, the argmax of `forward` and the certificate's prediction, on exact ties."""
    model, x = toys.smoothed(toys.Fixed(logits), voting=voting), toys.images(2)
    for inputs in (x, x.clone().requires_grad_()):
        assert model(inputs).argmax(dim=1).tolist() == [expected] * 2
    assert model.predict(x).tolist() == [expected] * 2
    assert model.certify(x, PatchThreat(1, 1)).prediction.tolist() == [expected] * 2


def test_forward_predict_and_certify_agree(model):
    """PITFALLS 12: the same counts from all of them, with gradients, without, and for parts of the batch."""
    x = toys.images(6)
    votes = model.votes(x)
    counts = votes.cast.sum(dim=1)
    assert len(counts.unique(dim=0)) > 1, "the toy must not be constant"
    expected = first_argmax(counts)
    shares = model(x)
    assert shares.dtype == torch.float32
    assert torch.equal((shares * votes.cast.shape[1]).round().long(), counts)
    with torch.no_grad():
        assert torch.equal(model(x), shares)
    with torch.inference_mode():
        assert torch.equal(model.predict(x), expected)
    assert torch.equal(model(x.clone().requires_grad_()), shares)
    assert torch.equal(first_argmax(shares), expected)
    assert torch.equal(shares.argmax(dim=1), expected)
    for method in ("exact", "margin"):
        certificate = model.certify(x, AnyOf([PatchThreat(1, 1), PatchThreat(1, 2, 2)]), method)
        assert torch.equal(certificate.prediction, expected)
        assert certificate.guard == model.guard
    largest = model.largest_certified(x)
    assert torch.equal(largest >= 1, model.certify(x, PatchThreat(1, 1)).certified)


def test_the_gradient_of_forward_is_the_gradient_of_soft(model):
    """For a random direction in class space, with respect to the image and to the weights; and not zero."""
    direction = torch.randn(2, toys.CLASSES, generator=torch.Generator().manual_seed(1))
    gradients = []
    for function in (model, model.soft):
        x = toys.images(2).requires_grad_()
        gradients.append(torch.autograd.grad((function(x) * direction).sum(), [x, *model.base.parameters()]))
    for hard, soft in zip(*gradients, strict=True):
        assert torch.equal(hard, soft)
    assert gradients[0][0].abs().sum() > 1e-4


@pytest.mark.parametrize("kind", MODELS[:4:3])
def test_autocast_counts_in_float32(kind):
    """PITFALLS 24: under bfloat16 autocast, float32 shares whose argmax is `predict`, and the wide guard."""
    model, x = models()[kind], toys.images(6)
    assert model.guard == GUARD_FLOAT32
    with torch.autocast("cpu", torch.bfloat16):
        for inputs in (x, x.clone().requires_grad_()):
            shares = model(inputs)
            assert shares.dtype == torch.float32
            assert torch.equal(first_argmax(shares.detach()), model.predict(x))
        assert model.scores(x).dtype == torch.float32
        assert model.certify(x, PatchThreat(1, 1)).guard == GUARD_REDUCED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", MODELS[:4:3])
def test_other_precisions(kind, dtype):
    """`.to(dtype)` takes float32 images, answers in float32, and widens the guard where it must."""
    model, x = models()[kind], toys.images(4)
    scores = model.scores(x)
    model.to(dtype)
    assert model.guard == (GUARD_REDUCED if dtype == torch.bfloat16 else GUARD_FLOAT32)
    other = model.scores(x)
    assert other.dtype == torch.float32
    assert (other - scores).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-5)
    shares = model(x)
    assert shares.dtype == torch.float32
    assert torch.equal(first_argmax(shares.detach()), model.predict(x))
    model.certify(x, PatchThreat(1, 1))


def test_three_hundred_ablations_are_counted():
    """PITFALLS 16 and 24: with 300 bands of equal votes, every class has 300, under autocast and in bfloat16 too."""
    model, x = toys.smoothed(toys.Fixed([0.0, 0.0, 0.0, 0.0]), Columns(1), Threshold(0.25)), torch.rand(1, 1, 1, 300)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert model.votes(x).cast.sum(dim=1).tolist() == [[300] * 4]
            assert model(x).tolist() == [[1.0] * 4]
        model.bfloat16()


class Bright(torch.nn.Module):
    """Class 1 for a band that is white, class 0 for a black one, in the precision of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = torch.nn.Parameter(torch.tensor([-8.0, 8.0]))

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        return (2 * encoded[:, 0].flatten(1).sum(dim=1, keepdim=True) - 1) * self.signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("voting", [Threshold(0.3), TopOne(), SummedScores()])
def test_one_vote_more_is_the_prediction(voting, dtype):
    """PITFALLS 24: 257 votes against 256, which are one and the same number in bfloat16, and the reverse."""
    x = torch.zeros(2, 1, 1, 513)
    x[0, ..., :257] = x[1, ..., 1::2] = 1
    assert x.flatten(1).sum(dim=1).tolist() == [257, 256]
    model = toys.smoothed(Bright().to(dtype), Columns(1), voting, classes=2)
    for inputs in (x, x.clone().requires_grad_()):
        assert model(inputs).argmax(dim=1).tolist() == model.predict(x).tolist() == [1, 0]
    assert model.certify(x, PatchThreat(1, 1)).prediction.tolist() == [1, 0]


def test_a_state_dict_carries_the_answers(model):
    """Loaded into a model with other weights, it gives the same scores."""
    other, x = copy.deepcopy(model), toys.images(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.ones_like(parameter).cumsum(0))
    assert not torch.equal(other.scores(x), model.scores(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.scores(x), model.scores(x))


@pytest.mark.parametrize("chunk", [1, 3, 7, 24, 10_000, None])
def test_chunks_change_no_vote(chunk):
    """PITFALLS 17: any chunk size, any split of the batch, alone or in company: within the guard, so the same votes."""
    x, whole = toys.images(5), toys.smoothed(chunk=64)
    votes, scores = whole.votes(x), whole.scores(x)
    model = toys.smoothed(chunk=chunk)
    assert torch.equal(model.votes(x).cast[~votes.close], votes.cast[~votes.close])
    for size in (1, 2, 3, 5):
        parts = torch.cat([model.scores(some) for some in x.split(size)])
        assert (parts - scores).abs().max() <= model.guard / 10
    gradients = []
    for m in (whole, model):
        inputs = x.clone().requires_grad_()
        m.soft(inputs).sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients)


def test_an_index_selects_ablations(model):
    """[n] for all images alike or [B,n] for each its own, in any order: the same logits (PITFALLS 11)."""
    x = toys.images(3)
    logits = model.logits(x)
    n = logits.shape[1]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.logits(x, order), logits[:, order], atol=1e-5, rtol=0)
    own = torch.stack([order.roll(i)[:3] for i in range(3)])
    expected = torch.stack([logits[i, own[i]] for i in range(3)])
    torch.testing.assert_close(model.logits(x, own), expected, atol=1e-5, rtol=0)
    votes = model.votes(x, order)
    assert torch.equal(votes.cast.sum(dim=1), model.votes(x).cast.sum(dim=1))
    assert model.scores(x, order[:0]).shape == (3, 0, toys.CLASSES)


def test_inputs_are_never_written(model):
    """PITFALLS 11: every public call leaves the caller's images and the model's weights bit for bit."""
    from robustpatch.classifiers.calibration import calibrate_guard

    x = toys.images(3)
    image, weights = x.clone(), copy.deepcopy(model.state_dict())
    for call in (
        model,
        model.soft,
        model.scores,
        model.votes,
        model.predict,
        model.largest_certified,
        lambda z: model.certify(z, PatchThreat(2, 1)),
        lambda z: calibrate_guard(model, z),
    ):
        call(x)
        assert torch.equal(x, image)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_an_empty_batch():
    """No images, no answers, no error."""
    for model in (toys.smoothed(), toys.smoothed(toys.strip())):
        none = toys.images(0)
        assert model.predict(none).shape == (0,)
        assert model(none).shape == (0, toys.CLASSES)
        assert model.certify(none, PatchThreat(1, 1)).certified.shape == (0,)
        assert model.largest_certified(none).shape == (0,)


def test_encodings_reach_the_base():
    """The base sees what the encoding makes of image and mask, one ablation after the other."""
    seen = []
    base = toys.Fixed([0.0] * 4)
    base.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for encoding in (ComplementChannels(), MaskChannel()):
        seen.clear()
        x = toys.images(2, 3)
        toys.smoothed(base, Columns(3), encoding=encoding).predict(x)
        masks = Columns(3).masks(*toys.SIZE)
        expected = [encoding(one.expand(len(masks), -1, -1, -1), masks) for one in x]
        assert torch.equal(torch.cat(seen), torch.cat(expected))
