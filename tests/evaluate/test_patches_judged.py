"""A test is an attack that changed pixels inside the threat: what counts is counted by the judge, not by the attack."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from attacks import Control, Ensemble, ExhaustivePGD, FromART, LaVAN, Oracle, PatchPGD, SparseRS
from attacks.base import LEVEL, judge, visible
from evaluate import Settings, evaluate
from evaluate.results.metrics import summarise
from evaluate.results.sentences import verdict
from evaluate.runs.records import AttackRecord, Record, read_records
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import registered
from tests.evaluate.foreign import DARK, Bright, Told, put
from tests.evaluate.foreign import ONE as THREAT
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import evaluated


class Steady(Bright):
    """Class 0, whatever the image: no attack is of use."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1 + 0 * x.sum((1, 2, 3)), -x.mean((1, 2, 3))], 1)


run = partial(evaluated, data=DARK, threat=THREAT, batch_size=3, certified_budget=500)


def outcome_of(model, attacks, output, budget=500) -> tuple[str, list[int]]:
    """The verdict, and the patches judged on each image."""
    records = run(model, output, attacks, certified_budget=budget)
    return summarise(records).verdict, [record.patches for record in records]


CHANGES = {
    "the clean image": (Told(), 0),
    "a billionth": (Told(put(lambda v: v + 1e-9)), 0),
    "less than half a grey level": (Told(put(lambda v: v + 0.9 * LEVEL)), 0),
    "a grey level": (Told(put(lambda v: v + 2 * LEVEL)), 1),
    "a black pixel": (Told(put(0.0)), 1),
    "nan": (Told(put(torch.nan)), 0),
    "infinity": (Told(put(torch.inf)), 0),
    "beyond the range": (Told(put(1.5)), 0),
    "elsewhere": (Told(put(0.0), corner=(1, 1)), 0),
    "corners outside": (Told(put(0.0), corner=(0, 9)), 0),
    "the whole image": (Told(lambda x: 1 - x), 0),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("around", [False, True])
def test_only_patches_inside_the_threat_count(name, around, tmp_path):
    """Whatever the attack says of itself, alone or in an ensemble: half a grey level, in range, in its rectangle."""
    attack, count = CHANGES[name]
    if around:
        attack = Ensemble((attack,), "around")
    found = outcome_of(Steady(), [attack], tmp_path)
    assert found == ("held" if count else "not tested", [count] * 4)


@pytest.mark.parametrize("attack", [FromART.bim(tries=2), FromART.fgm(tries=2)], ids=lambda attack: attack.name)
def test_attacks_where_the_gradient_is_zero(attack, tmp_path):
    """They move no pixel from where they start, the clean image, and test nothing."""
    assert outcome_of(Bright(), [attack], tmp_path / "zero") == ("not tested", [0] * 4)
    assert outcome_of(Worse(), [attack], tmp_path / "steep") == ("held", [1] * 4)


GREY = Control(content="grey", tries=1)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_control_tests_nothing_for_others(first, nested, tmp_path):
    """Of an ensemble whose attack has no budget for a patch, neither the control's patch nor its placements count."""
    members, shares = [GREY, PatchPGD()], [10.0, 1.0]
    order = (0, 1) if first else (1, 0)
    mixed = Ensemble(tuple(members[i] for i in order), "mix", shares=tuple(shares[i] for i in order))
    attack = Ensemble((mixed,), "nest") if nested else mixed
    records = run(Bright(), tmp_path / "poor", [attack], certified_budget=11)
    assert summarise(records).verdict == "not tested"
    for record in records:
        (found,) = record.attacks
        assert (found.patches, found.visited) == (0, 0)
        assert found.evaluations > 1
    assert outcome_of(Steady(), [attack], tmp_path / "rich", budget=500) == ("held", [1] * 4)


def test_an_ensemble_counts_each_distinct_patch_once(tmp_path):
    """Members that propose the same image count once, others each; a nested ensemble as many as it saw."""
    black, white, clean = Told(put(0.0)), Told(put(0.8), name="white"), Told(name="clean")
    for members, count in (
        ((black, black), 1),
        ((black, white), 2),
        ((clean, white, clean), 1),
        ((Ensemble((black, white), "in"), white), 2),
        ((Ensemble((black, GREY), "in"), white), 2),
        ((Ensemble((clean, GREY), "in"), clean), 0),
        ((GREY, black), 1),
    ):
        found = outcome_of(Steady(), [Ensemble(members, "all")], tmp_path / repr(members).replace("/", "")[-150:])
        assert found == ("held" if count else "not tested", [count] * 4), members


class Disguised(Told):
    """Another attack until it is asked to test a certificate: then a control."""

    def unpruned(self, budget):
        return GREY


def test_controls_in_disguise_are_refused(tmp_path):
    """An attack whose `unpruned` is a control would count under its own name."""
    with pytest.raises(InvalidInput, match="told holds controls alone"):
        run(Steady(), tmp_path, [Disguised()])


OURS = {
    **registered(steps=2, restarts=2, rounds=0, queries=6, tries=2, rows=4, candidates=3),
    "oracle": Oracle(levels=(0.0, 1.0)),
    "lavan at a corner": LaVAN(steps=2, corner=(1, 2)),
    "no step": PatchPGD(steps=1, restarts=1),
}
BLACK = image_set(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), 2)


