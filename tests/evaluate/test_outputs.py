"""Where results go is known to be right before any work: for every command, in one line, and nothing is left."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from tests.evaluate.test_generated_calls import ASKED, call, no_training, place, tree

__all__ = ["no_training", "place"]  # fixtures
Usage = namedtuple("Usage", "total used free")
FILES = {"curve": "a.png", "learning": "a.png", "bundle": "a.zip"}  # commands that write one alone
READING = {  # what a command does first that takes its time
    "attack-vs-cert": "evaluate.runs.runner._here",
    "report": "evaluate.report.write.read_report",
    "audit": "evaluate.audit.run._pool",
    "sweep": "evaluate.sweep.runner._batch",
    "compare": "evaluate.compare.read_run",
    "gate": "evaluate.gate.__main__.read_run",
    "bundle": "evaluate.bundle.__main__.read_run",
    "leaderboard": "evaluate.leaderboard.__main__.measure",
    "learning": "evaluate.learning.read_learning",
    "curve": "evaluate.curve.read_curve",
    "train": "robustpatch.training.loop.read_ahead",
    "recipe": "robustpatch.training.loop.read_ahead",
}


def asked(command: str, output: object) -> list[str]:
    return [*ASKED[command], "--output", f"{output}/{FILES[command]}" if command in FILES else str(output)]


def refused(place: Path, command: str, output: object, what: str) -> None:
    """Status 2, one line that says so, and the tree as it was."""
    before = tree(place)
    done = call(command, asked(command, output))
    said = f"{command}: {done.exit_code} {done.exception!r}\n{done.output}"
    assert done.exit_code == 2, said
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: output is "), said
    assert what in line, said
    assert tree(place) == before, said


@pytest.fixture(scope="module")
def sealed(place):
    """A folder in which nobody may write, not even root, and beside it a link to nothing."""
    (place / "dangling").symlink_to("nothing")
    folder = place / "sealed"
    folder.mkdir(0o555)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root may write anywhere, and mount nothing here")
    yield folder
    if os.geteuid() == 0:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def idle(monkeypatch):
    """No command may begin its work."""

    def forbid(command: str) -> None:
        def work(*_, **__):
            raise AssertionError("the work began")

        monkeypatch.setattr(READING[command], work)

    return forbid


@pytest.mark.parametrize("command", READING)
def test_no_place_for_results(command, place, sealed, idle):
    """Places that are gone at the end, unknown, empty, read-only, or below a file or a link to nothing."""
    idle(command)
    local = "name a folder" if command in ("train", "recipe", "audit") else "gone when the command ends"
    refused(place, command, "memory://x", local)
    refused(place, command, "text.txt/x", "cannot be written")
    refused(place, command, "loop/x", "cannot be written")
    refused(place, command, "dangling", "cannot be written")
    refused(place, command, sealed, "cannot be written")
    refused(place, command, "x" * 256, "longer than any file's name")
    refused(place, command, "nothing://x", "which cannot be opened")
    if command not in FILES:
        refused(place, command, "", "is empty")


@pytest.mark.parametrize("command", READING)
def test_no_room_for_results(command, place, idle, monkeypatch):
    """A full disk is noticed before the work, whether it says so or not."""
    idle(command)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**4, 10**4))
    refused(place, command, "new", "0 MB are free and ")
    monkeypatch.undo()
    idle(command)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(place, command, "new", "No space left on device")


@pytest.mark.parametrize("command", READING)
@pytest.mark.usefixtures("impatient")
def test_another_at_work_there(command, place, idle):
    """Found out before either writes. Pictures and reports, of one file each that is whole or not there, share."""
    idle(command)
    folder = place / "taken"
    held = folder / "small" / "1" if command == "recipe" else folder
    held.mkdir(parents=True)
    other = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(place, command, folder, "where another process is at work")
    finally:
        os.close(other)
        shutil.rmtree(folder)
