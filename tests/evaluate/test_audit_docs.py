"""The examples of docs/audit.md run as printed, in order, and find what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
EXAMPLES = [part.split("```")[0] for part in DOCS.read_text().split("```python\n")[1:]]


def run(number: int, capsys) -> str:
    """The last line that the first examples print, so many of them."""
    names = {"__name__": "docs"}
    for example in EXAMPLES[:number]:
        exec(example, names)
    return capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.usefixtures("few_plans")
@pytest.mark.parametrize("number", [1, 2, 3], ids=["numpy", "a fixed patch", "alerts"])
def test_the_examples(number, capsys):
    """The audit is cut short. Of the certifier for a fixed patch, others are not tested, and that is said."""
    printed = run(number, capsys)
    assert printed.startswith("held [")
    assert ("1x1 patch" in printed) == (number == 2)
    assert number == 2 or printed == "held []"
    assert len(EXAMPLES) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_full(capsys):
    """With all that the audit does."""
    assert run(3, capsys) == "held []"
