"""PatchCleanser around networks: what no patch changes, what its certificate assumes, how it is trained."""

from __future__ import annotations

import pickle
from itertools import combinations, product

import pytest
import torch
from torch import nn

from attacks.base import judge
from attacks.pgd import PatchPGD
from robustpatch.checkpoints import load_checkpoint
from robustpatch.defenses import parse_defense
from robustpatch.defenses.double_masking import majority
from robustpatch.defenses.patchcleanser import GUARD_REDUCED, DoubleMasking, PatchCleanser
from robustpatch.defenses.patchguard import PatchGuard
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.voting.rules import Threshold
from tests import helpers, toys
from tests.as_evaluator import evaluations

SIZE = (4, 5)
THREAT = PatchThreat(1, 2)
TEXTS = ["patchcleanser:masks=2x3,patch=1x2", "patchcleanser:masks=2,patch=1x2,hidden=mask"]


def smooth(channels: int = 1, size: tuple[int, int] = SIZE, classes: int = 3, seed: int = 0) -> nn.Module:
    """A linear network whose weights vary little over the image, so that masks seldom change its answer."""
    network = toys.linear(channels, size, classes)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        of_class = torch.randn(classes, 1, generator=chance)
        network[1].weight.copy_(of_class + 0.8 * torch.randn(network[1].weight.shape, generator=chance))
        network[1].bias.copy_(-network[1].weight.sum(dim=1) / 2)
    return network


def model_of(text: str, **options) -> PatchCleanser:
    defense = parse_defense(text)
    assert isinstance(defense, DoubleMasking)
    channels = 1 if defense.encoding is None else defense.encoding.channels(1)
    return PatchCleanser(smooth(channels, **options), defense, num_classes=3).eval()


def images(count: int, size: tuple[int, int] = SIZE, seed: int = 3) -> torch.Tensor:
    """Bright, dark and mixed ones."""
    chance = torch.Generator().manual_seed(seed)
    light = torch.rand(count, 1, 1, 1, generator=chance)
    return (light + 0.3 * (torch.rand(count, 1, *size, generator=chance) - 0.5)).clamp(0, 1)


def by_black_and_white(model: PatchCleanser, x: torch.Tensor) -> torch.Tensor:
    """Which predictions some patch of black and white pixels changes, at any placement."""
    attacked, places = [], THREAT.placements(x.shape[2], x.shape[3]).tolist()
    for (row, column), content in product(places, product((0.0, 1.0), repeat=2)):
        attacked.append(x.clone())
        attacked[-1][:, 0, row, column : column + 2] = torch.tensor(content)
    return (model.predict(torch.cat(attacked)).view(len(attacked), len(x)) != model.predict(x)).any(dim=0)


@pytest.mark.parametrize("text", TEXTS)
def test_no_patch_of_black_and_white_changes_a_certified_prediction(text):
    """All contents at all placements."""
    model, x = model_of(text), images(40)
    certificate = model.certify(x, THREAT)
    assert torch.equal(certificate.prediction, model.predict(x))
    assert 0 < int(certificate.certified.sum()) < len(x)
    broken = by_black_and_white(model, x)
    assert not (broken & certificate.certified).any()
    assert broken.any()


def test_smaller_patches_are_certified_where_one_of_their_masks_holds():
    """More images than with the patch that the masks are made for, and none that some content changes."""
    size = (2, 12)
    model, x = model_of("patchcleanser:masks=1x8,patch=1x5", size=size, seed=3), images(100, size, seed=3)
    whole, small = model.certify(x, PatchThreat(1, 5)), model.certify(x, THREAT)
    assert 0 < int(whole.certified.sum()) < int(small.certified.sum()) < len(x)
    assert not (whole.certified & ~small.certified).any()
    assert not (by_black_and_white(model, x) & small.certified).any()
    margins = model.placement_margins(x, THREAT)
    assert torch.equal((margins > 0).all(dim=1), small.certified)
    alone = torch.cat([model.placement_margins(one[None], THREAT) for one in x[:5]])
    assert torch.allclose(alone, margins[:5], atol=1e-5)


def test_two_patches_do_not_change_a_prediction_certified_for_two():
    defense = "patchcleanser:masks=2x3,patch=2*1x1"
    model, x = model_of(defense), images(30)
    certificate = model.certify(x, PatchThreat(1, 1, 2))
    assert certificate.certified.any()
    x, expected = x[certificate.certified][:6], certificate.prediction[certificate.certified][:6]
    attacked = []
    for where, content in product(combinations(range(20), 2), product((0.0, 1.0), repeat=2)):
        attacked.append(x.flatten(1).clone())
        attacked[-1][:, where] = torch.tensor(content)
    predictions = model.predict(torch.cat(attacked).view(-1, *x.shape[1:]))
    assert (predictions.view(len(attacked), len(x)) == expected).all()


