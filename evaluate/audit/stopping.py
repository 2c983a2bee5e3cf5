"""Early ends of an audit (a limit of seconds, Ctrl-C), and its steps: those done and those to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby

from robustpatch.errors import InvalidInput


class Stopped(BaseException):
    """The audit has to end: no `Exception`, so that nothing takes it for an answer of the certifier."""


@dataclass
class Limit:
    """Ends what runs within `running()` after so many seconds (None: never), or after `stop(why)`.

    The certifier is asked once more at most: `check`, which every question to it calls first, raises `Stopped`.
    """

    seconds: int | float | None = None
    why: str | None = field(default=None, init=False)
    _ends: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise InvalidInput(f"time limit is {self.seconds}; give a positive number of seconds, or none")

    def stop(self, why: str) -> None:
        self.why = self.why or why

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the clock; the questions asked within are counted against this limit."""
        self._ends = None if self.seconds is None else time.monotonic() + self.seconds
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def check(self) -> None:
        if self._ends is not None and time.monotonic() > self._ends:
            self.stop(f"the time limit of {self.seconds:g} s")
        if self.why is not None:
            raise Stopped(self.why)


_NEVER = Limit()
_running: ContextVar[Limit] = ContextVar("limit", default=_NEVER)


def check() -> None:
    """Raises `Stopped` where the audit under way has to end."""
    _running.get().check()


class Steps:
    """The steps of an audit by name, in the order in which they come. Call it with the name of the one that begins.

    `tell` is given the step, its number, and how long the rest takes if it takes as long as those before.
    """

    def __init__(self, names: list[str], tell: Callable[[str], None]) -> None:
        self.names, self.begun, self._tell, self._started = list(names), 0, tell, time.monotonic()

    def __call__(self, name: str) -> None:
        if name not in self.names[self.begun :]:  # one that was not foreseen
            self.names.insert(self.begun, name)
        self.begun = self.names.index(name, self.begun) + 1
        done, total = self.begun - 1, len(self.names)
        left = (time.monotonic() - self._started) / max(1, done) * (total - done)
        duration = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
        self._tell(f"{name} (step {self.begun} of {total}{f', about {duration} left' if done else ''})")

    @property
    def unfinished(self) -> list[str]:
        """The step under way and those to come."""
        return self.names[max(0, self.begun - 1) :]


def in_short(names: list[str]) -> str:
    """Steps on one line; of more than three on end that differ after their last comma alone, the number."""
    found: list[str] = []
    for head, group in groupby(names, lambda name: name.rpartition(", ")[0] or name):
        some = list(group)
        found += some if len(some) <= 3 else [f"{head} ({len(some)} steps)"]
    return "; ".join(found)
