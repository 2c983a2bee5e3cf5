"""records -> numbers: counted by hand."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from scipy.stats import beta

from attacks.occlusion import CONTROLS
from evaluate.results.metrics import Share, summarise
from evaluate.results.report_columns import summary_table
from evaluate.results.sentences import survival_text
from evaluate.runs.records import AttackRecord, Record


def attack(name="a", *, broken=False, unpruned=False, evaluations=10, visited=0.5, contained=True, patches=1):
    return AttackRecord(
        attack=name,
        threat="1x1",
        unpruned=unpruned,
        broken=broken,
        contained=contained,
        in_range=True,
        prediction=1,
        corners=[0, 0],
        evaluations=evaluations,
        visited=visited,
        patches=patches,
        seconds=1.0,
    )


def record(
    index=0,
    *,
    correct=True,
    exact: bool | None = False,
    margin: bool | None = False,
    attacks=(),
    consistent: bool | None = True,
):
    return Record(
        index=index,
        label=0,
        prediction=0 if correct else 1,
        consistent=consistent,
        certified_exact=exact,
        margin_exact=None if exact is None else 0.0,
        certified_margin=margin,
        margin_margin=None if margin is None else 0.0,
        largest_certified=1,
        close_votes=2,
        votes=20,
        attacks=list(attacks),
    )


RECORDS = [
    record(0, exact=True, margin=True, attacks=[attack(unpruned=True), attack("b", unpruned=True, evaluations=7)]),
    record(1, exact=True, attacks=[attack(unpruned=True), attack("b", unpruned=True)]),
    record(2, exact=True, correct=False, attacks=[attack(unpruned=True), attack("b", unpruned=True)]),
    record(3, attacks=[attack(broken=True, visited=0.25), attack("b")]),
    record(4, attacks=[attack(contained=False), attack("b", broken=True, evaluations=100)]),
    record(5, attacks=[attack(visited=1.0), attack("b")]),
    record(6, correct=False),
]


def test_the_counts():
    """Clean, certified and empirical accuracy, work and verdict of seven images."""
    summary = summarise(RECORDS)
    assert (summary.images, summary.clean.hits) == (7, 5)
    assert summary.certified_exact.hits == 2
    assert summary.certified_margin.hits == 1
    assert {name: found.accuracy.hits for name, found in summary.attacks.items()} == {"a": 4, "b": 4}
    assert summary.under_all.hits == 3
    assert summary.gap == pytest.approx(1 / 7)
    assert (summary.certified_images, summary.certified_attacked, summary.certified_evaluations) == (3, 3, 57)
    assert {name: found.evaluations for name, found in summary.attacks.items()} == {"a": 30, "b": 120}
    assert {name: found.evaluations_certified for name, found in summary.attacks.items()} == {"a": 30, "b": 27}
    assert summary.attacks["a"].visited == pytest.approx((0.25 + 0.5 + 1.0) / 3)
    assert summary.attacks["a"].out_of_threat == 1
    assert summary.attacks["b"].seconds == 6.0
    assert (summary.close_votes, summary.votes) == (14, 140)
    assert summary.verdict == "held"


@pytest.mark.parametrize(
    "spoiled",
    [
        record(0, exact=True),
        record(0, margin=True),
        record(0, exact=True, correct=False),
        record(0, exact=True, attacks=[attack(unpruned=False)]),
        record(0, exact=True, attacks=[attack(unpruned=True), attack("b", unpruned=False)]),
        record(0, exact=True, attacks=[attack(unpruned=True, visited=0.0), attack("b", unpruned=True, visited=0.0)]),
        record(0, exact=True, attacks=[attack(unpruned=True, patches=0), attack("b", unpruned=True, patches=0)]),
        *(record(0, exact=True, attacks=[attack(name, unpruned=True)]) for name in CONTROLS),
        record(0, exact=True, attacks=[attack("grey", unpruned=True), attack("b", unpruned=True, visited=0.0)]),
    ],
)
def test_not_held_unless_every_certified_image_was_attacked(spoiled):
    """One certified image without an unpruned attack, whatever its label or method: "not tested"."""
    summary = summarise([spoiled, *RECORDS[1:]])
    assert summary.verdict == "not tested"
    assert summary.certified_attacked == summary.certified_images - 1


@pytest.mark.parametrize(
    "spoiled",
    [
        record(0, exact=True, attacks=[attack(unpruned=True, broken=True)]),
        record(0, margin=True, attacks=[attack(unpruned=True, broken=True)]),
        record(0, exact=True, correct=False, attacks=[attack(unpruned=True, broken=True)]),
        record(0, exact=True, consistent=False),
        record(0, exact=True, attacks=[attack(unpruned=True), attack("grey", unpruned=True, broken=True)]),
        record(0, exact=True, attacks=[attack("grey", unpruned=True, broken=True)]),
    ],
)
def test_one_violation_breaks_the_verdict(spoiled):
    """A certified prediction changed, for a right or a wrong label, or contradicted by predict: "broken"."""
    summary = summarise([spoiled, *RECORDS[1:]])
    assert summary.verdict == "broken"
    by = [attack.attack for attack in spoiled.attacks if attack.broken] or ["predict"]
    assert summary.violations == [{"index": 0, "attack": by[0]}]


def test_an_attack_beside_a_control_tests_a_certificate():
    """Whatever the order."""
    for names in (("grey", "a"), ("a", "noise", "natural")):
        summary = summarise([record(0, exact=True, attacks=[attack(name, unpruned=True) for name in names])])
        assert (summary.verdict, summary.certified_attacked) == ("held", 1)


def test_a_broken_image_without_a_certificate_is_no_violation():
    """Empirical accuracy falls; there was no certificate to break, so none has held."""
    assert summarise([record(0, attacks=[attack(broken=True)])]).verdict == "not tested"
    stood = record(1, exact=True, attacks=[attack(unpruned=True)])
    assert summarise([record(0, attacks=[attack(broken=True)]), stood]).verdict == "held"


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (5, 5), (1, 7), (113, 200), (9_650, 10_000)])
def test_intervals_are_clopper_pearson(hits, total):
    """The exact 95% interval, by quantiles of the beta distribution."""
    low = beta.ppf(0.025, hits, total - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, total - hits) if hits < total else 1.0
    assert Share(hits, total).interval == pytest.approx((low, high), abs=1e-9)
    assert Share(hits, total).value == hits / total


def test_certifiers_without_the_papers_method():
    """None where any record has none."""
    assert summarise([record(0, margin=None), record(1)]).certified_margin is None


BARE = {"exact": None, "margin": None, "consistent": None}
UNDEFENDED = [record(0, **BARE, attacks=[attack(broken=True)]), record(1, **BARE, attacks=[attack()])]


def test_classifiers_without_a_certificate():
    """Neither certified accuracy nor a gap, in JSON too; clean and empirical accuracy as ever."""
    out = json.loads(json.dumps(summarise(UNDEFENDED).as_dict()))
    assert [out[key] for key in ("certified_exact", "certified_margin", "gap")] == [None, None, None]
    assert (out["verdict"], out["certified_images"], out["clean"]["hits"]) == ("no certificate", 0, 2)
    assert (out["under_all"]["hits"], out["attacks"]["a"]["visited"]) == (1, 0.5)


@pytest.mark.parametrize(("broken", "verdict"), [(True, "broken"), (False, "held")])
def test_one_certificate_among_images_without_any_counts(broken, verdict):
    """ "no certificate" is said only where there is none."""
    one = record(2, exact=True, margin=None, attacks=[attack(unpruned=True, broken=broken)])
    assert summarise([*UNDEFENDED, one]).verdict == verdict


def test_the_table_without_a_certificate():
    """No certified row, no gap, no guard, no empty line."""
    group = summary_table(summarise(UNDEFENDED), title="t", guard=None, deviation=None, seconds=1.0)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(group)
    text = console.export_text()
    assert "under all attacks" in text
    assert not any(word in text for word in ("certified", "gap", "guard", "votes", "HELD"))
    assert len(group.renderables) == 3
    assert str(group.renderables[-1]).startswith("NO CERTIFICATE:")


def test_the_summary_is_json():
    """Every number of the summary survives JSON, intervals included."""
    out = json.loads(json.dumps(summarise(RECORDS).as_dict()))
    interval = pytest.approx(list(Share(5, 7).interval))
    assert out["clean"] == {"hits": 5, "total": 7, "value": 5 / 7, "interval95": interval}
    assert out["attacks"]["b"]["accuracy"]["hits"] == 4
    assert (out["verdict"], out["certified_attacked"], out["certified_evaluations"]) == ("held", 3, 57)


@pytest.mark.parametrize(
    ("records", "word"),
    [
        (RECORDS, "HELD"),
        ([record(0, exact=True)], "NOT TESTED"),
        ([record(0, exact=True, attacks=[attack(unpruned=True, broken=True)])], "BROKEN"),
    ],
)
def test_the_table_ends_with_the_verdict(records, word):
    """ "held" is printed for that verdict alone."""
    group = summary_table(summarise(records), title="t", guard=1e-4, deviation=1e-8, seconds=1.0)
    verdict = str(group.renderables[-1])
    assert verdict.startswith(word + ":")
    assert "attacked without pruning" in verdict


LITTLE = attack(visited=0.004)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (RECORDS, "3 of 7 images survive every attack tried; 2 provably survive all"),
        (UNDEFENDED, "1 of 2 images survives every attack tried"),
        ([record(0)], "1 of 1 image is right, and no attack was run; 0 provably survive all"),
        ([record(0, exact=None, attacks=[LITTLE])], "none tried more than 0.4% of the places: that says little"),
        (
            [record(0, exact=True, attacks=[attack(unpruned=True, broken=True)])],
            "0 of 1 image survive every attack tried; 1 was certified to survive all, and not all did",
        ),
    ],
)
def test_what_an_engineer_asks_first(records, said):
    """The images that stood up to what was tried, and to everything; a warning where next to nothing was tried."""
    assert said in survival_text(summarise(records))
    group = summary_table(summarise(records), title="t", guard=None, deviation=None, seconds=1.0)
    assert said in str(group.renderables[-2])
