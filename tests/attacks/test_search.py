"""The climb and the two searches: what they visit, judge and keep; both views of a classifier agree."""

from __future__ import annotations

import pytest
import torch

from attacks import ExhaustivePGD, PatchPGD, SparseRS, judge
from attacks.climb import Ascent, BestClimbs, Task, climb
from attacks.pasting import crop, paste
from attacks.placement import open_placements
from attacks.search import Search
from attacks.surfaces import whole_view
from attacks.surfaces.smoothed import TouchedView
from robustpatch.ablations.kinds import Blocks, Columns, GridColumns, Rows
from robustpatch.certificates.margins import rival_margins
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.attacks.toys import Level, Lookup, Plain, images, smoothed, strip
from tests.toys import Fixed

SIZE = (6, 8)
EITHER = AnyOf([PatchThreat(2, 3), PatchThreat(3, 2)])
ABLATIONS = [
    Columns(2),
    Columns(3, 3),
    Rows(2),
    Rows(3, 4),
    Blocks(2),
    Blocks(2, 3, 3),
    Columns(1, 5),
    GridColumns(3, 2),
]


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
    part = TouchedView.of(model, y, model.votes(x).cast, [touched] * threat.count, placement)
    whole = whole_view(model, x, y)
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


def test_the_cost_is_of_the_row_s_own_ablations():
    """Rows that touch fewer ablations than their neighbours are not charged for those; none is free."""
    model, x = smoothed(Level(3), Columns(2, 3), 3), images(3, (4, 12))
    threat = PatchThreat(1, 1)
    touched = model.ablation.touched(threat, 4, 12)
    wide = model.ablation.touched(PatchThreat(1, 3), 4, 12)
    y, cast = model.predict(x), model.votes(x).cast
    assert set(touched.sizes.tolist()) == {0, 1}
    assert TouchedView.of(model, y, cast, [touched], torch.tensor([[0], [1], [2]])).cost.tolist() == [1, 1, 1]
    part = TouchedView.of(model, y, cast, [wide], torch.tensor([[0], [1], [2]]))
    assert part.cost.tolist() == [1, 2, 1]
    alone = [TouchedView.of(model, y[i], cast[i], [wide], torch.tensor([[int(i)]])) for i in torch.arange(3).split(1)]
    assert torch.equal(torch.cat([row.cost for row in alone]), part.cost)
    assert torch.equal(alone[0].join(alone[1]).cost, part.cost[:2])


@pytest.mark.parametrize("voting", [Threshold(0.3), TopOne()])
@pytest.mark.parametrize("sure", [10.0, 20.0, 60.0])
def test_sure_votes_have_a_gradient(sure, voting):
    """The votes of a class that leads by many logits are lowered too, when the rival named is out of reach."""

    class Sure(torch.nn.Module):
        def forward(self, encoded):
            kept = encoded[:, 0].flatten(1).amax(dim=1)
            return torch.stack([sure - kept, 0 * kept, 0 * kept - 200], dim=1)

    model, x = smoothed(Sure(), Columns(2), 3, voting), images(1, SIZE).requires_grad_()
    victim = whole_view(model, x, torch.tensor([0]), torch.tensor([2]))
    assert (torch.autograd.grad(victim(x)[0].sum(), x)[0] < 0).any()


def test_the_objective_points_the_same_way():
    """The gradient of the part and of the whole are the same inside the footprint."""
    model, threat = smoothed(Level(3), Columns(2), 3, Threshold(0.3)), PatchThreat(2, 3)
    x, x_adv, placement = attacked(model, threat)
    y = model.predict(x)
    corners = threat.placements(*SIZE)[placement]
    inside = threat.footprint(corners, *SIZE)[:, None].expand_as(x)
    gradients = []
    touched = model.ablation.touched(threat, *SIZE)
    for victim in (
        whole_view(model, x, y),
        TouchedView.of(model, y, model.votes(x).cast, [touched] * threat.count, placement),
    ):
        leaf = x_adv.clone().requires_grad_()
        rival = victim(leaf)[0].sum()
        gradients.append(torch.autograd.grad(rival, leaf)[0][inside])
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.8


