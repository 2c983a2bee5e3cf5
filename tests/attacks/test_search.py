"""The climb and the two searches: what they visit, judge and keep; both views of a classifier agree."""

from __future__ import annotations

import pytest
import torch

import attacks.pgd
from attacks import ExhaustivePGD, PatchPGD, judge
from attacks.pgd import Search, climb
from attacks.victim import TouchedVictim, WholeVictim
from robustpatch.ablation import Blocks, Columns, Rows
from robustpatch.threat import AnyOf, PatchThreat
from robustpatch.voting import Threshold, TopOne
from tests.attacks.toys import Level, Lookup, images, smoothed, strip

SIZE = (6, 8)
EITHER = AnyOf([PatchThreat(2, 3), PatchThreat(3, 2)])
ABLATIONS = [Columns(2), Columns(3, 3), Rows(2), Rows(3, 4), Blocks(2), Blocks(2, 3, 3), Columns(1, 5)]


def attacked(model, threat, seed=0, number=12):
    """Clean images, random patches at random placements, and the numbers of these placements."""
    x, generator = images(number, SIZE, seed=seed), torch.Generator().manual_seed(seed)
    corners = threat.placements(*SIZE)
    placement = torch.randint(len(corners), (number, threat.count), generator=generator)
    footprint = threat.footprint(corners[placement], *SIZE)
    return x, torch.where(footprint[:, None], images(number, SIZE, seed=seed + 1), x), placement


def agree(model, threat):
    """Touched and whole view of the same attacked images: predictions, votes and the differences of the gap."""
    x, x_adv, placement = attacked(model, threat)
    y = model.predict(x)
    touched = model.ablation.touched(threat, *SIZE)
    part = TouchedVictim.of(model, y, model.votes(x).cast, touched, placement)
    whole = WholeVictim.of(model, x, y)
    (_, predicted), (_, truth) = part(x_adv), whole(x_adv)
    assert torch.equal(predicted, truth)
    assert torch.equal(predicted, model.predict(x_adv))
    cast = model.scores(x_adv, part.index)
    counts = (model.voting.votes(cast, model.guard).cast & part.valid[..., None]).sum(dim=1) + part.untouched
    assert torch.equal(counts, model.votes(x_adv).cast.sum(dim=1))
    assert part.index.shape[1] <= model.ablation.affected(threat, *SIZE)
    rows = torch.arange(len(x)) % 3 == 1
    assert torch.equal(part.keep(rows)(x_adv[rows])[1], truth[rows])
    assert torch.equal(whole.keep(rows)(x_adv[rows])[1], truth[rows])
    return bool((truth != y).any())


@pytest.mark.parametrize("voting", [Threshold(0.3), TopOne()])
@pytest.mark.parametrize("threat", [PatchThreat(1, 8), PatchThreat(2, 2, 2), *EITHER.threats], ids=str)
def test_both_views_agree_by_enumeration(threat, voting):
    """Re-scoring only the touched ablations gives the votes of the whole, for every geometry."""
    models = [smoothed(Lookup(1, 2 * 48, 3, favour=0.0), ablation, 3, voting) for ablation in ABLATIONS]
    moved = [agree(model, threat) for model in models]
    assert any(moved)


@pytest.mark.parametrize("threat", [PatchThreat(2, 3), PatchThreat(3, 2, 2)], ids=str)
@pytest.mark.parametrize("ablation", [Columns(2), Columns(3, 3), Rows(2), Rows(3, 4)], ids=str)
def test_both_views_agree_in_one_pass(ablation, threat):
    """The same for a base that scores all bands at once and some of them by index."""
    agree(strip(SIZE, ablation), threat)


def test_the_objective_points_the_same_way():
    """The gradient of the part and of the whole are the same inside the footprint."""
    model, threat = smoothed(Level(3), Columns(2), 3, Threshold(0.3)), PatchThreat(2, 3)
    x, x_adv, placement = attacked(model, threat)
    y = model.predict(x)
    corners = threat.placements(*SIZE)[placement]
    inside = threat.footprint(corners, *SIZE)[:, None].expand_as(x)
    gradients = []
    touched = model.ablation.touched(threat, *SIZE)
    for victim in (WholeVictim.of(model, x, y), TouchedVictim.of(model, y, model.votes(x).cast, touched, placement)):
        leaf = x_adv.clone().requires_grad_()
        rival = victim(leaf)[0].sum()
        gradients.append(torch.autograd.grad(rival, leaf)[0][inside])
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.8


