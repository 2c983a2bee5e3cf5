"""ROA visits what it says and starts where it hurts; controls contain what they are named after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attacks.occlusion
from attacks import judge
from attacks.occlusion import ROA, Control
from attacks.placement import grid
from attacks.search import Search
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, Plain, images, run, smoothed

SIZE = (5, 6)
GREY, NOISE, NATURAL = (Control(content=content, tries=5) for content in ("grey", "noise", "natural"))


class Pixels(nn.Module):
    """Class 1 iff the pixels named sum to more than `need`."""

    def __init__(self, pixels: list[tuple[int, int]], need: float = 0.9) -> None:
        super().__init__()
        self.pixels, self.need = pixels, need

    def forward(self, x):
        seen = sum(x[:, :, row, column].mean(dim=1) for row, column in self.pixels)
        return torch.stack([torch.full_like(seen, self.need), seen], dim=1)


class Steady(nn.Module):
    """Class 0 for ever, and no gradient anywhere."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1).sum(dim=1, keepdim=True)


@pytest.fixture
def tried(monkeypatch):
    """Images, placements and patches scored without a climb, in order."""
    seen = []
    original = Search.try_patches

    def try_patches(self, image, placement, patch, **options):
        seen.extend(zip(image.tolist(), placement.tolist(), patch.clone(), strict=True))
        return original(self, image, placement, patch, **options)

    monkeypatch.setattr(Search, "try_patches", try_patches)
    return seen


@pytest.fixture
def climbed(monkeypatch):
    """The tasks of each image."""
    queues = []
    original = attacks.occlusion.climb

    def climb(search, tasks, *rest, **options):
        queues.extend(tasks)
        return original(search, tasks, *rest, **options)

    monkeypatch.setattr(attacks.occlusion, "climb", climb)
    return queues


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_grey_slides_over_every_placement(tried, batch):
    """Each once, the last row and column included, at one half in every channel."""
    x, threat = images(2, (7, 9), channels=3), PatchThreat(2, 4)
    proposal = run(ROA(batch=batch), Steady().eval(), x, threat)
    for i in range(2):
        assert sorted(sites[0] for image, sites, _ in tried if image == i) == list(range(6 * 6))
    assert all((patch == 0.5).all() and patch.shape == (1, 3, 2, 4) for *_, patch in tried)
    assert (proposal.visited == 1).all()
    assert (proposal.evaluations == 1 + 36 + 61).all()


@pytest.mark.parametrize("stride", [2, 3, 4, 100])
def test_a_stride_keeps_the_last_row_and_column(tried, stride):
    """Multiples of the stride and the last ones; the share visited says how many those are."""
    x, threat = images(1, (7, 9)), PatchThreat(2, 2)
    proposal = run(ROA(stride=stride), Steady().eval(), x, threat)
    sites = {sites[0] for _, sites, _ in tried}
    assert sites == set(grid(threat.family(7, 9), stride).nonzero()[:, 0].tolist())
    assert {0, 7, 5 * 8, 5 * 8 + 7} <= sites
    assert float(proposal.visited) == pytest.approx(len(sites) / 48)


