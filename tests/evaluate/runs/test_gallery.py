"""What a gallery is made of: which images, the patch that went furthest, votes and maps; on disk and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from attacks import ExhaustivePGD, PatchPGD
from evaluate import Settings
from evaluate.runs import runner as module
from evaluate.runs.batch import evaluate_batch
from evaluate.runs.gallery import Furthest, exhibit, exhibits_name, outcome, read_exhibits, write_exhibits
from evaluate.runs.records import shard_name
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, Plain, images, smoothed
from tests.evaluate.planted import PLANTS, exposing
from tests.evaluate.results.test_metrics import attack, record
from tests.evaluate.runs.test_runner import ATTACKS, SIZE, THREAT, classifier, run, scene

EVERY = Settings(10, batch_size=10, certified_budget=500, gallery=10)


def batch(model, x, y, threat=THREAT, attacks=ATTACKS, settings=EVERY):
    return evaluate_batch(model, x, y, 0, threat, attacks, settings)


def of_scene(model=None, **options):
    x, y = scene().batch(range(10))
    return x, batch(model or classifier(), x, y, **options)


def bytes_of(x):
    return (x * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (record(exact=True, attacks=[attack(broken=True)]), "violated"),
        (record(exact=True, consistent=False), "violated"),
        (record(exact=True, correct=False), "certified"),
        (record(margin=True), "certified"),
        (record(correct=False), "wrong"),
        (record(attacks=[attack(), attack("b", broken=True)]), "broken"),
        (record(attacks=[attack()]), "standing"),
    ],
)
def test_outcomes(made, kind):
    """Each record has one, a changed certificate before all others."""
    assert outcome(made) == kind


def test_exhibits_are_what_happened():
    """Images, votes, maps and the patch are those of the model and the records."""
    model = classifier()
    x, found = of_scene(model)
    shown = {e.index: e for e in found.exhibits}
    assert {r.index for r in found.records if outcome(r) != "wrong"} <= set(shown)
    assert {e.outcome for e in found.exhibits} >= {"certified", "broken"}
    votes, certificate = model.votes(x), model.certify(x, THREAT)
    for i, e in shown.items():
        assert e.outcome == outcome(found.records[i])
        assert (e.size, e.views, e.sampled, e.guard) == (SIZE, 10, False, model.guard)
        assert np.array_equal(e.image, bytes_of(x[i]))
        assert e.votes.tolist() == votes.cast[i].sum(dim=0).tolist()
        assert e.close.tolist() == votes.close[i].sum(dim=0).tolist()
        (only,) = e.maps
        assert (only.threat, only.shape, only.step) == ((2, 2), (3, 9), 1)
        assert only.margins.flatten().tolist() == certificate.placement_margin[i].tolist()
        if e.outcome == "wrong":
            continue  # it was not attacked
        own = found.records[i].attacks
        a = e.attacked
        if e.outcome == "broken":
            first = next(one for one in own if one.broken)
            assert (a.broken, a.attack) == (True, first.attack)
        else:
            first = min(own, key=lambda one: one.lead)
            assert (a.broken, a.attack) == (False, first.attack)
        assert a.prediction == first.prediction == a.votes.argmax()
        assert [c for corner in a.corners for c in corner] == first.corners
        (row, column), (height, width) = a.corners[0], a.threat
        inside = np.zeros((1, *SIZE), bool)
        inside[:, row : row + height, column : column + width] = True
        assert not (a.image != e.image)[~inside].any()
        assert np.array_equal(a.patches[0].flatten(), a.image[inside])


def test_the_first_of_each_outcome():
    """So many of each, by index; none if none are asked for."""
    _, every = of_scene()
    _, few = of_scene(settings=replace(EVERY, num_images=40, gallery=2))  # four batches, one of four each
    for kind in ("certified", "broken"):
        all_ = [e.index for e in every.exhibits if e.outcome == kind]
        assert len(all_) > 1
        assert [e.index for e in few.exhibits if e.outcome == kind] == all_[:1]
    _, none = of_scene(settings=replace(EVERY, gallery=0))
    assert none.exhibits == []
    assert none.records == replace_times(none.records, every.records)


def replace_times(like, records):
    return [
        replace(r, attacks=[replace(a, seconds=b.seconds) for a, b in zip(r.attacks, m.attacks, strict=True)])
        for r, m in zip(records, like, strict=True)
    ]


def test_quota():
    """Twice the gallery over the batches, one at the least; a negative gallery is refused."""
    assert Settings(200, 50, gallery=8).quota == 4
    assert Settings(10_000, 50, gallery=8).quota == 1
    assert Settings(10, 50, gallery=8).quota == 16
    assert Settings(10, 50, gallery=0).quota == 0
    with pytest.raises(InvalidInput, match="gallery is -1"):
        Settings(10, gallery=-1)


def test_the_patch_that_went_furthest():
    """The first that broke it, else the smallest lead, else the first; none outside the threat, nor the clean image."""
    x = [torch.full((1, 2, 2), value / 10) for value in range(10)]
    offers = [
        (replace(attack(contained=False), lead=-9), "out"),
        (attack(visited=0.0), "only the clean image"),
        (attack(), "first"),
        (replace(attack(), lead=3), "closer"),
        (replace(attack(), lead=3), "as close"),
        (replace(attack(broken=True), lead=-1), "broke"),
        (replace(attack(broken=True), lead=-5), "broke later"),
    ]
    expected = [None, None, "first", "closer", "closer", "broke", "broke"]
    furthest = Furthest()
    for (made, name), image, wanted in zip(offers, x, expected, strict=False):
        furthest.offer(0, replace(made, by=name), image)
        assert (furthest.found[0][0].by if furthest.found else None) == wanted
    assert furthest.found[0][1].equal(x[5])
    furthest.offer(1, attack(broken=True, visited=0.0), x[6])  # by an attack on the bare network
    assert furthest.found[1][1].equal(x[6])
    none = Furthest(none=True)
    none.offer(0, attack(), x[0])
    assert none.found == {}


def test_a_changed_certificate_is_shown():
    """A planted bug's counterexample is among the exhibits, with the patch that changed it."""
    plant = PLANTS["delta one less"]
    x = exposing(plant)
    model = plant.broken()
    attacks = (ExhaustivePGD(steps=8, rounds=1),)
    y = model.predict(x)
    found = batch(model, x, y, plant.threat, attacks, replace(EVERY, certified_budget=None))
    changed = [e for e in found.exhibits if e.outcome == "violated"]
    assert changed
    assert all(e.attacked.broken and e.attacked.prediction != y[e.index] for e in changed)


