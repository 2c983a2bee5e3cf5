"""The examples of docs/audit.md run as printed, in order, and find what it says."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest

from evaluate.audit import audit

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
EXAMPLES = [part.split("```")[0] for part in DOCS.read_text().split("```python\n")[1:]]


@pytest.fixture
def run(monkeypatch, capsys):
    """What the first examples print, so many of them."""
    monkeypatch.setattr("evaluate.audit.factory._LONG", 16)

    def printed(number):
        names = {"__name__": "docs"}
        for example in EXAMPLES[:number]:
            exec(example, names)
        return capsys.readouterr().out.strip().splitlines()[-1]

    return printed


def test_numpy(run):
    assert run(1) == "held []"


def test_a_fixed_patch(run):
    """The others are not tested, and that is said."""
    assert run(2).startswith("held [")
    assert "1x1 patch" in run(2)


@pytest.mark.skipif("alerts" not in signature(audit).parameters, reason="the audit has no option alerts yet")
def test_alerts(run):
    assert run(3) == "held []"


def test_every_example_is_run():
    assert len(EXAMPLES) == 3