class Script:
    """A victim that answers from a list for each row, and keeps what it was shown of it."""

    def __init__(self, rows, answers, shown):
        self.rows, self.answers, self.shown = rows, answers, shown
        self.cost = torch.full((len(rows),), 3)

    def __call__(self, x_adv):
        for row, image in zip(self.rows, x_adv.detach().clone(), strict=True):
            self.shown[row].append(image)
        prediction = torch.tensor([self.answers[row][len(self.shown[row]) - 1] for row in self.rows])
        return (x_adv * torch.arange(1.0, x_adv.shape[3] + 1)).sum(dim=(1, 2, 3)), prediction

    def keep(self, rows):
        return Script(
            [row for row, kept in zip(self.rows, rows.tolist(), strict=True) if kept], self.answers, self.shown
        )

    def join(self, other):
        return Script(self.rows + other.rows, self.answers, self.shown)


class Scripted(Search):
    """A search whose climbs are numbered as they begin, and whose hits are believed."""

    climb_cost = 3

    def __init__(self, answers, number, budget=None):
        x = torch.full((number, 1, 2, 3), 0.5)
        y = torch.zeros(number, dtype=torch.long)
        model = Fixed([1.0, 0.0]).eval()
        generator = torch.Generator().manual_seed(0)
        super().__init__(model, x, y, PatchThreat(1, 3), touched_only=False, budget=budget, generator=generator)
        self.evaluations.zero_()
        self.answers, self.shown = answers, {row: [] for row in range(len(answers))}
        self.begun = []

    def view(self, image, placement, rival=None, objective="votes"):
        rows = list(range(len(self.begun), len(self.begun) + len(image)))
        self.begun += image.tolist()
        return Script(rows, self.answers, self.shown)

    def offer(self, image, corners, x_adv, value, hit):
        super().offer(image, corners, x_adv, value, torch.zeros_like(hit))
        for i, row in zip(image[hit].tolist(), x_adv[hit], strict=True):
            self.broken[i], self.best[i] = True, row


def scripted(answers, group, steps=3, batch=9, budget=None, most=None):
    """Climbs with these answers, one after the other in the queues of the images that `group` names."""
    search = Scripted(answers, max(group) + 1, budget)
    queues = [[Task((0,))] * group.count(i) for i in range(max(group) + 1)]
    ends = climb(
        search, queues, Ascent(steps, 0.1), batch=batch, most=None if most is None else [most] * (max(group) + 1)
    )
    return search, ends


@pytest.mark.parametrize("hit", [0, 1, 2, 3])
def test_every_iterate_is_judged(hit):
    """A success at any iterate, the random start and the last included, is found, kept and ends the climb."""
    search, _ = scripted([[int(t == hit) for t in range(4)]], [0])
    assert search.broken.all()
    assert torch.equal(search.best[0], search.shown[0][hit])
    assert len(search.shown[0]) == hit + 1
    assert search.evaluations.tolist() == [3 * (2 * (hit + 1) if hit < 3 else 7)]


def test_without_success_the_least_objective_is_kept():
    """A failed climb costs 2·steps + 1 forward passes; its best iterate is kept, and is where it ends."""
    search, ends = scripted([[0, 0, 0, 0]], [0], most=1)
    assert not search.broken.any()
    assert search.evaluations.tolist() == [21]
    weights = torch.arange(1.0, 4)
    least = min(search.shown[0], key=lambda x: float((x * weights).sum()))
    assert torch.equal(search.best[0], least)
    value, task, content = ends[0].best()[0]
    assert value == float(search.gap[0]) == pytest.approx(float((least * weights).sum()))
    assert task == Task((0,))
    assert torch.equal(content[0], least[:, :1])


def test_a_success_ends_the_climbs_of_its_image_only():
    """Rows of the same image stop with it, the others go on."""
    search, _ = scripted([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], [0, 0, 1])
    assert search.begun == [0, 1, 0]
    assert search.broken.tolist() == [True, False]
    assert [len(search.shown[row]) for row in range(3)] == [2, 4, 2]
    assert search.evaluations.tolist() == [3 * 4 * 2, 21]


