"""A folder held by one process or shared by several; the operating system lets go of it when a process ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from robustpatch.errors import InvalidInput
from robustpatch.storage.leftovers import remove_leftovers

try:
    import fcntl
except ImportError:  # a system without such locks: nothing is held there
    fcntl = None

_PATIENCE = 5.0  # seconds: another process may just be looking for leftovers

_held: dict[str, tuple[int, int, bool]] = {}  # by this process: descriptor, how many times, whether alone
_one_at_a_time = Lock()


@contextmanager
def held(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold the folder, which is made if need be, while the block runs: `alone`, or together with all who do not ask for
    that. What killed processes left half written in it is removed, unless others are at work there.

    It is the folder itself that is locked: there is no file to be left behind, and a process that is killed lets go.
    A folder that the block leaves empty is removed again if it was made here. Held again by the same process, it stays
    held as it is. Raises `InvalidInput` where another process holds it, and `OSError` where it cannot be made.
    """
    made = _make(folder)
    try:
        key = os.path.realpath(folder)
        _take(key, alone)
        try:
            yield
        finally:
            _let_go(key)
    finally:
        with suppress(OSError):  # not empty, or in use by others
            for one in made:
                one.rmdir()


def held_by_none_else(folder: Path) -> bool:
    """Whether no other process holds the folder, which this one has to hold."""
    with _one_at_a_time:
        descriptor, _, alone = _held.get(os.path.realpath(folder), (-1, 0, False))
        if fcntl is None or descriptor < 0:
            return False
        sole = _locked(descriptor, alone=True)
        if not alone:
            _locked(descriptor, alone=False)
        return sole


def _make(folder: Path) -> list[Path]:
    """Make the folder; those that were not there before, the innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(key: str, alone: bool) -> None:
    with _one_at_a_time:
        descriptor, times, was_alone = _held.get(key, (-1, 0, alone))
        if not times:
            descriptor = _lock(key, alone)
        _held[key] = descriptor, times + 1, was_alone


def _let_go(key: str) -> None:
    with _one_at_a_time:
        descriptor, times, alone = _held.pop(key)
        if times > 1:
            _held[key] = descriptor, times - 1, alone
        elif descriptor >= 0:
            os.close(descriptor)


def _lock(key: str, alone: bool) -> int:
    """A descriptor that holds the folder; -1 where the file system knows no locks of folders."""
    if fcntl is None:
        return -1
    try:
        descriptor = os.open(key, os.O_RDONLY)
    except OSError:  # not to be read: there is no lock, and writing there will say what is wrong
        return -1
    try:
        until = time.monotonic() + _PATIENCE
        while not _locked(descriptor, alone=True):
            if not alone and _locked(descriptor, alone=False):
                return descriptor
            if time.monotonic() > until:
                raise InvalidInput(
                    f"output is {key}, where another process is at work; wait for its end, or name another output"
                )
            time.sleep(0.05)
        _remove_all_leftovers(Path(key))
        if not alone:
            _locked(descriptor, alone=False)
    except OSError:  # no locks here
        os.close(descriptor)
        return -1
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locked(descriptor: int, *, alone: bool) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_all_leftovers(folder: Path) -> None:
    for inside, _, _ in os.walk(folder):
        remove_leftovers(inside)
