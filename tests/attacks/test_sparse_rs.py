"""Sparse-RS: what it asks, what it accepts, and that it needs no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks import judge
from attacks.search import Search
from attacks.sparse_rs import SparseRS
from robustpatch.ablations.kinds import Columns
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, Plain, images, run, smoothed

SIZE = (5, 6)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *_):
        raise AssertionError("a black-box attack asked for a gradient")


class OnlyForward(nn.Module):
    """A base that nobody may differentiate."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x):
        return _NoBackward.apply(self.base(x))


class Pixel(nn.Module):
    """Class 1 iff one pixel is bright; what the others show changes no score."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x):
        lit = (x[:, :, self.row, self.column].amax(dim=1) > 0.9).float()
        return torch.stack([1 - lit, lit], dim=1)


class Firm(Plain):
    """Class 0, whatever it sees; the scores tell how far it is from anything else."""

    def forward(self, x):
        return super().forward(x) + torch.tensor([1000.0, 0.0, 0.0])


@pytest.fixture
def queries(monkeypatch):
    """Placements, patches and objectives of every query, in order."""
    asked = []
    original = Search.try_patches

    def try_patches(self, image, placement, patch, **options):
        value = original(self, image, placement, patch, **options)
        asked.append((image.clone(), placement.clone(), patch.clone(), value.clone()))
        return value

    monkeypatch.setattr(Search, "try_patches", try_patches)
    return asked


@pytest.mark.parametrize("touched_only", [True, False])
def test_no_gradient_is_needed(touched_only):
    """A base whose backward raises is broken all the same, where many strips have to be lit at once."""
    model, x = smoothed(OnlyForward(Level(2)), Columns(1), 2), torch.zeros(3, 1, 1, 9)
    threat = PatchThreat(1, 9)
    proposal = run(SparseRS(queries=100, touched_only=touched_only), model, x, threat)
    assert judge(model, x, torch.zeros(3, dtype=torch.long), threat, proposal).broken.all()


@pytest.mark.parametrize("touched_only", [True, False])
@pytest.mark.parametrize("count", [1, 7, 70])
def test_queries_are_counted(touched_only, count):
    """Every image that stands is scored `queries` times, and every row that the base sees is charged to somebody."""
    model, x, threat = smoothed(Level(2), Columns(2), 2), torch.zeros(3, 1, *SIZE), PatchThreat(2, 1)
    y, rows = model.predict(x), []
    model.base.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    spent = run(SparseRS(queries=count, touched_only=touched_only), model, x, threat, y).evaluations
    assert (spent == 6 + count * (2 if touched_only else 6)).all()
    assert int(spent.sum()) == sum(rows)


@pytest.mark.parametrize("count", [1, 2])
def test_each_query_is_one_change_kept_unless_it_is_worse(queries, count):
    """Every 4th moves one patch and repaints none; the others paint a square of one corner colour; none is idle."""
    model, x, threat = Firm(3 * 30).eval(), images(1, SIZE, channels=3), PatchThreat(3, 4, count)
    run(SparseRS(queries=200, alpha=1.0), model, x, threat)
    (_, sites, patch, value), *rest = queries
    assert ((patch == 0) | (patch == 1)).all()
    assert (patch == patch[..., :1, :]).all()  # stripes
    accepted, moves, areas = 0, 0, []
    for t, (_, new_sites, new_patch, new_value) in enumerate(rest, start=1):
        changed = (new_patch != patch).any(dim=2)[0]
        if t % 4 == 0:
            assert not changed.any()
            assert int((new_sites != sites).sum()) == 1
            moves += 1
        else:
            assert torch.equal(new_sites, sites)
            assert changed.any()
            assert int(changed.flatten(1).any(dim=1).sum()) == 1
            k, row, column = changed.nonzero().T
            box = new_patch[0, k[0], :, row.min() : row.max() + 1, column.min() : column.max() + 1]
            assert (box == box[:, :1, :1]).all()
            areas.append(box[0].numel())
        if new_value <= value:
            sites, patch, value, accepted = new_sites, new_patch, new_value, accepted + 1
    assert len(rest) == 199
    assert moves == 49
    assert max(areas[:10]) > 1
    assert max(areas[-100:]) == 1
    assert 0 < accepted < 199


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("column", [0, -1])
def test_every_corner_is_reached(row, column):
    """Nothing leads to the one vulnerable pixel, and the last row and column are as near as the first."""
    model, x, threat = Pixel(row, column).eval(), torch.zeros(4, 2, 4, 6), PatchThreat(1, 1)
    y = torch.zeros(4, dtype=torch.long)
    proposal = run(SparseRS(queries=1000), model, x, threat, y)
    assert judge(model, x, y, threat, proposal).broken.all()


def test_moves_are_even_and_shrink():
    """Each placement within reach is as likely as the next, borders included, and the reach falls to one pixel."""
    model, x, threat = Plain(42).eval(), images(1, (6, 7)), PatchThreat(2, 2)
    search = Search(
        model, x, torch.zeros(1, dtype=torch.long), threat, touched_only=True, budget=None, generator=torch.Generator()
    )
    attack, u = SparseRS(queries=1000), torch.randint(2**40, (6000, 4), generator=torch.Generator().manual_seed(0))
    for start in range(30):
        sites = torch.full((len(u), 1), start)
        counts = attack._moved(search, sites, 1, u)[:, 0].bincount(minlength=30)
        assert len(counts) == 30
        assert counts[start] == 0
        near = (search.families[0].anchors - search.families[0].anchors[start]).abs().amax(dim=1)
        assert (counts[near == 0] == 0).all()
        reached = counts[counts > 0]
        assert (counts[(near <= 4) & (near > 0)] > 0).all()
        assert reached.max() < 2 * reached.min()
        last = attack._moved(search, sites, 999, u)[:, 0].bincount(minlength=30)
        assert torch.equal(last > 0, near == 1)
