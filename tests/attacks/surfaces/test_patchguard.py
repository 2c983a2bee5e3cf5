"""What attacks know of PatchGuard: the touched ablations say what the whole says, and nothing open is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks import ExhaustivePGD, PatchPGD, SparseRS, judge
from attacks.placement import open_placements
from attacks.search import Search
from attacks.surfaces.patchguard import PatchGuardView, rival_margins
from attacks.surfaces.views import WholeView
from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.certificates.robust_masking import incidence
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchguard import MaskedClassifier, PatchGuard
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne, Voting
from robustpatch.voting.scored import ClippedTanh, SummedScores
from robustpatch.voting.votes import first_argmax
from tests.attacks.toys import Counting, Level, Lookup, images, smoothed, worlds
from tests.toys import one_pass

SIZE = (3, 6)
VOTINGS: list[Voting] = [TopOne(1e-6), Threshold(0.35, 1e-6), SummedScores(1e-6), ClippedTanh(0.5, 0.0, 1e-6)]
ABLATIONS: list[Ablation] = [Columns(1), Columns(2), Columns(2, 2), Rows(1), Blocks(2, 2)]


def masked(
    seed: int, ablation: Ablation, voting: Voting, window: str = "2x2", threshold: float = 0.0
) -> MaskedClassifier:
    """Around an arbitrary function of what each ablation shows of the binarised image."""
    network = smoothed(Lookup(seed, 2 * SIZE[0] * SIZE[1], 3, 2.0), ablation, 3, voting)
    return PatchGuard(window=window, threshold=threshold).wrap(network, num_classes=3).eval()


def smooth(seed: int, window: str = "2x2") -> MaskedClassifier:
    """Around a network with gradients, in one pass."""
    net = one_pass(Columns(2), SIZE, 1, 3, seed=seed)
    with torch.no_grad():
        net.head[-1].weight *= 20
    network = SmoothedClassifier(net, net.ablation, num_classes=3, voting=SummedScores())
    return PatchGuard(window=window).wrap(network, num_classes=3).eval()


def search_of(model: MaskedClassifier, x: Tensor, threat: PatchThreat, budget: int | None = None) -> Search:
    y = model.predict(x)
    return Search(model, x, y, threat, touched_only=True, budget=budget, generator=torch.Generator().manual_seed(0))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    ablation=st.sampled_from(ABLATIONS),
    voting=st.sampled_from(VOTINGS),
    threshold=st.sampled_from([0.0, 0.3, 1.0]),
    count=st.sampled_from([1, 2]),
)
def test_the_touched_ablations_say_what_all_of_them_say(seed, ablation, voting, threshold, count):
    """At every placement (of the first rectangle), with random content; rows taken apart and put together again."""
    model, threat = masked(seed, ablation, voting, threshold=threshold), PatchThreat(2, 2, count)
    x, chance = images(3, SIZE, seed=seed % 97), torch.Generator().manual_seed(seed)
    search = search_of(model, x, threat)
    image, first = torch.meshgrid(torch.arange(3), torch.arange(len(search.families[0])), indexing="ij")
    image, first = image.flatten(), first.flatten()
    rest = torch.randint(len(search.families[0]), (len(first), count - 1), generator=chance)
    placement = torch.cat([first[:, None], rest], dim=1)
    x_adv = search.paste(image, placement, torch.rand(len(image), count, 1, 2, 2, generator=chance))
    victim = search.view(image, placement)
    assert isinstance(victim, PatchGuardView)
    half = torch.arange(len(image)) % 2 == 0
    parts = victim.keep(half).join(victim.keep(~half))
    for seen, rows in (
        (victim, torch.arange(len(image))),
        (parts, torch.cat([half.nonzero(), (~half).nonzero()])[:, 0]),
    ):
        value, prediction = seen(x_adv[rows])
        assert torch.equal(prediction, model.predict(x_adv[rows]))
        votes = model.network.votes(x_adv[rows])
        left = model.left(votes, SIZE).double() / votes.unit
        own = left.gather(1, search.y[image[rows], None])[:, 0]
        others = left.scatter(1, search.y[image[rows], None], -torch.inf).amax(dim=1)
        if votes.unit > 1:  # of votes the objective is soft
            assert torch.allclose(value.double(), own - others, atol=1e-3)
        assert torch.equal(seen.cost, victim.cost[rows])


def changed(model: MaskedClassifier, x: Tensor, threat: PatchThreat) -> tuple[Tensor, Tensor]:
    """Bool[B,L,K]: whether some content of zeros and ones at that placement makes the prediction that class."""
    found, places = [], len(threat.placements(*SIZE))
    for image in x:
        said = model.predict(worlds(image, threat)).view(places, -1)
        found.append(torch.nn.functional.one_hot(said, 3).bool().any(dim=1))
    return torch.stack(found)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    ablation=st.sampled_from(ABLATIONS),
    voting=st.sampled_from(VOTINGS),
    threshold=st.sampled_from([0.0, 0.3, 1.0]),
    patch=st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 2)]),
    window=st.sampled_from(["1x1", "2x2", "3x3"]),
)
def test_nothing_is_given_up_that_some_patch_reaches(seed, ablation, voting, threshold, patch, window):
    """All contents, at all placements: neither a placement is closed where one changes the prediction, nor a rival.

    Of patches, too, that touch more than any window holds: `certify` refuses them, but an attack needs no refusal.
    """
    model, threat = masked(seed, ablation, voting, window, threshold), PatchThreat(*patch)
    x = images(2, SIZE, seed=seed % 97)
    truth, search = changed(model, x, threat), search_of(model, x, threat)
    truth.scatter_(2, search.y[:, None, None].expand(-1, truth.shape[1], 1), False)
    found = open_placements(search)
    sets = model.network.ablation.touched(threat, *SIZE).set_of_placement
    for i, each in enumerate(found):
        lost = truth[i].any(dim=1).nonzero()[:, 0]
        assert set(lost.tolist()) <= set(each.placement.tolist())
        assert search.surface.reach is not None
        assert not (truth[i] & ~search.surface.reach[i, sets]).any()
    if model.masking(*SIZE).covers(incidence(ablation, threat, SIZE)):
        certified = model.certify(x, threat).certified
        assert torch.equal(certified, torch.tensor([len(each) == 0 for each in found]))


def test_openings_are_mixed_and_the_cheapest_come_first():
    """The property above is not void: on the same images some placements are closed, some open, some lost."""
    threat, counts = PatchThreat(1, 1), torch.zeros(3, dtype=torch.long)
    for seed in range(12):
        model, x = masked(seed, Columns(1), SummedScores(1e-6)), images(6, SIZE, seed=seed)
        search = search_of(model, x, threat)
        margins = rival_margins(model, search.surface.votes, search.y, threat, SIZE)
        least = margins.amin(dim=2)[:, model.network.ablation.touched(threat, *SIZE).set_of_placement]
        truth = (changed(model, x, threat).sum(dim=2) > 1) | (model.predict(x)[:, None] < 0)
        for i, each in enumerate(open_placements(search)):
            assert set(each.placement.tolist()) == set((least[i] < 0).nonzero()[:, 0].tolist())
            assert torch.equal(least[i][each.placement], least[i][each.placement].sort().values)
            if 0 < len(each) < least.shape[1]:
                counts += torch.tensor([least.shape[1] - len(each), len(each), int(truth[i].sum())])
    assert (counts > 10).all(), counts


@pytest.mark.parametrize("threat", [PatchThreat(3, 3), PatchThreat(2, 2, 2)])
def test_threats_that_are_not_certified_are_attacked(threat):
    """A patch larger than the window; and two."""
    model, x = smooth(1), images(4, SIZE)
    y, attack = model.predict(x), PatchPGD(steps=3, restarts=2)
    found = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    assert judge(model, x, y, threat, found).contained.all()


@pytest.mark.parametrize(
    "attack", [PatchPGD(steps=3, restarts=4), ExhaustivePGD(steps=2, rounds=1), SparseRS(queries=40)]
)
@pytest.mark.parametrize("budget", [None, 300])
def test_every_ablation_scored_is_counted_and_no_other(attack, budget):
    """What an attack says that it spent is what the base was asked, forward and backward."""
    model, x, threat = masked(4, Columns(1), SummedScores(1e-6)), images(6, SIZE), PatchThreat(1, 2)
    y = model.predict(x)
    model.network.base = Counting(model.network.base).eval()
    found = replace(attack, budget=budget)(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    assert int(found.evaluations.sum()) == model.network.base.rows
    assert judge(model, x, y, threat, found).broken.any()


def test_guided_climbs_break_what_is_not_certified_and_blind_ones_half_of_it():
    """For as many evaluations; and nothing that is certified."""
    threat, broken, certified = PatchThreat(2, 2), [0, 0], 0
    for seed in range(4):
        network = SmoothedClassifier(Level(2), Columns(1), num_classes=2, voting=SummedScores())
        model, x = PatchGuard(window="2x2").wrap(network, num_classes=2).eval(), 0.6 * images(12, (2, 10), seed=seed)
        y, proved = model.predict(x), model.certify(x, threat).certified
        certified += int(proved.sum())
        for k, attack in enumerate((PatchPGD(budget=120), PatchPGD(budget=120, touched_only=False))):
            found = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
            fell = judge(model, x, y, threat, found).broken
            assert not (fell & proved).any()
            broken[k] += int(fell.sum())
    assert 0 < broken[0] == 48 - certified
    assert broken[1] < 0.7 * broken[0]


def test_the_mean_softmax_is_climbed_on_the_whole():
    """An objective that masking has no part in: the view of any other classifier."""
    model, x, threat = smooth(2), images(2, SIZE), PatchThreat(2, 2)
    rows = torch.tensor([0, 1])
    victim = search_of(model, x, threat).view(rows, rows[:, None], objective="mean-softmax")
    assert isinstance(victim, WholeView)
    assert torch.equal(victim(x)[1], first_argmax(model(x).detach()))
