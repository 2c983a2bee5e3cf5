"""Ctrl-C and SIGTERM, kept from raising anything in the middle of code that does not survive it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Deferred:
    """A block in which Ctrl-C and SIGTERM raise nothing but in `check`, and at its end at the latest.

    It is for compiled code of others, which an exception at any of its lines leaves in a state that ends in a crash.
    What is raised is what the handlers in place raise; they stay, whatever the code in the block puts there. `at_once`
    is called when a signal arrives. Only the main thread hears of signals: nothing is deferred in any other, nor where
    a handler of the system's ends the process.
    """

    def __init__(self, at_once: Callable[[], object] = lambda: None) -> None:
        self._at_once, self._own, self._set = at_once, dict[int, Any](), signal.signal
        self._arrived: list[int] = []

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self._own = {number: handler for number, handler in handlers.items() if callable(handler)}
        if self._own:
            self._set = signal.signal
            signal.signal = self._keep  # type: ignore[assignment]
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            signal.signal = self._set
        for number, handler in self._own.items():
            signal.signal(number, handler)
        self.check()

    def listen(self) -> None:
        """Hear of signals again, where compiled code has put handlers of its own in the place of these."""
        for number in self._own:
            self._set(number, self._hear)

    def check(self) -> None:
        """Raise for the first signal that has arrived, if one has."""
        if self._arrived:
            number = self._arrived.pop(0)
            self._own[number](number, None)

    def _hear(self, number: int, _: object) -> None:
        self._at_once()
        self._arrived.append(number)

    def _keep(self, number: int, handler: Any) -> Any:
        return self._own[number] if number in self._own else self._set(number, handler)
