"""Exit statuses of commands, and the line they print where the call was wrong or the code of others ended them."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from robustpatch.cli.command_line import WRONG_CALL, refused
from robustpatch.cli.consoles import TextConsole
from robustpatch.errors import InvalidInput

RESUMED = "interrupted; the finished batches are kept, and the same command resumes the run"
HELD, BROKEN, INTERNAL, INTERRUPTED, TERMINATED = 0, 1, 3, 130, 143


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, from the signal itself: a plain KeyboardInterrupt was raised by somebody's code."""


class Terminated(BaseException):
    """SIGTERM: what is open is closed on the way out."""


def status_of(run: Callable[[Console], int], interrupted: str = RESUMED) -> int:
    """The exit status that `run` returns, or that of how it ended. `run` is given a console on stderr.

    2: a wrong call, refused with `InvalidInput`: one line. 130: interrupted by Ctrl-C, 143: by SIGTERM, both with the
    line `interrupted`. 3: a defect, shown with its traceback, or code of others, such as a model's, that asked for the
    end of the program (`sys.exit`) or raised KeyboardInterrupt: it is named.
    """
    errors = TextConsole(stderr=True)
    try:
        with signals():
            return run(errors)
    except InvalidInput as error:
        refused(error)
        return WRONG_CALL
    except Interrupted:
        errors.print(interrupted)
        return INTERRUPTED
    except Terminated:
        errors.print(interrupted.replace("interrupted", "terminated", 1))
        return TERMINATED
    except Exception:
        errors.print_exception()
        errors.print("internal error: please report it with the lines above")
        return INTERNAL
    except BaseException as error:
        errors.print_exception()
        errors.print(f"internal error: {ended_by(error)}", soft_wrap=True)
        return INTERNAL


def ended_by(error: BaseException) -> str:
    """Names the code that raised an exception that ends programs, and says what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else "an unknown place"
    return (
        f"{where} raised {type(error).__name__}({error}), which would have ended the program; let the code of "
        "a model, an attack or a data set raise an ordinary exception instead"
    )


@contextmanager
def signals() -> Iterator[None]:
    """Have Ctrl-C raise `Interrupted` and SIGTERM `Terminated` while the block runs, in the main thread; handlers of
    the caller's own stay.
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    own = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    for number in own:
        signal.signal(number, raise_for)
    try:
        yield
    finally:
        for number in own:
            signal.signal(number, usual[number])


def raise_for(number: int, *_: object) -> None:
    """A signal handler."""
    raise Interrupted if number == signal.SIGINT else Terminated
