"""Signals raise nothing in the middle of code that would not survive it, and are not lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from robustpatch.cli.deferring import Deferred
from robustpatch.cli.status import Interrupted, Terminated, signals

BOTH = [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)]


@pytest.fixture(autouse=True)
def usual():
    """The handlers of a program that was just started, while the test runs."""
    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))
    }
    real = signal.signal
    yield
    assert signal.signal is real
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number, _ in BOTH]


@pytest.mark.parametrize(("number", "kind"), BOTH)
def test_it_is_raised_where_it_is_looked_for(number, kind):
    done, at_once = [], []
    with signals():
        before = handlers()
        with pytest.raises(kind), Deferred(lambda: at_once.append(True)) as deferred:  # noqa: PT012  the block is tested
            deferred.check()
            os.kill(os.getpid(), number)
            done.append("in the middle")
            deferred.check()
            done.append("not this")
        assert handlers() == before
    assert done == ["in the middle"]
    assert at_once == [True]


@pytest.mark.parametrize(("number", "kind"), BOTH)
def test_at_the_end_at_the_latest(number, kind):
    """Over an error of the block, too: who asked for the end is told that it was one."""
    for error in (None, ValueError("spoilt by the signal")):
        with pytest.raises(kind), signals(), Deferred():  # noqa: PT012
            os.kill(os.getpid(), number)
            if error is not None:
                raise error


def never(*_):
    raise AssertionError("called")


@pytest.mark.parametrize("seen", [True, False])
def test_handlers_of_the_code_within_are_not_called(seen):
    """They are not installed; nor stay those that compiled code installed by no call that is seen, once `listen` is
    called. Of other signals they do.
    """
    other = signal.getsignal(signal.SIGUSR1)
    with signals():
        before = handlers()
        with pytest.raises(Terminated), Deferred() as deferred:  # noqa: PT012
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            if seen:
                assert signal.signal(signal.SIGTERM, never) is before[1]
            else:
                deferred._set(signal.SIGTERM, never)
                deferred.listen()
            os.kill(os.getpid(), signal.SIGTERM)
        assert handlers() == before
    signal.signal(signal.SIGUSR1, other)


def test_what_ends_the_process_still_does():
    """A handler of the system's is left in its place, and in another thread all are."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = handlers()
    with Deferred():
        assert handlers() == before
    found = []

    def elsewhere():
        with Deferred() as deferred:
            deferred.check()
            found.append(handlers())

    with signals():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert found == [handlers()]