@pytest.mark.parametrize("name", [name for name in OURS if name not in ("art-patch",)])
def test_our_attacks_return_the_best_patch_they_tried(name, tmp_path):
    """Never the clean image, where every patch makes things worse and the best is none; so that each image is tested.

    `Steady` scores bright patches closer to success than dark ones: on black images a black one is no patch at all.
    """
    attack, data = OURS[name], DARK if name == "natural" else BLACK  # which is cut from the other images
    attack = attack if name == "oracle" else replace(attack, budget=200)
    for kind in (Steady, Worse):
        records = run(
            kind(), tmp_path / kind.__name__, [attack], data=data, threat=PatchThreat(2, 2), certified_budget=200
        )
        for record in records:
            (found,) = record.attacks
            assert found.contained
            assert found.in_range
            assert found.patches == 1 or (name in ("standard", "quick") and found.patches >= 1)


class Worse(Steady):
    """Any bright pixel is far from success: of black images the clean one is nearest to it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1 + x.mean((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)


class Unbounded(Steady):
    """Its lead is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1 + 0 * x.sum((1, 2, 3)), -torch.inf + 0 * x.sum((1, 2, 3))], 1)


@pytest.mark.parametrize(
    "attack", [PatchPGD(steps=1, restarts=1), SparseRS(queries=4), ExhaustivePGD(steps=1, rounds=0)]
)
def test_an_infinite_lead_hides_no_patch(attack, tmp_path):
    """No value is less than another, and some patch is proposed all the same."""
    assert outcome_of(Unbounded(), [attack], tmp_path) == ("held", [1] * 4)


def test_the_budget_decides_whether_a_patch_is_tried(tmp_path):
    """One evaluation is that of the clean image."""
    for budget, expected in ((1, ("not tested", [0] * 4)), (30, ("held", [1] * 4))):
        assert outcome_of(Steady(), [SparseRS(queries=5)], tmp_path / str(budget), budget=budget) == expected


def test_one_image_without_a_patch_is_enough(tmp_path):
    """Each certified image, under each threat, has to be met by a patch."""
    half = Told(lambda x: torch.where(torch.arange(len(x))[:, None, None, None] > 0, put(0.0)(x.clone()), x))
    assert outcome_of(Steady(), [half], tmp_path / "half")[0] == "not tested"
    records = run(Steady(), tmp_path / "both", [half, SparseRS(queries=4)])
    assert summarise(records).verdict == "held"
    assert summarise(records).certified_patches == sum(record.patches for record in records) == 6