def test_what_masks_hide_is_never_seen_not_even_nan():
    for text in TEXTS:
        model, x = model_of(text), images(2)
        masks = model.defense.mask_set(*SIZE)
        every = torch.arange(len(masks.unions))
        hidden = masks.hidden()[masks.unions].any(dim=1)
        clean = model.logits(x, torch.zeros_like(every), every)
        for row, column in THREAT.placements(*SIZE).tolist():
            covered = hidden[:, row, column : column + 2].all(dim=1)
            for content in (torch.nan, torch.inf, 1e30):
                attacked = x.clone()
                attacked[:, :, row, column : column + 2] = content
                seen = model.logits(attacked, torch.zeros_like(every), every)
                assert covered.any()
                assert torch.equal(seen[covered], clean[covered])


def test_predictions_do_not_depend_on_batches_or_chunks():
    model, x = model_of(TEXTS[1]), images(9)
    together = model.certify(x, THREAT)
    for chunk in (1, 3, None):
        other = PatchCleanser(model.network, model.defense, num_classes=3, chunk=chunk).eval()
        alone = [other.certify(image[None], THREAT) for image in x]
        assert torch.equal(torch.cat([one.certified for one in alone]), together.certified)
        assert torch.equal(torch.cat([one.prediction for one in alone]), together.prediction)
    nothing = model.certify(x[:0], THREAT)
    assert nothing.certified.shape == nothing.prediction.shape == model.predict(x[:0]).shape == (0,)


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x):
        self.rows += len(x)
        return self.inner(x)


def test_pickles_and_states_name_what_they_named():
    """Whatever file the network is asked in: the module of the class, and the network's weights."""
    model = model_of(TEXTS[0])
    content = pickle.dumps(model)
    assert b"robustpatch.defenses.patchcleanser" in content
    assert b"masked_network" not in content
    assert torch.equal(pickle.loads(content)(images(3)), model(images(3)))
    assert sorted(model.state_dict()) == ["network.1.bias", "network.1.weight"]


def test_evaluations_are_counted_at_least_as_they_are():
    model = model_of("patchcleanser:masks=4x2,patch=1x2")
    model.network = Counting(model.network).eval()
    for image in images(20):
        forward, whole = evaluations(model, image[None])
        assert (forward, whole) == (16, 36)
        for work, most in ((model, forward), (model.predict, whole)):
            model.network.rows = 0
            work(image[None])
            assert 8 <= model.network.rows <= most


def test_attacks_climb_the_gradient_and_break_what_is_not_certified():
    model, x = model_of(TEXTS[0]), images(40)
    certificate = model.certify(x, THREAT)
    attack = PatchPGD(restarts=20, steps=10)
    found = attack(model, x, certificate.prediction, THREAT, generator=torch.Generator().manual_seed(0))
    broken = judge(model, x, certificate.prediction, THREAT, found).broken
    assert not (broken & certificate.certified).any()
    assert (broken | ~by_black_and_white(model, x)).all()
    leaf = x.clone().requires_grad_()
    model(leaf).amax(dim=1).sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad != 0).flatten(1).any(dim=1).all()


def test_outputs_name_what_is_predicted():
    """Wherever no more than one mask dissents; where more do, a dissenter that is not the surest may stand."""
    model, x = model_of(TEXTS[0]), images(60)
    agree = model(x).argmax(dim=1) == model.predict(x)
    labels = model.looks(x)[0].first()
    dissenters = (labels != majority(labels)[:, None]).sum(dim=1)
    assert dissenters.unique().tolist() == [0, 1]
    assert agree.all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": "0"}, "masks is '0'"),
        ({"masks": "6x6x6"}, "masks is '6x6x6'"),
        ({"masks": "six"}, "masks is 'six'"),
        ({"hidden": "1.5"}, "hidden is 1.5"),
        ({"hidden": "grey"}, "known are complement, mask"),
        ({"guard": -1.0}, "guard is -1"),
        ({"guard": float("nan")}, "guard is nan"),
        ({"worst": -1}, "worst is -1"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(InvalidInput, match=said):
        DoubleMasking(**options)


def test_threats_that_the_masks_do_not_hide_are_refused():
    model, x = model_of(TEXTS[0]), images(2)
    for threat in (PatchThreat(4, 4), PatchThreat(1, 1, 2), AnyOf([THREAT, PatchThreat(3, 3)])):
        with pytest.raises(InvalidInput, match="masks are made for 1x2"):
            model.certify(x, threat)
    with pytest.raises(InvalidInput, match="masks are made for 1x2"):
        model.placement_margins(x, PatchThreat(4, 4))
    with pytest.raises(InvalidInput, match="only one patch has a map"):
        model_of("patchcleanser:masks=2x3,patch=2*1x2").placement_margins(x, PatchThreat(1, 2, 2))
    with pytest.raises(InvalidInput, match="larger than the image"):
        model.certify(x, PatchThreat(9, 9))
    with pytest.raises(InvalidInput, match="larger than the image"):
        model_of("patchcleanser:patch=7x7").predict(x)


class Coupled(nn.Module):
    def forward(self, x):
        return torch.stack([9 * x.mean() + x.flatten(1).sum(dim=1), *[x.flatten(1).sum(dim=1)] * 2], dim=1)


class Random(nn.Module):
    def forward(self, x):
        return 1000 * torch.rand(len(x), 3)  # far beyond the guard, 0.5 without weights that tell the precision


class Lost(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 3), torch.nan)