@pytest.mark.parametrize("search", ["sliding", "gradient"])
@pytest.mark.parametrize("pixel", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_every_corner_is_reached(search, pixel):
    """A model vulnerable at one corner alone is broken there, though grey is not enough."""
    model, x, threat = Pixels([pixel]).eval(), torch.zeros(2, 3, *SIZE), PatchThreat(2, 3)
    y = torch.zeros(2, dtype=torch.long)
    proposal = run(ROA(search=search, candidates=1), model, x, threat, y)
    assert judge(model, x, y, threat, proposal).broken.all()
    assert not judge(model, x, y, threat, run(GREY, model, x, threat, y)).broken.any()


def test_two_rectangles_go_where_they_do_most_together(climbed):
    """The second is sought beside the first: both pixels are found, neither of which is enough."""
    model, x, threat = Pixels([(1, 1), (4, 5)], need=1.8).eval(), torch.zeros(2, 1, *SIZE), PatchThreat(1, 1, 2)
    y = torch.zeros(2, dtype=torch.long)
    assert judge(model, x, y, threat, run(ROA(), model, x, threat, y)).broken.all()
    assert {frozenset(task.placement) for queue in climbed for task in queue} == {frozenset({7, 29})}


def test_the_gradient_ranks_placements(tried):
    """Grey is tried where the squared gradient under the patch is largest, counted by hand."""
    model, x, threat = Plain(30).eval(), images(2, SIZE), PatchThreat(2, 3)
    y = model(x).argmax(dim=1)
    run(ROA(search="gradient", candidates=4), model, x, threat, y)
    for i in range(2):
        logits = model(x[i : i + 1])[0]
        rival = logits.clone().index_fill(0, y[i], -torch.inf).argmax()
        power = (model.weight[y[i]] - model.weight[rival]).detach().square().view(SIZE)
        sums = [float(power[row : row + 2, k : k + 3].sum()) for row, k in threat.placements(*SIZE).tolist()]
        largest = sorted(range(len(sums)), key=lambda site: -sums[site])[:4]
        assert [sites[0] for image, sites, _ in tried if image == i] == largest[: sum(i == t[0] for t in tried)]
    assert tried


def test_without_a_gradient_candidates_are_random(tried):
    """A flat loss is no reason to look at the top left corner only."""
    x, attack = images(1, SIZE), ROA(search="gradient", candidates=5)
    for seed in range(2):
        run(attack, Steady().eval(), x, PatchThreat(1, 1), seed=seed)
    first, second = ([sites[0] for _, sites, _ in half] for half in (tried[:5], tried[5:]))
    assert len(set(first)) == len(set(second)) == 5
    assert set(first) != set(second)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("top", [1, 3])
def test_the_climb_starts_at_the_worst_placements(tried, climbed, top, random_start):
    """From grey, or from noise, at those where grey brought the objective lowest, the lowest first."""
    model, x, threat = smoothed(Level(2), Columns(2), 2), images(1, SIZE) * 0.2, PatchThreat(2, 2)
    x[..., 2:4] = 0.45
    run(ROA(top=top, random_start=random_start, touched_only=False), model, x, threat)
    (tasks,) = climbed
    assert len(tasks) == top
    values = {}
    for _, sites, patch in tried:
        x_adv, corners = x.clone(), threat.placements(*SIZE)[sites[0]].tolist()
        x_adv[0, :, corners[0] : corners[0] + 2, corners[1] : corners[1] + 2] = patch[0]
        soft = model.soft(x_adv)[0]
        values[sites[0]] = float(soft[0] - soft[1])
    assert len(set(values.values())) > 3
    for task, value in zip(tasks, sorted(values.values()), strict=False):
        assert (task.start is None) if random_start else (task.start == 0.5).all()
        assert values[task.placement[0]] == pytest.approx(value, abs=1e-3)


def test_grey_and_noise_are_grey_and_noise(tried):
    """One half everywhere; uniform, and fresh every time."""
    x, threat = images(2, SIZE, channels=3), PatchThreat(2, 3)
    run(GREY, Steady().eval(), x, threat)
    assert len(tried) == 10
    assert all((patch == 0.5).all() for *_, patch in tried)
    tried.clear()
    run(NOISE, Steady().eval(), x, threat)
    noise = torch.stack([patch for *_, patch in tried]).flatten()
    assert len(noise.unique()) > 0.99 * len(noise)
    assert ((noise >= 0) & (noise < 1)).all()
    assert 0.4 < float(noise.mean()) < 0.6


def regions(image, size):
    """Every region of an image [C,H,W]."""
    return image.unfold(1, size[0], 1).unfold(2, size[1], 1).permute(1, 2, 0, 3, 4).flatten(0, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_natural_content_is_a_region_of_another_image(tried, count):
    """All channels of it, and every other image has its turn."""
    x, threat = images(4, SIZE, channels=3), PatchThreat(2, 3, count)
    run(Control(content="natural", tries=20), Steady().eval(), x, threat)
    seen = set()
    for i, _, patch in tried:
        for content in patch:
            owner = [j for j in range(4) if (regions(x[j], (2, 3)) == content).flatten(1).all(dim=1).any()]
            assert len(owner) == 1
            seen.add((i, owner[0]))
    assert seen == {(i, j) for i in range(4) for j in range(4) if i != j}


def test_natural_content_of_a_source(tried):
    """Images of another size, and none of the batch's own."""
    x, source, threat = images(2, SIZE), images(3, (2, 9), seed=5), PatchThreat(2, 3)
    run(Control(content="natural", tries=20, source=source), Steady().eval(), x, threat)
    assert len({repr(Control(content="natural", source=some)) for some in (source, source + 0, source[:2], None)}) == 3
    every = torch.cat([regions(image, (2, 3)) for image in source])
    used = [(every == patch[0]).flatten(1).all(dim=1).nonzero().flatten().tolist() for *_, patch in tried]
    assert all(len(one) == 1 for one in used)
    assert len({one[0] // 7 for one in used}) == 3


@pytest.mark.parametrize("size", [(2, 3), (5, 6)])
def test_natural_content_of_a_single_image(tried, size):
    """Another region of it, never what is there already; a patch as large as the image has no choice."""
    x, threat = images(1, SIZE), PatchThreat(*size)
    run(Control(content="natural"), Steady().eval(), x, threat)
    every = regions(x[0], size)
    for _, sites, patch in tried:
        (source,) = (every == patch[0]).flatten(1).all(dim=1).nonzero().flatten().tolist()
        assert (source != sites[0]) == (len(every) > 1)
    assert len(tried) == len(every)


@pytest.mark.parametrize("content", ["grey", "noise", "natural"])
def test_enough_tries_are_all_placements(tried, content):
    """Each once; fewer tries are distinct placements."""
    x, threat = images(2, SIZE), PatchThreat(2, 3)
    proposal = run(Control(content=content, tries=99), Steady().eval(), x, threat)
    assert sorted(sites[0] for i, sites, _ in tried if i == 1) == list(range(16))
    assert (proposal.visited == 1).all()
    assert (proposal.evaluations == 17).all()
    assert (run(Control(content=content, tries=8), Steady().eval(), x, threat).visited == 0.5).all()


def test_a_source_that_does_not_serve_is_refused():
    """Smaller than the patch, or of other channels."""
    x = images(2, SIZE)
    with pytest.raises(InvalidInput, match="larger than the image, 2x2"):
        Control(content="natural", source=images(1, (2, 2))).check(PatchThreat(3, 3))
    with pytest.raises(InvalidInput, match="source has 3 channels, the images 1"):
        run(Control(content="natural", source=images(1, SIZE, channels=3)), Steady().eval(), x, PatchThreat(2, 2))