@pytest.mark.parametrize(
    ("threat", "maps"), [(PatchThreat(1, 1, 2), 0), (AnyOf([PatchThreat(1, 3), PatchThreat(3, 1)]), 2)], ids=str
)
def test_other_threats(threat, maps):
    """Several patches have no map, alternatives one each, the worst first; the corners are those of each patch."""
    model = classifier()
    x, found = of_scene(model, threat=threat, attacks=ATTACKS[:1])
    margins = model.certify(x, threat).placement_margin
    for e in found.exhibits:
        assert len(e.maps) == maps
        if e.attacked:
            assert len(e.attacked.corners) == len(e.attacked.patches) == threat.threats[0].count
        if maps:
            worst = [int(one.margins.min()) for one in e.maps]
            assert worst == sorted(worst)
            wide = next(one for one in e.maps if one.threat == (1, 3))
            assert wide.margins.flatten().tolist() == margins[e.index, : 4 * 8].tolist()
    assert found.exhibits


def test_large_colour_images():
    """224x224 pictures are averaged to half; a cell of the map is the least of its placements."""
    x = images(2, (224, 224), channels=3)
    margins = torch.randint(-300, 300, (2, 193 * 193))
    base = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model = smoothed(base, Columns(32, 32), 3)
    made = [record(0), record(1, exact=True)]
    certificate = certificate_of(2, margins)
    furthest = Furthest()
    furthest.offer(0, replace(attack(broken=True), threat="2*32x32", corners=[0, 0, 100, 190]), x[1])
    first = exhibit(model, x, made, None, PatchThreat(32, 32, 2), furthest, 9)[0]
    second = exhibit(model, x, made, certificate, PatchThreat(32, 32), Furthest(), 9)[1]
    assert first.image.shape == first.attacked.image.shape == (3, 112, 112)
    assert np.array_equal(first.image, bytes_of(nn.functional.avg_pool2d(x[0], 2)))
    assert first.attacked.patches.shape == (2, 3, 32, 32)
    assert np.array_equal(first.attacked.patches[1], bytes_of(x[1, :, 100:132, 190:222]))
    only = second.maps[0]
    assert (only.shape, only.step, only.margins.shape) == ((193, 193), 2, (97, 97))
    grid = margins[1].reshape(193, 193)
    assert only.margins[3, 5] == grid[6:8, 10:12].min()
    assert only.margins[96, 96] == grid[192, 192]


def certificate_of(number, margins=None):
    """Somebody else's: no votes, and perhaps a map."""
    sure = torch.ones(number, dtype=torch.bool)
    none = torch.zeros(number, dtype=torch.long)
    return Certificate(none, sure, None, margins, THREAT, "exact", 0.01, none)


