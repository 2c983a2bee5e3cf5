"""Locks of folders and of files that are being written: the operating system releases them when a process ends."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from uuid import uuid4

from robustpatch.errors import InvalidInput

try:
    import fcntl
except ImportError:  # a system without such locks: nothing is locked, and nothing known to be left over
    fcntl = None

_PATIENCE = 5.0  # seconds: another process may just be looking for leftovers
_PART = re.compile(r"\.[0-9a-f]{8}\.part")
_held: dict[str, tuple[int, int, bool]] = {}  # by this process: descriptor, how many times, whether alone
_one_at_a_time = Lock()


@contextmanager
def held(folder: Path, *, alone: bool) -> Iterator[None]:
    """Lock the folder, which is made if need be, while the block runs: `alone`, or shared with all who do not ask for
    that. What killed processes left half written in it is removed before the block and after it, unless others are at
    work there: those killed may have had workers that outlived them.

    The folder itself is locked, so that no lock file is left behind. A folder that was made here and that the block
    leaves empty is removed again. Held again by the same process, it stays held as it is. Raises `InvalidInput` where
    another process holds it, and `OSError` where it cannot be made.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]  # the innermost first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        key = os.path.realpath(folder)
        with _one_at_a_time:
            descriptor, times, was_alone = _held.get(key) or (_lock(key, alone), 0, alone)
            _held[key] = descriptor, times + 1, was_alone
        try:
            yield
        finally:
            with _one_at_a_time:
                descriptor, times, was_alone = _held.pop(key)
                if times > 1:
                    _held[key] = descriptor, times - 1, was_alone
                elif descriptor >= 0:
                    with suppress(OSError):
                        _tidy(key, descriptor)
                    os.close(descriptor)
    finally:
        with suppress(OSError):  # not empty, or in use by others
            for one in made:
                one.rmdir()


def held_by_none_else(folder: Path) -> bool:
    """Return whether no other process holds the folder, which this one has to hold."""
    with _one_at_a_time:
        descriptor, _, alone = _held.get(os.path.realpath(folder), (-1, 0, False))
        if fcntl is None or descriptor < 0:
            return False
        sole = _locked(descriptor, alone=True)
        if not alone:
            _locked(descriptor, alone=False)
        return sole


def _lock(key: str, alone: bool) -> int:
    """A descriptor that holds the folder; -1 where it cannot be opened or its file system knows no locks."""
    try:
        descriptor = -1 if fcntl is None else os.open(key, os.O_RDONLY)
    except OSError:  # not to be read: writing there will say what is wrong
        descriptor = -1
    if descriptor < 0:
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
        _tidy(key, descriptor)
        if not alone:
            _locked(descriptor, alone=False)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):  # no locks here
            return -1
        raise
    return descriptor


def _tidy(key: str, descriptor: int) -> None:
    """Remove what killed processes left half written in the folder, where this process can hold it alone, and does."""
    if _locked(descriptor, alone=True):
        for inside, _, _ in os.walk(key):
            remove_leftovers(inside)


def _locked(descriptor: int, *, alone: bool) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def part_name() -> str:
    """Return what to call a file until it is whole."""
    return f".{uuid4().hex[:8]}.part"


@contextmanager
def being_written(descriptor: int) -> Iterator[None]:
    """Lock the open file while the block runs, even if `descriptor` is closed within."""
    if fcntl is None:
        yield
        return
    own = os.dup(descriptor)
    try:
        with suppress(OSError):  # a file system without locks
            _locked(own, alone=True)
        yield
    finally:
        os.close(own)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the files right inside `folder` that were never finished and that nobody is writing any more.

    A file system may know no locks between machines, or a file be made but not locked yet: a writer has to write again
    what it finds removed.
    """
    if fcntl is None:
        return
    with suppress(OSError):
        for name in filter(_PART.fullmatch, os.listdir(folder)):
            with suppress(OSError):
                path = os.path.join(folder, name)
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    if _locked(descriptor, alone=True):
                        os.unlink(path)
                finally:
                    os.close(descriptor)
