"""Patches of different shapes at the same time: the worst votes, attacks on them, and what PatchCleanser proves."""

from __future__ import annotations

from itertools import islice, product

import pytest
import torch
from torch import nn

from attacks import ROA, ExhaustivePGD, Oracle, PatchAttack, PatchPGD, SparseRS, judge, worst_votes
from attacks.surfaces.together import sites_together
from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.lead import least_lead
from robustpatch.defenses import parse_defense
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.errors import InvalidInput
from robustpatch.threats import Disc, Mask, Patches, PatchThreat, Several, parse_threat
from robustpatch.voting.votes import Votes, first_argmax
from tests.attacks.toys import Lookup, Plain, smoothed
from tests.attacks.toys import images as bright_or_dark

CORNER = Mask.of(torch.tensor([[True, False], [True, True]]))
BOTH = Several([PatchThreat(1, 2), CORNER])
CASES = [
    (Columns(1), (3, 9), BOTH),
    (Blocks(2), (4, 5), Several([PatchThreat(2, 1), PatchThreat(1, 1)])),
    (Columns(1), (2, 9), PatchThreat(1, 2, 2)),
]


def votes(n: int, classes: int, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    favourite = torch.where(
        torch.rand(24, n, generator=chance) < torch.linspace(0.3, 1.1, 24)[:, None],
        0,
        torch.randint(classes, (24, n), generator=chance),
    )
    return nn.functional.one_hot(favourite, classes).bool()


def unions(ablation, threat: Patches, size: tuple[int, int]) -> torch.Tensor:
    """What each choice of a place for every patch touches, by the masks."""
    masks, places = ablation.masks(*size), [f.footprint(torch.arange(len(f))) for f in threat.families(*size)]
    touched = [(masks[None] & each[:, None]).flatten(2).any(dim=2) for each in places]
    return torch.stack([torch.stack(some).any(dim=0) for some in product(*touched)])


def least(cast: torch.Tensor, member: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The lead of y that is left where the touched ablations all vote for one rival, the worst of them."""
    found = []
    for rival in range(cast.shape[1]):
        turned = nn.functional.one_hot(torch.tensor(rival), cast.shape[1]).bool()
        counts = torch.where(member[..., None], turned, cast).sum(dim=-2).int()
        found.append(least_lead(counts, y.expand(len(counts))) if rival != int(y) else counts[:, 0] + 999)
    return torch.stack(found).amin(dim=0)


@pytest.mark.parametrize(("ablation", "size", "threat"), CASES, ids=str)
def test_the_worst_votes_are_the_worst_of_every_choice_of_places(ablation, size, threat):
    """And what certifies an image bounds them."""
    cast = votes(ablation.count(*size), 3, 0)
    worst, members = worst_votes(cast, ablation, threat, size), unions(ablation, threat, size)
    prediction = first_argmax(cast.sum(dim=1).int())
    truth = torch.stack([least(one, members, y).amin() for one, y in zip(cast, prediction, strict=True)])
    assert torch.equal(worst.lead, truth.to(worst.lead))
    assert torch.equal(worst.refuted, truth < 0)
    assert 0 < int(worst.refuted.sum()) < len(cast)
    certified = certify_votes(Votes(cast, torch.zeros_like(cast)), ablation, threat, size).certified
    assert not (certified & worst.refuted).any()
    footprint = threat.footprint(
        torch.stack([f.anchors[worst.placement[:, k]] for k, f in enumerate(threat.families(*size))], dim=1), *size
    )
    assert torch.equal(
        (ablation.masks(*size)[None] & footprint[:, None]).flatten(2).any(dim=2).sum(dim=1), worst.touched
    )


@pytest.mark.parametrize(("ablation", "size", "threat"), CASES, ids=str)
def test_places_chosen_together_are_nearly_the_worst(ablation, size, threat):
    """The first of them leaves the least lead that any choice leaves, for most images; repeats go on for ever."""
    cast, members = votes(ablation.count(*size), 3, 1), unions(ablation, threat, size)
    prediction, families = first_argmax(cast.sum(dim=1).int()), threat.families(*size)
    touched, best = [ablation.touched_at(family) for family in families], 0
    for one, y in zip(cast, prediction, strict=True):
        queue = sites_together(one, 1, int(y), touched, torch.Generator().manual_seed(0))
        chosen = [site for site, _ in islice(queue, 60)]
        assert all(0 <= number < len(family) for site in chosen for number, family in zip(site, families, strict=True))
        member = torch.stack([t.member(t.set_of_placement[n]) for t, n in zip(touched, chosen[0], strict=True)]).any(
            dim=0
        )
        found, truth = int(least(one, member[None], y)[0]), int(least(one, members, y).amin())
        assert found >= truth
        best += found == truth
    assert best >= 0.9 * len(cast)


@pytest.mark.parametrize("seed", range(2))
def test_no_attack_beats_the_oracle_and_none_breaks_a_certified_image(seed):
    """Every content of zeros and ones at every choice of places, on classifiers that see nothing else."""
    size = (2, 6)
    model = smoothed(Lookup(seed, 2 * 12, 3, favour=5.0), Columns(1), 3)
    x = bright_or_dark(4, size, seed=seed, binary=True)
    certificate, generator = model.certify(x, BOTH), torch.Generator().manual_seed(seed)
    y = certificate.prediction
    best = judge(model, x, y, BOTH, Oracle()(model, x, y, BOTH, generator=generator)).broken
    assert not (best & certificate.certified).any()
    for attack in (PatchPGD(steps=1, restarts=4), ExhaustivePGD(steps=1, budget=400), SparseRS(queries=30)):
        for one in (attack, attack.unpruned(400)):
            outcome = judge(model, x, y, BOTH, one(model, x, y, BOTH, generator=generator))
            assert outcome.contained.all()
            assert not (outcome.broken & ~best).any(), one


def test_patchcleanser_certifies_patches_of_different_shapes():
    """With a mask for each: no content of zeros and ones, at any choice of places, changes what is certified."""
    size, threat = (3, 4), Several([PatchThreat(1, 2), PatchThreat(2, 1)])
    defense = parse_defense("patchcleanser:masks=2x2,patch=1x2 & 2x1")
    assert isinstance(defense, DoubleMasking)
    chance, proved = torch.Generator().manual_seed(3), []
    linear = nn.Linear(12, 3).requires_grad_(False)
    linear.weight.copy_(torch.randn(3, 1, generator=chance) + 0.5 * torch.randn(3, 12, generator=chance))
    linear.bias.copy_(-linear.weight.sum(dim=1) / 2 + torch.tensor([1.0, 0.0, 0.0]))
    model = PatchCleanser(nn.Sequential(nn.Flatten(), linear), defense, num_classes=3).eval()
    x = torch.rand(10, 1, 1, 1, generator=chance).expand(-1, 1, *size).contiguous()
    certificate = model.certify(x, threat)
    contents = torch.tensor(list(product([0.0, 1.0], repeat=4)))
    corners = [family.footprint(torch.arange(len(family))) for family in threat.families(*size)]
    for image, y, certified in zip(x, certificate.prediction, certificate.certified, strict=True):
        proved.append(bool(certified))
        shown: list[torch.Tensor] = []
        if certified:
            for one, other in product(*corners):
                covered = (one | other).flatten().nonzero()[:, 0]
                attacked = image.flatten().repeat(16, 1)
                attacked[:, covered] = contents[:, : len(covered)]
                shown.append(attacked.view(16, 1, *size))
            assert (model.predict(torch.cat(shown)) == y).all()
    assert any(proved)
    assert not all(proved)
    with pytest.raises(InvalidInput, match="do not hide it everywhere"):
        model.certify(x, Several([PatchThreat(1, 2), PatchThreat(3, 1)]))
    with pytest.raises(InvalidInput, match="do not hide it everywhere"):
        model.certify(x, parse_threat("2*1x2 & 2x1"))


def test_a_smaller_patch_lies_at_the_border_too():
    """Its box is its own, and not that of the largest."""
    both = Several([Disc(4), PatchThreat(1, 1)])
    model, x = smoothed(Lookup(0, 2 * 30, 3), Columns(1), 3), bright_or_dark(2, (5, 6))
    y, seen = model.predict(x), set()
    for seed in range(6):
        found = PatchPGD(steps=1, restarts=5)(model, x, y, both, generator=torch.Generator().manual_seed(seed))
        assert judge(model, x, y, both, found).contained.all()
        seen |= {tuple(corner) for corner in found.corners[:, 1].tolist()}
    assert any(row > 1 or column > 2 for row, column in seen)


def test_places_chosen_together_leave_least():
    """Two patches, against every pair of their sets: the first choice is the one after which the label's lead over some
    class can be least, each touched ablation's vote being given to that class. Some of the cases can be won, not all.
    """
    ablation, size, found = Columns(1), (3, 7), []
    each = [ablation.touched_at(patch.families(*size)[0]) for patch in (PatchThreat(1, 2), PatchThreat(2, 2))]
    members = [one.member(one.set_of_placement) for one in each]
    for seed in range(40):
        chance = torch.Generator().manual_seed(seed)
        cast = nn.functional.one_hot(torch.randint(-2, 3, (7,), generator=chance).clamp(min=0), 3).bool()
        sites = sites_together(cast, 1, 0, each, chance)
        least = {}
        for (i, first), (k, second), j in product(enumerate(members[0]), enumerate(members[1]), (1, 2)):
            hit = first | second
            label, other = (cast[:, 0] & ~hit).sum(), (cast[:, j] | hit).sum()
            least[i, k, j] = int(label - other)
        (first, second), rival = next(sites)
        found.append(min(least.values()))
        assert least[first, second, rival] == found[-1], seed
    assert min(found) < 0


@pytest.mark.parametrize("seed", range(3))
def test_two_patches_within_a_small_budget_break_no_fewer_images_than_one(seed):
    """Nor than both put down one after the other for twice the evaluations: a small budget is climbed with, at places
    that the votes choose together, and not spent on grey patches.
    """
    model = smoothed(Plain(2 * 64, 3, seed), Blocks(3), 3)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    y, one, two = model.predict(x), PatchThreat(2, 2), PatchThreat(2, 2, 2)

    def broken(attack: PatchAttack, threat: PatchThreat) -> int:
        proposal = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
        return int(judge(model, x, y, threat, proposal).broken.sum())

    jointly = broken(ExhaustivePGD(budget=200), two)
    assert jointly > broken(ExhaustivePGD(budget=200), one)
    assert jointly >= broken(ROA(search="gradient", stride=3, budget=400), two)