def test_what_ends_makes_room_for_the_next():
    """Two places, three images, seven climbs: images take turns, and a success frees the place in the next step."""
    answers = [[0] * 4, [1], *[[0] * 4] * 5]
    search, _ = scripted(answers, [0, 0, 0, 1, 1, 2, 2], batch=2)
    assert search.begun == [0, 1, 2, 0, 2, 0]  # the second climb of image 1 is never begun: it is broken
    assert search.broken.tolist() == [False, True, False]
    assert [len(search.shown[row]) for row in range(6)] == [4, 1, 4, 4, 4, 4]


@pytest.mark.parametrize("budget", [1, 20, 21, 22, 43, 1000])
def test_no_step_begins_beyond_the_budget(budget):
    """What is under way counts in full when a climb is to begin, and ends where the budget does."""
    search, _ = scripted([[0] * 4] * 8, [0] * 8, batch=8, budget=budget)
    climbs = min(8, -(-budget // 21))
    assert len(search.begun) == climbs
    spent = int(search.evaluations)
    assert spent == sum(3 * min(2 * len(shown), 7) for shown in search.shown.values())
    assert min(budget, 21 * 8) <= spent < budget + 6 * climbs


def test_the_best_ends_are_kept_in_order():
    """Of many climbs the `most` nearest, nearest first."""
    search, ends = scripted([[0] * 4] * 6, [0] * 6, most=3)
    values = [value for value, _, _ in ends[0].best()]
    weights = torch.arange(1.0, 4)
    least = sorted(min(float((x * weights).sum()) for x in shown) for shown in search.shown.values())
    assert values == pytest.approx(least[:3])


def test_steps_shrink_along_a_cosine():
    """From `step` to `last` times that; all alike for `last` = 1; one step is the first."""
    sizes = Ascent(5, 0.4, last=0.25).sizes(torch.arange(5))
    assert sizes.tolist() == pytest.approx([0.4, 0.3561, 0.25, 0.1439, 0.1], abs=1e-4)
    assert Ascent(5, 0.4, last=1.0).sizes(torch.arange(5)).tolist() == pytest.approx([0.4] * 5)
    assert Ascent(1, 0.4).sizes(torch.arange(1)).tolist() == pytest.approx([0.4])


def test_paste_and_crop_are_inverse():
    """A patch read where it was put is the patch, also at the last row and column; the rest is the image."""
    x, patch = images(3, SIZE, channels=2), images(3, (2, 3), channels=2, seed=5)[:, None]
    corners = torch.tensor([[[0, 0]], [[4, 5]], [[1, 2]]])
    out = paste(x, corners, patch)
    assert torch.equal(crop(out, corners, (2, 3)), patch)
    outside = ~PatchThreat(2, 3).footprint(corners, *SIZE)[:, None].expand_as(x)
    assert torch.equal(out[outside], x[outside])
    assert torch.equal(x, images(3, SIZE, channels=2))


def test_chance_is_each_image_s_own():
    """What is tried on an image does not depend on its neighbours or on the order of the batch."""
    model, threat = strip(SIZE), PatchThreat(2, 3)
    x = images(6, SIZE)
    y = model.predict(x)
    for attack in (PatchPGD(steps=2, restarts=3), ExhaustivePGD(steps=1, rounds=1), SparseRS(queries=20)):
        together = attack(model, x, y, threat, generator=torch.Generator().manual_seed(1))
        rows = torch.tensor([4, 1])
        apart = attack(model, x[rows], y[rows], threat, generator=torch.Generator().manual_seed(1))
        assert torch.equal(together.corners[rows], apart.corners)
        assert torch.allclose(together.x_adv[rows], apart.x_adv, atol=1e-5)


@pytest.mark.parametrize(("guided", "threat"), [(False, PatchThreat(2, 3)), (True, PatchThreat(1, 2, 2))])
def test_chance_does_not_depend_on_how_many_climbs_are_under_way(guided, threat):
    """Where neighbours take part of the batch, an image's placements and contents are the same all the same."""
    model, x = strip(SIZE), images(6, SIZE)
    y = model.predict(x)
    attack = PatchPGD(steps=2, restarts=4, guided=guided, batch=6)
    together = attack(model, x, y, threat, generator=torch.Generator().manual_seed(1))
    stands = ~judge(model, x, y, threat, together).broken
    assert stands.any()
    for i in range(len(x)):
        alone = attack(model, x[i : i + 1], y[i : i + 1], threat, generator=torch.Generator().manual_seed(1))
        assert bool(judge(model, x[i : i + 1], y[i : i + 1], threat, alone).broken) != bool(stands[i])
        if stands[i]:
            assert torch.allclose(together.x_adv[i], alone.x_adv[0], atol=1e-5)


def test_a_hit_counts_once_predict_confirms_it():
    """A classifier whose outputs and `predict` disagree is not broken by its outputs."""

    class Stubborn(Plain):
        def predict(self, x):
            return torch.zeros(len(x), dtype=torch.long)

    model, x = Stubborn(48).eval(), images(6, SIZE)
    y = torch.zeros(6, dtype=torch.long)
    proposal = PatchPGD(steps=4, restarts=4)(model, x, y, PatchThreat(4, 5), generator=torch.Generator())
    assert not judge(model, x, y, PatchThreat(4, 5), proposal).broken.any()
    assert (proposal.evaluations >= 4 * 9).all()  # no climb ended early


@pytest.fixture
def tried(monkeypatch):
    """The placements that searches climb at, by image."""
    seen: dict[int, list[int]] = {}
    original = Search.visit

    def visit(self, image, placement):
        for i, where in zip(image, placement, strict=True):
            seen.setdefault(i, []).extend(where)
        return original(self, image, placement)

    monkeypatch.setattr(Search, "visit", visit)
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
        visited = list(dict.fromkeys(tried.get(i, [])))  # a placement comes again for its second rival
        values = margins[i][torch.tensor(visited, dtype=torch.long)]
        assert (values < 0).all()
        assert torch.equal(values, values.sort().values)
        if not broken[i]:
            assert set(visited) == set((margins[i] < 0).nonzero()[:, 0].tolist())
            assert float(proposal.visited[i]) == bool(some_open[i])


def test_climbs_aim_at_the_rivals_in_reach(monkeypatch):
    """Open placements by margin towards any class, then towards the second one still in reach."""
    model, threat = smoothed(Lookup(2, 2 * 48, 4, favour=2.0), Columns(1), 4), PatchThreat(2, 2)
    x, seen = images(8, SIZE, binary=True), []
    y = model.predict(x)

    def climb(search, queues, ascent, *, batch, most):
        seen.append([list(queue) for queue in queues])
        return [BestClimbs(0) for _ in queues]

    monkeypatch.setattr("attacks.exhaustive.climb", climb)
    ExhaustivePGD(rounds=0, rivals=2)(model, x, y, threat, generator=torch.Generator())
    touched = model.ablation.touched(threat, *SIZE)
    margins = rival_margins(model.votes(x), y, touched)[:, touched.set_of_placement]
    assert any(seen[0])
    for i, queue in enumerate(seen[0]):
        pairs = [(task.placement[0], task.rival) for task in queue]
        least = margins[i].sort(dim=1).values
        opened = [int(site) for site in (least[:, 0] < 0).nonzero()[:, 0]]
        first, rest = pairs[: len(opened)], pairs[len(opened) :]
        assert sorted(first) == [(site, -1) for site in opened]
        assert sorted(site for site, _ in rest) == [site for site in opened if least[site, 1] < 0]
        assert all(int(margins[i][site, rival]) == int(least[site, 1]) for site, rival in rest)
        assert [int(least[site, 0]) for site, _ in first] == sorted(int(least[site, 0]) for site in opened)


def test_the_nearest_class_is_sought_among_those_in_reach():
    """A class that cannot win at a placement is no rival there, however near; where none can, every class is."""
    model, threat = smoothed(Lookup(2, 2 * 48, 4, favour=2.0), Columns(1), 4), PatchThreat(2, 2)
    x, x_adv, placement = attacked(model, threat, number=80)
    y, touched = model.predict(x), model.ablation.touched(threat, *SIZE)
    generator = torch.Generator()
    search = Search(model, x, y, threat, touched_only=True, budget=None, generator=generator)
    rows = torch.arange(len(x))
    free = search.view(rows, placement)(x_adv)[0]
    open_placements(search)
    reach = (rival_margins(model.votes(x), y, touched) < 0)[rows, touched.set_of_placement[placement[:, 0]]]
    bound = search.view(rows, placement)
    value, prediction = bound(x_adv)
    each = torch.stack([search.view(rows, placement, torch.full_like(y, j))(x_adv)[0] for j in range(4)], dim=1)
    each = each.masked_fill(torch.nn.functional.one_hot(y, 4).bool(), torch.inf)
    assert torch.allclose(free, each.amin(dim=1))
    allowed = reach | ~reach.any(dim=1, keepdim=True)
    assert torch.allclose(value, each.masked_fill(~allowed, torch.inf).amin(dim=1))
    assert (value > free + 0.1).any()
    assert torch.equal(prediction, model.predict(x_adv))
    assert torch.allclose(bound.keep(rows > 3).join(bound.keep(rows <= 3))(x_adv.roll(-4, 0))[0], value.roll(-4, 0))


def test_from_coarse_to_fine(tried):
    """First the grid with the last row and column, then neighbours of what was closest; the record says which share."""
    model, x, threat = smoothed(Level(2), Columns(1), 2), torch.zeros(2, 1, *SIZE), PatchThreat(1, 1)
    attack = ExhaustivePGD(steps=1, rounds=0, stride=4).unpruned(None)
    proposal = attack(model, x, model.predict(x), threat, generator=torch.Generator())
    coarse = {r * 8 + c for r in (0, 4, 5) for c in (0, 4, 7)}
    assert all(sorted(tried[i]) == sorted(coarse) for i in range(2))
    assert proposal.visited.tolist() == pytest.approx([9 / 48] * 2)
    tried.clear()
    attack = ExhaustivePGD(steps=1, rounds=2, keep=0.12, stride=4).unpruned(None)
    proposal = attack(model, x, model.predict(x), threat, generator=torch.Generator())
    for i in range(2):
        first, rest = tried[i][:9], tried[i][9:]
        assert set(first) == coarse
        kept = divmod(rest[0], 8)
        near = {
            (r * 8 + c)
            for r in (kept[0] - 2, kept[0], kept[0] + 2)
            for c in (kept[1] - 2, kept[1], kept[1] + 2)
            if 0 <= r < 6 and 0 <= c < 8
        }
        assert set(rest[: len(near)]) == near
        assert len(set(rest)) > len(near)
        assert float(proposal.visited[i]) == pytest.approx(len(set(tried[i])) / 48)
    assert attack.name == "exhaustive-stride4"


def test_a_budget_left_over_is_spent():
    """Rounds go on until it is gone; what nothing can be done about is left alone."""
    model, threat = smoothed(Lookup(0, 2 * 48, 3, favour=9.0), Columns(2), 3), PatchThreat(1, 1)
    x = images(2, SIZE)
    y = model.predict(x)
    once = ExhaustivePGD(steps=1, rounds=0).unpruned(None)
    proposal = once(model, x, y, threat, generator=torch.Generator())
    assert not judge(model, x, y, threat, proposal).broken.any()
    cost = int(proposal.evaluations[0])
    thrice = once.unpruned(3 * cost)(model, x, y, threat, generator=torch.Generator())
    assert (thrice.evaluations >= 3 * cost).all()
    assert (thrice.evaluations < 3 * cost + 3 * 8).all()
    pruned = ExhaustivePGD(budget=10**9)(model, x, y, threat, generator=torch.Generator())
    assert model.certify(x, threat).certified.all()
    assert (pruned.evaluations < 100).all()


def test_unpruned_it_visits_every_placement(tried):
    """Unpruned, every placement of every certified image is climbed at, whatever the certificate says."""
    model, threat = smoothed(Level(2), Columns(1), 2), PatchThreat(2, 2)
    x = torch.zeros(2, 1, *SIZE)
    assert model.certify(x, threat).certified.all()
    attack = ExhaustivePGD(steps=1, rounds=0).unpruned(None)
    proposal = attack(model, x, model.predict(x), threat, generator=torch.Generator())
    assert all(sorted(tried[i]) == list(range(5 * 7)) for i in range(2))
    assert (proposal.visited == 1).all()
    assert (proposal.evaluations == 8 + 35 * 3 * 8).all()


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
    assert proposal.evaluations.tolist() == [8 + 8 * (35 * 3 + 7 * 5 + 1 * 9)]


@pytest.mark.parametrize("count", [1, 2])
def test_visited_is_the_share_of_distinct_placements(tried, count):
    """PGD draws with repetition; each placement counts once, also where two patches are put down together."""
    model, x, threat = smoothed(Level(2), Columns(1), 2), torch.zeros(3, 1, *SIZE), PatchThreat(1, 1, count)
    proposal = PatchPGD(steps=1, restarts=25, guided=False)(
        model, x, model.predict(x), threat, generator=torch.Generator()
    )
    for i in range(3):
        assert len(tried[i]) == 25 * count
        assert float(proposal.visited[i]) == pytest.approx(len(set(tried[i])) / 48)


@pytest.mark.parametrize("voting", [Threshold(0.3), TopOne()])
def test_a_patch_between_the_bands_touches_nothing(voting):
    """Bands with gaps: a climb that no ablation sees ends without success and without an error."""
    model = smoothed(Level(2), Columns(1, 4), 2, voting)
    x = images(2, (5, 8))
    attack = PatchPGD(steps=2, restarts=20, batch=1)  # one at a time, so that some climbs touch nothing at all
    proposal = attack(model, x, model.predict(x), PatchThreat(1, 1), generator=torch.Generator().manual_seed(0))
    assert proposal.x_adv.shape == x.shape


class Declining(Plain):
    """Abstains from whatever it is asked."""

    def predict(self, x):
        return torch.full((len(x),), -1)


def test_what_abstains_is_broken_before_the_search():
    """It no longer answers y, and nothing is spent on it; one that answers by chance may do so still."""
    x, y = images(2, SIZE), torch.zeros(2, dtype=torch.long)
    model = Declining(SIZE[0] * SIZE[1]).eval()
    for chance, broken in ((False, True), (True, False)):
        if chance:
            model.randomized = True
        generator = torch.Generator().manual_seed(0)
        search = Search(model, x, y, PatchThreat(1, 1), touched_only=True, budget=None, generator=generator)
        assert search.broken.tolist() == [broken] * 2
        assert search.going().tolist() == [not broken] * 2


@pytest.mark.parametrize("batch", [1, 7, 512])
@pytest.mark.parametrize("budget", [50, None])
def test_patches_of_one_image_in_one_batch_share_its_budget(batch, budget):
    """Of a hundred patches for either of two images, as many are scored as the budget begins; without one, all."""
    model, x = smoothed(Level(3), Columns(2), 3), torch.ones(2, 1, 5, 6) * images(1, (5, 6))
    threat = PatchThreat(1, 1)
    search = Search(model, x, model.predict(x), threat, touched_only=False, budget=budget, generator=torch.Generator())
    image, none = torch.arange(200) % 2, torch.zeros(200, 1, dtype=torch.long)
    value = search.try_patches(image, none, torch.zeros(200, 1, 1, 1, 1), batch=batch)
    tried = 8 if budget else 100  # 6 for the clean image, then 8 times 6 begin below 50
    assert search.evaluations.tolist() == [6 + 6 * tried] * 2
    assert value.isfinite().tolist() == [row < 2 * tried for row in range(200)]
