"""An audit that is stopped, at whatever question, keeps what it had found and says what it did not finish."""

from __future__ import annotations

import pytest
import torch

from evaluate.audit import audit
from evaluate.audit.factory import steps
from evaluate.audit.plans import Plan
from evaluate.audit.stopping import Limit
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.audit_rules import make

PATCH, SHAPE = PatchThreat(2, 2), (1, 4, 13)


def stopped(rule: str, bug: str, at: int | None, alerts: bool = False, said=lambda _: None):
    """The audit told to stop at its question number `at`, and how many questions it asked."""
    limit, asked = Limit(), [0]

    def factory(base, num_classes, image_shape):
        certifier = make(rule, bug)(base, num_classes, image_shape)
        for name in ("certify", "predict"):
            setattr(certifier, name, _counted(getattr(certifier, name), asked, limit, at))
        return certifier

    options = {"threat": PATCH, "image_shape": SHAPE, "budget": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # who draws lots draws the same ones each time
        done = audit(factory=factory, limit=limit, alerts=alerts, on_progress=said, **options)
    return done, asked[0]


def _counted(method, asked, limit, at):
    def counted(*given):
        asked[0] += 1
        if asked[0] == at:
            limit.stop("the test")
        return method(*given)

    return counted


@pytest.mark.parametrize(
    ("rule", "bug", "plan"),
    [
        ("ties", "higher", Plan(SHAPE, (PATCH,))),
        ("summed", "float32 sum", Plan(SHAPE, (PATCH,), deep=True)),
        ("batches", "turned round", Plan(SHAPE, (PATCH,), batches=True)),
        ("sizes", "odd alone", Plan(SHAPE, (PatchThreat(2, 3), PATCH), brief=True)),
        ("sampled", "half", Plan(SHAPE, (PATCH,))),
    ],
)
def test_what_was_found_by_then_is_kept(monkeypatch, rule, bug, plan):
    """Once something is found it is found by every audit that is stopped later: in ballots, searches, batches and
    while causes are looked for.
    """
    monkeypatch.setattr("evaluate.audit.factory.plans", lambda *_: [plan])
    whole, number = stopped(rule, bug, None)
    assert whole.failed
    found = []
    for at in [*range(1, number - 1, max(1, number // 4)), number - 1, number]:
        done, asked = stopped(rule, bug, at)
        assert (done.stopped, asked) == ("the test", at)
        found.append(done.failed)
        assert done.verdict == ("broken" if any("broken" in one.severity for one in done.findings) else "not tested")
    assert found == sorted(found)
    assert found[-1]


def test_the_steps_are_known_beforehand(monkeypatch):
    """Each plan's, in order: dictated votes of each patch that fits, then a search, then batches."""
    plans = [
        Plan(SHAPE, (PATCH, PatchThreat(9, 1), PatchThreat(1, 1)), deep=True, batches=True),
        Plan((1, 2, 9), (PatchThreat(1, 2),), brief=True),
    ]
    monkeypatch.setattr("evaluate.audit.factory.plans", lambda *_: plans)
    said: list[str] = []
    stopped("ties", "", None, said=said.append)
    assert [line.split(" (")[0] for line in said] == steps(SHAPE, PATCH)
    assert [line.split(" (")[1].split(",")[0].rstrip(")") for line in said] == [f"step {n} of 5" for n in range(1, 6)]