@pytest.mark.parametrize("network", [Coupled(), Random(), Lost()])
def test_networks_that_the_proof_does_not_hold_for_are_refused(network):
    model = PatchCleanser(network, parse_defense(TEXTS[0]), num_classes=3).eval()
    with pytest.raises(InvalidInput, match=r"logits differ|NaN"):
        model.certify(images(2), THREAT)


def test_wrong_calls_are_refused():
    model, x = model_of(TEXTS[0]), images(2)
    for call in (model.predict, lambda images: model.certify(images, THREAT)):
        with pytest.raises(InvalidInput, match="divide by 255"):
            call(x * 255)
        model.network.train()
        with pytest.raises(InvalidInput, match="training mode"):
            call(x)
        model.eval()
    with pytest.raises(InvalidInput, match="num_classes is 4"):
        PatchCleanser(smooth(), parse_defense(TEXTS[0]), num_classes=4).eval().predict(x)
    with pytest.raises(InvalidInput, match="chunk is 0"):
        PatchCleanser(smooth(), num_classes=3, chunk=0)


class Undecided(nn.Module):
    """Scores at the very threshold of a vote, on either side of it as the number of rows has it: what rounding does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        apart = 1e-7 * (-1) ** len(x) * (x[:, 1].amin(dim=(1, 2)) == 0)
        return self.bias + torch.stack([-apart, apart, torch.full_like(apart, -100.0)], dim=1)


def test_networks_that_count_votes_are_refused():
    """Around them the guard of logits says nothing: a score moves by 1e-7, and a vote turns."""
    votes = toys.smoothed(Undecided().eval(), toys.Columns(2), classes=3, voting=Threshold(0.5))
    x = images(1)
    assert not torch.equal(votes(x), votes(torch.cat([x, x]))[:1])
    inner = toys.smoothed(toys.linear(size=SIZE, classes=3), toys.Columns(2), classes=3)
    for network in (inner, model_of(TEXTS[0]), PatchGuard(window="1x1").wrap(inner, num_classes=3)):
        with pytest.raises(InvalidInput, match="jump where rounding turns a vote over"):
            PatchCleanser(network, num_classes=3)


def test_less_precision_takes_a_larger_guard():
    model = model_of(TEXTS[0])
    assert model.guard == 1e-3
    assert model.bfloat16().guard == GUARD_REDUCED


def test_a_close_pair_is_not_certified_and_counted():
    model, x = model_of(TEXTS[0]), images(40)
    certified = model.certify(x, THREAT).certified
    wide = PatchCleanser(model.network, DoubleMasking("2x3", "1x2", guard=2.0), num_classes=3).eval()
    certificate = wide.certify(x, THREAT)
    assert int(certificate.certified.sum()) < int(certified.sum())
    assert not (certificate.certified & ~certified).any()
    assert (certificate.close[~certificate.certified & certified] > 0).all()
    assert (certificate.close[certificate.certified] == 0).all()


def test_the_worst_pair_is_found_greedily():
    """With all views tried: the worst view, then the worst second one with it."""
    model, x = model_of(TEXTS[0] + ",worst=6"), images(8)
    y = model.predict(x)
    masks = model.defense.mask_set(*SIZE)
    losses = torch.stack(
        [
            nn.functional.cross_entropy(
                model.logits(x, torch.arange(len(x)), torch.full((len(x),), union)), y, reduction="none"
            )
            for union in range(len(masks.unions))
        ]
    )
    first = losses[: len(masks.views)].argmax(dim=0)
    worst = torch.stack([losses[masks.pair[v], i].max() for i, v in enumerate(first.tolist())])
    model.train()
    found = model.training_loss(x, y, THREAT, torch.Generator().manual_seed(0), 0.0)
    assert torch.allclose(found, worst.mean())
    assert model.network.training


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_network_is_trained_under_masks_and_loaded(bfloat16, tmp_path):
    """In bfloat16 too, whose scores are held against float32's on images as the network is shown them: with a channel
    for the mask.
    """
    sample = helpers.digits(80)
    x, y = sample.batch(range(80))
    config = TrainingConfig(
        ablation=None,
        defense="patchcleanser:masks=2,hidden=mask,worst=2",
        network={"name": "small-cnn", "widths": [4], "hidden": 8, "deeper": 1, "norm": True},
        epochs=1,
        batch_size=40,
        bfloat16=bfloat16,
    )
    model = train(config, sample, sample, tmp_path)
    loaded = load_checkpoint(tmp_path / "checkpoint.safetensors").model
    assert isinstance(loaded, PatchCleanser)
    assert str(loaded.defense) == config.defense
    assert torch.equal(loaded(x[:3]), model(x[:3]))
    with pytest.raises(InvalidInput, match="masks are made for 5x5"):
        loaded.training_loss(x, y, PatchThreat(20, 20), torch.Generator(), 0.0)
