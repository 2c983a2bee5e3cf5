"""Killed between any two steps of its writing, and repeated, every command leaves what it leaves undisturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
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


@pytest.mark.parametrize("unnamed", [True, False])
def test_it_is_a_step_at_which_they_die(place, unnamed):
    """The last file is then written, whole, and has no name yet, or a hidden one that the next run removes."""
    whole = place.alone("report")[1]
    command = replace(place.commands["report"], unnamed=unnamed)
    named = call(command, place.work).named
    place.empty()
    assert call(command, place.work, fatal=named).status == -signal.SIGKILL
    assert not (place.work / "out" / "report.json").exists()
    parts = [path.read_bytes() for path in place.work.rglob("*.part")]
    assert parts == ([] if unnamed and hasattr(os, "O_TMPFILE") else [whole["out/report.json"]])
    assert call(command, place.work).status == 0
    assert difference(tree(place.work), whole) == []


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
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_step_of_a_repetition(place, name, part):
    """Of a finished run, which loses nothing."""
    place.alone(name)
    place.empty()
    assert place.finish(name) == []  # the first run, by the words of a repeated one
    steps = call(place.commands[name], place.work, repeated=True).steps
    wrong = {}
    for step in range(1 + part, steps + 1, PARTS):
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


def full(place: Place, name: str, step: int) -> list[str]:
    """What is wrong when the disk was full from this step on, and when the command is repeated with room."""
    command, (_, whole) = place.commands[name], place.alone(name)
    found = call(command, place.work, full=step)
    errors = [line for line in found.said.splitlines() if line.startswith("error: ")]
    told = found.status in (2, command.status or 2) and len(errors) == 1 and "No space left" in errors[0]
    lost = difference(tree(place.work), whole)  # nothing, where only a folder could not be sent to the disk
    wrong = [] if (told or not lost) and "Traceback" not in found.said else [found.said]
    return [*wrong, *(str(path) for path in place.work.rglob(".*")), *place.finish(name)]


@pytest.mark.parametrize("name", ["recipe", "evaluator, broken"])
def test_full_before_its_last_file_has_its_name(place, name):
    """One line says so, nothing half written is left, and the command ends as ever when there is room again."""
    named = place.alone(name)[0].named
    place.empty()
    assert full(place, name, named) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_full_from_any_step_on(place, name, part):
    """The same of each."""
    wrong = {}
    for step in range(1 + part, place.alone(name)[0].steps + 1, PARTS):
        place.empty()
        wrong[step] = full(place, name, step)
    assert not {step: found for step, found in wrong.items() if found}


OTHER = {"evaluator": ("--seed", "1"), "sweep": ("--theta", "0.4"), "train": ("--seed", "1")}  # which make another run


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [*((name, ()) for name in NAMES), *OTHER.items()])
def test_two_at_once(place, name, other):
    """Both end as one alone does, or one of them is refused; another run than that in the place always is."""
    command = place.commands[name]
    place.alone(name)
    place.empty()
    both = [command, replace(command, arguments=(*command.arguments, *other))]
    found = [ended(one, place.work) for one in [start(each, place.work) for each in both]]
    said = "".join(one.said for one in found)
    assert "Traceback" not in said
    statuses = [one.status for one in found]
    assert statuses in [[command.status, 2], [2, command.status], *([] if other else [[command.status] * 2])], said
    assert not list(place.work.rglob(".*"))
    if statuses[0] == command.status:
        assert place.finish(name) == []