class Theirs(Plain):
    """A certifier without votes that certifies whatever it calls 0."""

    margins: torch.Tensor | None = None

    def predict(self, x):
        return self(x).argmax(dim=1)

    def certify(self, x, threat):
        found = certificate_of(len(x), None if self.margins is None else self.margins[: len(x)])
        prediction = self.predict(x)
        return replace(found, prediction=prediction, certified=prediction == 0)


def test_certifiers_without_votes():
    """Nothing is made up: no votes, and a map only where the certificate has one of the threat's form."""
    x = images(6, SIZE)
    model = Theirs(SIZE[0] * SIZE[1]).eval()
    y = model.predict(x)
    for margins, maps in ((None, 0), (torch.arange(6 * 27).reshape(6, 27) - 30, 1), (torch.zeros(6, 26).long(), 0)):
        model.margins = margins
        found = batch(model, x, y)
        assert {e.outcome for e in found.exhibits} & {"certified", "violated"}
        assert all((e.votes, e.close, e.views, e.guard) == (None, None, None, 0.01) for e in found.exhibits)
        assert all(len(e.maps) == maps for e in found.exhibits)
        assert all(e.attacked is None or e.attacked.votes is None for e in found.exhibits)


def test_undefended_classifiers():
    """No votes, no map, no guard; the patch is shown all the same."""
    x = images(6, SIZE)
    model = Plain(SIZE[0] * SIZE[1]).eval()
    found = batch(model, x, model(x).argmax(dim=1))
    assert found.exhibits
    assert all((e.votes, e.maps, e.guard) == (None, [], None) for e in found.exhibits)
    assert all(e.attacked is not None for e in found.exhibits)


@pytest.mark.parametrize("ablation", [Columns(2), SparseAblation(4)], ids=str)
def test_randomized_classifiers(ablation):
    """The votes of all ablations; of sparse ones, of a sample that is not the one which decides, and says so."""
    sampling = Sampling(selection=20, estimation=200, prediction=100, alpha=0.05)
    model = RandomizedClassifier(Level(3), ablation, num_classes=3, sampling=sampling, views=16).eval()
    x, found = of_scene(model, attacks=(PatchPGD(steps=1, restarts=1),))
    sampled = isinstance(ablation, SparseAblation)
    assert found.exhibits
    for e in found.exhibits:
        assert (e.views, e.sampled, e.maps) == (16 if sampled else 10, sampled, [])
        counts = model.enumerated().votes(x[e.index][None]).cast[0].sum(dim=0)
        assert e.votes.tolist() == counts.tolist()


def test_files_are_read_as_they_were_written(tmp_path):
    """Every field comes back, None included; equal exhibits give equal bytes; nothing is written for none."""
    _, found = of_scene(threat=AnyOf([PatchThreat(1, 3), PatchThreat(3, 1)]))
    made = [*found.exhibits, replace(found.exhibits[0], index=99, attacked=None, votes=None, close=None, views=None)]
    for name in ("exhibits/a.npz", "exhibits/b.npz"):
        write_exhibits(tmp_path, name, made)
    again = read_exhibits((tmp_path / "exhibits/a.npz").read_bytes(), "a.npz")
    assert len(again) == len(made)
    for one, other in zip(again, made, strict=True):
        np.testing.assert_equal(flat(one), flat(other))
    assert (tmp_path / "exhibits/a.npz").read_bytes() == (tmp_path / "exhibits/b.npz").read_bytes()
    write_exhibits(tmp_path, "exhibits/c.npz", [])
    assert not (tmp_path / "exhibits/c.npz").exists()


def flat(e):
    found = {**vars(e), "attacked": None if e.attacked is None else vars(e.attacked)}
    return {**found, "maps": [vars(one) for one in e.maps]}


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_a_damaged_file_is_refused(keep, tmp_path):
    """With its name and what to do."""
    write_exhibits(tmp_path, "exhibits/a.npz", of_scene()[1].exhibits)
    path = tmp_path / "exhibits/a.npz"
    with pytest.raises(InvalidInput, match=r"a\.npz are damaged .*repeat the run's command"):
        read_exhibits(path.read_bytes()[:keep], "exhibits/a.npz")


def test_the_run_writes_them_before_the_records(tmp_path, monkeypatch):
    """A shard of records says that its batch is whole: what belongs to it is there before. Resumed, the same bytes."""
    run(tmp_path / "whole")
    names = [exhibits_name(shard_name(first, first + 4)) for first in (0, 4)]
    before = [(tmp_path / "whole" / name).read_bytes() for name in names]

    def full(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_shard", full)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    assert (tmp_path / "killed" / names[0]).read_bytes() == before[0]
    assert not list((tmp_path / "killed").glob("records/*"))
    run(tmp_path / "killed")
    assert [(tmp_path / "killed" / name).read_bytes() for name in names] == before
    run(tmp_path / "none", gallery=0)
    assert not (tmp_path / "none" / "exhibits").exists()
