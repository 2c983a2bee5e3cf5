"""The examples of docs/audit.md run as printed, in order, and find what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
EXAMPLES = [part.split("```")[0] for part in DOCS.read_text().split("```python\n")[1:]]


def printed(capsys) -> list[str]:
    """The last line that each example prints."""
    names, lines = {"__name__": "docs"}, []
    for example in EXAMPLES:
        exec(example, names)
        lines.append(capsys.readouterr().out.strip().splitlines()[-1])
    return lines


@pytest.mark.usefixtures("few_plans")
def test_the_examples(capsys):
    """The audit is cut short. Of the certifier for a fixed patch, others are not tested, and that is said."""
    numpy, fixed, alerts = printed(capsys)
    assert (numpy, alerts) == ("held []", "held []")
    assert fixed.startswith("held [")
    assert "1x1 patch" in fixed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_full(capsys):
    """With all that the audit does."""
    assert printed(capsys)[2] == "held []"
