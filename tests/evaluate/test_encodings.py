"""Consoles and locales that are not UTF-8: every command does what it does elsewhere, and says so as it can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.evaluate.test_killed import NAMES, Place, place
from tests.killed import call, difference, tree

__all__ = ["place"]  # a fixture


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one == "leaderboard" else pytest.mark.slow) for one in NAMES]
)
def test_a_console_and_a_locale_that_know_few_characters(place: Place, name: str, encoding: str) -> None:
    """It writes, byte for byte, what it writes in UTF-8."""
    _, whole = place.alone(name)
    place.empty()
    command = replace(place.commands[name], encoding=encoding)
    found = call(command, place.work)
    assert found.status == command.status, found.said
    assert difference(tree(place.work), whole) == []
    said = place.work.with_name("work.said").read_bytes().decode(encoding)
    assert "Traceback" not in said
    place.empty()
