"""Files that are not whole yet, told from those that a killed process left so: who writes one holds a lock on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ImportError:  # a system without such locks: nothing is known to be left over there
    fcntl = None

_PART = re.compile(r"\.[0-9a-f]{8}\.part")


def part_name() -> str:
    """What to call a file until it is whole."""
    return f".{uuid4().hex[:8]}.part"


@contextmanager
def being_written(descriptor: int) -> Iterator[None]:
    """Say so of the open file while the block runs, even if `descriptor` is closed within. The system takes it back
    when the process ends, however it does.
    """
    if fcntl is None:
        yield
        return
    own = os.dup(descriptor)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
                _remove(os.path.join(folder, name))


def _remove(path: str) -> None:
    """Raises `OSError` where it is being written, or is gone."""
    assert fcntl is not None
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)