class Script:
    """A victim that answers from a list, and keeps what it was shown."""

    def __init__(self, answers, y, shown):
        self.answers, self.y, self.shown = answers, y, shown
        self.cost = torch.full_like(y, 3)

    def __call__(self, x_adv):
        self.shown.append(x_adv.detach().clone())
        prediction = self.answers[:, len(self.shown) - 1]
        return (x_adv * torch.arange(1.0, x_adv.shape[3] + 1)).sum(dim=(1, 2, 3)), prediction

    def keep(self, rows):
        return Script(self.answers[rows], self.y[rows], self.shown)


def scripted(answers, group, steps=3):
    answers = torch.tensor(answers)
    y, shown = torch.zeros(len(answers), dtype=torch.long), []
    x = torch.full((len(answers), 1, 2, 3), 0.5)
    footprint = torch.zeros(len(answers), 2, 3, dtype=torch.bool)
    footprint[:, 0] = True
    found = climb(
        Script(answers, y, shown),
        x,
        footprint,
        y,
        torch.tensor(group),
        steps=steps,
        step=0.1,
        generator=torch.Generator().manual_seed(0),
    )
    return found, shown


@pytest.mark.parametrize("hit", [0, 1, 2, 3])
def test_every_iterate_is_judged(hit):
    """A success at any iterate, the random start and the last included, is found, kept and ends the climb."""
    found, shown = scripted([[int(t == hit) for t in range(4)]], [0])
    assert found.broken.all()
    assert torch.equal(found.x_adv, shown[hit])
    assert len(shown) == hit + 1
    assert found.evaluations.tolist() == [3 * (2 * (hit + 1) if hit < 3 else 7)]


def test_without_success_the_least_objective_is_kept():
    """A failed climb costs 2·steps + 1 forward passes and returns its best iterate."""
    found, shown = scripted([[0, 0, 0, 0]], [0])
    assert not found.broken.any()
    assert found.evaluations.tolist() == [21]
    weights = torch.arange(1.0, 4)
    least = min(shown, key=lambda x: float((x * weights).sum()))
    assert torch.equal(found.x_adv, least)
    assert torch.isclose(found.gap, (least * weights).sum()).all()


def test_a_success_ends_the_climbs_of_its_image_only():
    """Rows of the same group stop with it, the others go on."""
    found, shown = scripted([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], [5, 5, 6])
    assert found.broken.tolist() == [True, False, False]
    assert [len(x) for x in shown] == [3, 3, 1, 1]
    assert found.evaluations.tolist() == [12, 12, 21]


def test_nothing_changes_outside_the_footprint():
    """Each iterate agrees with the image outside, bit by bit, and stays in [0, 1]."""
    _, shown = scripted([[0, 0, 0, 0]], [0])
    for x in shown:
        assert (x[:, :, 1] == 0.5).all()
        assert ((x >= 0) & (x <= 1)).all()


@pytest.fixture
def tried(monkeypatch):
    """The placements that searches climb at, by image."""
    seen: dict[int, list[int]] = {}
    original = Search.run

    def run(self, image, placement, batch, **options):
        for i, where in zip(image.tolist(), placement.tolist(), strict=True):
            if not self.broken[i]:
                seen.setdefault(i, []).extend(where)
        return original(self, image, placement, batch, **options)

    monkeypatch.setattr(attacks.pgd.Search, "run", run)
    return seen


def test_the_exhaustive_search_visits_what_is_open(tried):
    """Pruned, it climbs at the placements that the exact certificate leaves open, by margin, and no others."""
    model, threat = smoothed(Lookup(2, 2 * 48, 3, favour=2.0), Columns(1), 3), PatchThreat(2, 2)
    x = images(12, SIZE, binary=True)
    margins = model.certify(x, threat).placement_margin
    some_open = (margins < 0).any(dim=1)
    assert some_open.any()
    assert (margins >= 0).any()
    proposal = ExhaustivePGD(steps=1, rounds=0)(model, x, model.predict(x), threat, generator=torch.Generator())
    broken = judge(model, x, model.predict(x), threat, proposal).broken
    assert (some_open & ~broken).any()
    for i in range(len(x)):
        visited = tried.get(i, [])
        values = margins[i][torch.tensor(visited, dtype=torch.long)]
        assert (values < 0).all()
        assert torch.equal(values, values.sort().values)
        if not broken[i]:
            assert set(visited) == set((margins[i] < 0).nonzero()[:, 0].tolist())
            assert float(proposal.visited[i]) == bool(some_open[i])


