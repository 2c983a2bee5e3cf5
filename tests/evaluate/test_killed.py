"""Killed between any two steps of its writing, and repeated, every command leaves what it leaves undisturbed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.evaluate.commands import commands, furnish, read_before
from tests.killed import Ended, call, difference, tree

NAMES = list(commands(Path()))
PARTS = 4  # of a test that takes minutes


class Place:
    """Where commands are run, one after the other in one folder: its path is in what they write."""

    def __init__(self, root: Path) -> None:
        furnish(root)
        self.work, self.commands, self._before = root / "work", commands(root), read_before(root)
        self._alone: dict[str, tuple[Ended, dict[str, bytes | None]]] = {}

    def alone(self, name: str) -> tuple[Ended, dict[str, bytes | None]]:
        """How the command ends undisturbed, and all that it leaves."""
        if name not in self._alone:
            self._before.get(name, lambda: None)()
            self.empty()
            found = call(self.commands[name], self.work)
            assert found.status == self.commands[name].status, found.said
            self._alone[name] = found, tree(self.work)
        return self._alone[name]

    def empty(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def finish(self, name: str) -> list[str]:
        """Repeat the command; what is then other than where it ended undisturbed."""
        command, (_, whole) = self.commands[name], self.alone(name)
        found = call(command, self.work, repeated=True)
        wrong = difference(tree(self.work), whole)
        return wrong if found.status == command.status else [f"status {found.status}: {found.said}", *wrong]

    def killed(self, name: str, step: int) -> list[str]:
        """What is other than undisturbed when the command was killed at this step and repeated."""
        died = call(self.commands[name], self.work, fatal=step)
        assert died.status == -signal.SIGKILL, died.said
        return self.finish(name)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_step(place, name, part):
    """Of a run that starts anew: the repeated one ends as if nothing had happened, and nothing half written is left."""
    wrong = {}
    for step in range(1 + part, place.alone(name)[0].steps + 1, PARTS):
        place.empty()
        wrong[step] = place.killed(name, step)
    assert not {step: names for step, names in wrong.items() if names}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_step_of_a_repetition(place, name):
    """Of a finished run, which loses nothing."""
    place.alone(name)
    place.empty()
    assert place.finish(name) == []  # the first run, by the words of a repeated one
    steps = call(place.commands[name], place.work, repeated=True).steps
    wrong = {}
    for step in range(1, steps + 1):
        died = call(place.commands[name], place.work, fatal=step, repeated=True)
        assert died.status == -signal.SIGKILL, died.said
        wrong[step] = place.finish(name)
    assert not {step: names for step, names in wrong.items() if names}
