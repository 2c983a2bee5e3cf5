"""The examples of docs/audit.md run as printed, in order, and find what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
EXAMPLES = [part.split("```")[0] for part in DOCS.read_text().split("```python\n")[1:]]


@pytest.fixture
def run(few_plans, capsys):
    """What the first examples print, so many of them; the audit is cut short."""
    return _printed(capsys)


def _printed(capsys):
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


def test_alerts(run):
    assert run(3) == "held []"


def test_every_example_is_run():
    assert len(EXAMPLES) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_full(capsys):
    """With all that the audit does."""
    assert _printed(capsys)(3) == "held []"