def test_unpruned_it_visits_every_placement(tried):
    """Unpruned, every placement of every certified image is climbed at, whatever the certificate says."""
    model, threat = smoothed(Level(2), Columns(1), 2), PatchThreat(2, 2)
    x = torch.zeros(2, 1, *SIZE)
    assert model.certify(x, threat).certified.all()
    attack = ExhaustivePGD(steps=1, rounds=0).unpruned(None)
    proposal = attack(model, x, model.predict(x), threat, generator=torch.Generator())
    assert all(sorted(tried[i]) == list(range(5 * 7)) for i in range(2))
    assert (proposal.visited == 1).all()
    assert (proposal.evaluations == 35 * 3 * 8).all()


def test_pruned_it_leaves_certified_images_alone(tried):
    """With nothing open there is nothing to try: no climb, and the image as it was."""
    model, x, threat = smoothed(Level(2), Columns(1), 2), torch.zeros(2, 1, *SIZE), PatchThreat(2, 2)
    proposal = ExhaustivePGD(steps=1)(model, x, model.predict(x), threat, generator=torch.Generator())
    assert not tried
    assert (proposal.visited == 0).all()
    assert torch.equal(proposal.x_adv, x)


def test_later_sweeps_return_to_where_it_came_closest(tried):
    """Each further sweep takes a share of the placements of the one before, and twice the steps."""
    model, x = smoothed(Level(2), Columns(1), 2), torch.zeros(1, 1, *SIZE)
    attack = ExhaustivePGD(steps=1, rounds=2, keep=0.2).unpruned(None)
    proposal = attack(model, x, model.predict(x), PatchThreat(2, 2), generator=torch.Generator())
    first, second, third = tried[0][:35], tried[0][35:42], tried[0][42:]
    assert sorted(first) == list(range(35))
    assert len(set(second)) == 7
    assert len(third) == 1
    assert set(third) <= set(second)
    assert proposal.evaluations.tolist() == [8 * (35 * 3 + 7 * 5 + 1 * 9)]


@pytest.mark.parametrize("count", [1, 2])
def test_visited_is_the_share_of_distinct_placements(tried, count):
    """PGD draws with repetition; each placement counts once, also where two patches are put down together."""
    model, x, threat = smoothed(Level(2), Columns(1), 2), torch.zeros(3, 1, *SIZE), PatchThreat(1, 1, count)
    proposal = PatchPGD(steps=1, restarts=25)(model, x, model.predict(x), threat, generator=torch.Generator())
    for i in range(3):
        assert len(tried[i]) == 25 * count
        assert float(proposal.visited[i]) == pytest.approx(len(set(tried[i])) / 48)


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_batches_only_bound_memory(batch):
    """Whatever the batch, the searches succeed on what is easy."""
    model, x, threat = smoothed(Level(2), Columns(2), 2), torch.zeros(3, 1, *SIZE), PatchThreat(2, 4)
    y = model.predict(x)
    for attack in (PatchPGD(steps=4, restarts=4, batch=batch), ExhaustivePGD(steps=4, batch=batch)):
        proposal = attack(model, x, y, threat, generator=torch.Generator())
        assert judge(model, x, y, threat, proposal).broken.all()


@pytest.mark.parametrize("voting", [Threshold(0.3), TopOne()])
def test_a_patch_between_the_bands_touches_nothing(voting):
    """Bands with gaps: a climb that no ablation sees ends without success and without an error."""
    model = smoothed(Level(2), Columns(1, 4), 2, voting)
    x = images(2, (5, 8))
    attack = PatchPGD(steps=2, restarts=20, batch=1)  # one at a time, so that some climbs touch nothing at all
    proposal = attack(model, x, model.predict(x), PatchThreat(1, 1), generator=torch.Generator().manual_seed(0))
    assert proposal.x_adv.shape == x.shape
