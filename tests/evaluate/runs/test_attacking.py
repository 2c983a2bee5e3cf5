"""What a patch did to the votes, and the gap taken apart: counted on the attacked images, and by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from attacks import Ensemble, ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate
from evaluate.results.metrics import Gap, summarise
from evaluate.results.report_columns import summary_table
from evaluate.results.sentences import gap_text
from evaluate.runs.attacking import damage
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests import oracles
from tests.attacks.toys import Lookup, images, smoothed
from tests.evaluate.planted import image_set
from tests.evaluate.results.test_metrics import attack, record
from tests.evaluate.small_runs import timeless

SIZE = (5, 6)


@pytest.mark.parametrize("threat", [PatchThreat(2, 3), PatchThreat(1, 1, 2)], ids=str)
@pytest.mark.parametrize("ablation", [Columns(2), Rows(2), Blocks(2, 3, 2)], ids=str)
def test_damage_is_counted_on_the_attacked_image(ablation, threat):
    """Touched by the pixels that they share, turned by their votes, and the lead by all votes."""
    model = smoothed(Lookup(3, 2 * 30, 4, favour=0.5), ablation, 4, Threshold(0.3))
    x, generator = images(12, SIZE), torch.Generator().manual_seed(0)
    prediction = model.predict(x)
    placements = threat.placements(*SIZE)
    corners = placements[torch.randint(len(placements), (12, threat.count), generator=generator)]
    inside = threat.footprint(corners, *SIZE)[:, None]
    x_adv = torch.where(inside, images(12, SIZE, seed=4), x)
    found, cast = damage(model, x_adv, prediction, threat, corners), model.votes(x_adv).cast
    kept = oracles.kept(str(ablation), *SIZE)
    changed = set()
    for i in range(12):
        covered = set()
        for row, column in corners[i].tolist():
            covered |= oracles.rectangle(row, column, threat.height, threat.width)
        touched = [n for n, pixels in enumerate(kept) if pixels & covered]
        counts, c = cast[i].sum(dim=0).tolist(), int(prediction[i])
        rival = max((j for j in range(4) if j != c), key=lambda j: (counts[j], -j))
        turned = sum(bool(cast[i, n, rival] and not cast[i, n, c]) for n in touched)
        assert int(found.touched[i]) == len(touched)
        assert int(found.turned[i]) == turned
        assert int(found.lead[i]) == min(counts[c] - counts[j] - (j < c) for j in range(4) if j != c)
        assert (int(found.lead[i]) < 0) == (oracles.winner(counts) != c)
        changed.add(int(found.lead[i]) < 0)
    assert changed == {True, False}


def run(output, threat, attacks):
    model = smoothed(Lookup(2, 2 * 30, 3, favour=3.0), Columns(1), 3, Threshold(0.3))
    x = images(24, SIZE, binary=True)
    data = image_set(x, model.predict(x), 3)
    return evaluate(model, data, threat, attacks, Settings(24, batch_size=7, certified_budget=100), output)


@pytest.mark.parametrize("threat", [PatchThreat(2, 3), AnyOf([PatchThreat(1, 3), PatchThreat(2, 1)])], ids=str)
def test_records_take_the_gap_apart(threat, tmp_path):
    """Every open image of this classifier without close votes is refuted; lead and break agree on every attack."""
    attacks = [Ensemble((PatchPGD(steps=1, restarts=1), ExhaustivePGD(steps=1, rounds=0)), "both")]
    records = run(tmp_path, threat, attacks)
    summary = summarise(records)
    assert all(r.refuted == (not r.certified_exact) for r in records)
    assert summary.under_votes == summary.certified_exact
    for r in records:
        for a in r.attacks:
            assert a.lead is not None
            assert a.turned is not None
            assert a.touched is not None
            assert (a.lead < 0) == a.broken
            assert 0 <= a.turned <= a.touched
            assert a.by in ("pgd-1", "exhaustive")
    assert summary.undecided is not None
    assert summary.undecided.images == round(summary.gap * 24) > 0
    assert summary.undecided.refuted == summary.undecided.images
    assert sum(summary.undecided.turned.values()) == sum(summary.undecided.missing.values()) == summary.undecided.images
    json.dumps(summary.as_dict())


def test_records_do_not_depend_on_the_batch_size(tmp_path):
    """Chance is each image's own: other batches, the same records but for times."""
    model = smoothed(Lookup(2, 2 * 30, 3, favour=3.0), Columns(1), 3, Threshold(0.3))
    x = images(12, SIZE, binary=True)
    data = image_set(x, model.predict(x), 3)
    attacks = [PatchPGD(steps=1, restarts=2), ExhaustivePGD(steps=1, rounds=1)]
    found = []
    for size in (5, 12):
        settings = Settings(12, batch_size=size, certified_budget=None)
        records = evaluate(model, data, PatchThreat(2, 2), attacks, settings, tmp_path / str(size))
        found.append(timeless(records))
    assert found[0] == found[1]


def left(lead, turned=1, touched=6, **options):
    return replace(attack(**options), lead=lead, turned=turned, touched=touched)


RECORDS = [
    replace(record(0, exact=True), refuted=False),
    replace(record(1, attacks=[left(0, 5), left(3, 6, name="b")]), refuted=True),
    replace(record(2, attacks=[left(2, 4), left(2, 1, name="b")]), refuted=True),
    replace(record(3, attacks=[left(0, 5)]), refuted=False),
    replace(record(4, attacks=[left(-1, 6, broken=True)]), refuted=True),
    replace(record(5, correct=False), refuted=True),
]


def test_the_best_patch_speaks_for_an_image():
    """Of each undecided image, the patch that left the least lead; broken, certified and wrong ones do not count."""
    gap = summarise(RECORDS).undecided
    assert gap is not None
    assert (gap.images, gap.refuted) == (3, 2)
    assert gap.turned == {"5 of 6": 2, "4 of 6": 1}
    assert gap.missing == {1: 2, 3: 1}
    assert summarise(RECORDS).under_votes.hits == 2


def test_without_votes_there_is_nothing_to_take_apart():
    """A classifier without votes, or one image whose patch left the threat: no claim about the gap."""
    assert summarise([record(0, attacks=[attack()])]).undecided is None
    assert summarise([record(0, attacks=[attack()])]).under_votes is None
    assert summarise([replace(record(0, attacks=[attack()]), refuted=True)]).undecided is None


def test_the_table_says_it():
    """The vote-level adversary has a row, and the gap a line."""
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_table(summarise(RECORDS), title="t", guard=0.0, deviation=None, seconds=1.0))
    text = " ".join(console.file.getvalue().split())
    assert "vote-level adversary" in text
    assert "3 images are undecided: nothing proves that no patch can change the answer on them" in text
    assert "No proof from the same votes could certify 2 of them: that takes another classifier" in text
    assert "The best patches found fell 1 to 3 votes short, on half of them at most 1" not in text
    assert "The best patches found fell 1 to 3 votes short" in text


def test_many_values_are_summed_up():
    """The ends, and the median where it is neither; one value alone; none where there are no votes."""
    text = gap_text(Gap(20, 20, {}, dict.fromkeys(range(20), 1)))
    assert "could certify them" in text
    assert "fell 0 to 19 votes short, on half of them at most 9" in text
    assert gap_text(Gap(1, 0, {}, {1: 1})).endswith(
        "on it, and no attack tried found one that does. The best patch found fell 1 vote short"
    )
    assert gap_text(Gap(2, 0, {}, {3: 2})).endswith("The best patch found fell 3 votes short on each")
    assert gap_text(Gap(2, 0, {}, {})).endswith("no attack tried found one that does")
