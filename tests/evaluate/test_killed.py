"""Killed between any two steps of its writing, and repeated, every command leaves what it leaves undisturbed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.evaluate.commands import commands, furnish, read_before
from tests.killed import Ended, call, difference, ended, start, tree

NAMES = list(commands(Path()))
ALIKE, SLOW = ("gate", "bundle"), pytest.mark.slow  # which write as others do
PARTS = 4  # of a test that takes minutes


class Place:
    """Where commands are run, one after the other in one folder: its path is in what they write."""

    def __init__(self, root: Path) -> None:
        furnish(root)
        self.work, self.commands, self._before = root / "work", commands(root), read_before(root)
        self._alone: dict[str, tuple[Ended, dict[str, bytes | None]]] = {}

    def alone(self, name: str) -> tuple[Ended, dict[str, bytes | None]]:
        """The status of the undisturbed command, and all that it leaves."""
        if name not in self._alone:
            self._before.get(name, lambda: None)()
            self.empty()
            found = call(self.commands[name], self.work)
            assert found.status == self.commands[name].status, found.said
            self._alone[name] = found, tree(self.work)
            self.empty()
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
        """The differences from the undisturbed run when the command was killed at this step and repeated."""
        died = call(self.commands[name], self.work, fatal=step)
        assert died.status == -signal.SIGKILL, died.said
        return self.finish(name)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW) if one in ALIKE else one for one in NAMES])
def test_killed_before_its_last_file_has_its_name(place, name):
    """The next one removes what was half written, and writes it."""
    named = place.alone(name)[0].named
    place.empty()
    assert place.killed(name, named) == []


def test_it_is_a_step_at_which_they_die(place):
    """The last file is then written, whole, and has no name yet."""
    named = place.alone("report")[0].named
    place.empty()
    assert call(place.commands["report"], place.work, fatal=named).status == -signal.SIGKILL
    (part,) = [path for path in place.work.rglob("*") if path.suffix == ".part"]
    assert part.read_bytes() == place.alone("report")[1]["out/report.json"]
    assert not (place.work / "out" / "report.json").exists()


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


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", ["evaluator", "sweep", "train", "recipe"])
def test_killed_at_random_moments(place, name, part):
    """From outside, seven times, each of them repeated by the next."""
    place.alone(name)
    chance = random.Random(f"{name} {part}")
    place.empty()
    began = time.monotonic()
    assert place.finish(name) == []
    seconds = time.monotonic() - began
    place.empty()
    for number in range(7):
        process = start(place.commands[name], place.work, repeated=number > 0)
        process.join(chance.uniform(0, seconds))
        process.kill()
        ended(process, place.work)
        if number % 3 == 2:  # and so it ends now and then
            assert place.finish(name) == []
            place.empty()
    assert place.finish(name) == []