def test_summary_table_and_json_say_how_many(tmp_path):
    """In the verdict's sentence, and in the JSON of the summary."""
    records = run(Steady(), tmp_path, [SparseRS(queries=4), Told()])
    summary = summarise(records)
    assert "4 of 4 certified images attacked without pruning, 4 patches judged, " in verdict(summary).plain
    assert json.loads(json.dumps(summary.as_dict()))["certified_patches"] == 4
    assert summarise(read_records(tmp_path)) == summary


@pytest.mark.parametrize(
    "change",
    [
        {"patches": 0},
        {"visited": 0.0},
        {"evaluations": 0},
        {"contained": False},
        {"in_range": False},
        {"unpruned": False},
    ],
    ids=str,
)
def test_every_condition_of_a_test_is_needed(change):
    """A record without one of them leaves the threat untested."""
    whole = AttackRecord("a", "1x1", True, False, True, True, 1, [0, 0], 10, 1.0, 0.0, patches=1)
    for changed, expected in ((whole, {"1x1"}), (replace(whole, **change), set())):
        record = Record(0, 0, 0, True, True, 0.0, None, None, None, 0, 0, attacks=[changed])
        assert record.threats_tested == expected


def test_runs_of_earlier_versions_are_told(tmp_path):
    """Records without the number of patches are refused by the column's name, and done again by the run's command."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from evaluate.runs.records import SCHEMA, read_shard
    from evaluate.runs.run_identity import run_of
    from evaluate.runs.sealed_table import DamagedShard, write_table

    records = run(Steady(), tmp_path, [SparseRS(queries=4)])
    name = "records/00000000-00000003.parquet"
    table = pq.read_table(tmp_path / name)
    rows = table.to_pylist()
    for row in rows:
        for attack in row["attacks"]:
            del attack["patches"]
    fields = [field for field in SCHEMA.field("attacks").type.value_type if field.name != "patches"]
    old = pa.schema([*list(SCHEMA)[:-1], ("attacks", pa.list_(pa.struct(fields)))])
    (tmp_path / name).unlink()
    write_table(tmp_path, name, pa.Table.from_pylist(rows, schema=old), run_of(tmp_path))
    with pytest.raises(DamagedShard, match=r"without attacks.patches, it is of an earlier version.*repeat the run's"):
        read_shard(tmp_path, name)
    told = []
    again = evaluate(
        Steady().eval(), DARK, THREAT, [SparseRS(queries=4)], Settings(4, 3, 500, gallery=0), tmp_path,
        on_damaged=lambda shard, reason: told.append(reason),
    )  # fmt: skip
    assert ["attacks.patches" in reason for reason in told] == [True]
    assert summarise(again).verdict == summarise(records).verdict == "held"


@pytest.mark.parametrize("first", [True, False])
def test_the_ensemble_shows_a_patch_before_anything_else(first, tmp_path):
    """A patch that shows, however weak, before what leaves the threat, and that before the clean image."""
    told = {"patch": Told(put(0.0)), "outside": Told(lambda x: 1 - x, name="out"), "clean": Told(name="clean")}
    x, y = DARK.batch(range(4))
    for worse, better in (("clean", "outside"), ("outside", "patch"), ("clean", "patch")):
        members = (told[worse], told[better]) if first else (told[better], told[worse])
        found = Ensemble(members, "both")(Steady().eval(), x, y, THREAT, generator=torch.Generator().manual_seed(0))
        assert found.by == [told[better].name] * 4
        outcome = judge(Steady().eval(), x, y, THREAT, found)
        assert outcome.contained.all() == (better == "patch")


def test_what_shows():
    """Half a grey level somewhere, against every pair of values and on both sides of the limit."""
    x = torch.rand(1, 2, 3, 3)
    for channel, row, column in product(range(2), range(3), range(3)):
        for step, expected in ((0.0, False), (0.98 * LEVEL, False), (1.02 * LEVEL, True), (0.5, True)):
            other = x.clone()
            value = x[0, channel, row, column]
            other[0, channel, row, column] = value + step if value < 0.5 else value - step
            assert bool(visible(x, other)) == expected
