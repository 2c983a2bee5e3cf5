"""The command line around an audit: loads foreign code by its name, reports its errors, and handles Ctrl-C."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluate.audit.interface import Raised, Refused, told
from evaluate.audit.limit import Limit
from evaluate.model.import_by_name import named_object
from robustpatch.checkpoints import load_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.cli.status import Interrupted
from robustpatch.errors import InvalidInput

CTRL_C = "Ctrl-C"


def named(text: str | None, what: str) -> Any:
    """The object of that name, a certifier made where it is a class or a function. Raises `InvalidInput`."""
    if text is None:
        return None
    if ":" not in text and what == "target":
        loaded = load_checkpoint(text)
        return loaded.model if "defense" in as_classifier(loaded.model).describe() else loaded.smoothed
    try:
        found = named_object(text, what)
        if what == "target" and (isinstance(found, type) or not hasattr(found, "predict")):
            if not callable(found):
                raise InvalidInput(f"{what} is {text!r}, a {type(found).__name__} without predict; name a certifier")
            found = found()
        return found
    except InvalidInput:
        raise
    except Exception as error:  # foreign code
        raise Raised(f"{what} is {text!r}, which raised {told(error)}; mend that first") from error


def explaining(errors: Console, run: Callable[[], int]) -> int:
    """The status that `run` returns. Where foreign code raised the error that it refuses for, its traceback first."""
    try:
        return run()
    except InvalidInput as error:
        cause = _raised(error)
        if cause is not None:
            text = "".join(traceback.format_exception(cause, chain=False))
            errors.print(text.rstrip(), soft_wrap=True)
        raise


def _raised(error: InvalidInput) -> BaseException | None:
    """The error of foreign code behind a refusal, if there is one; a refusal in one line says enough by itself."""
    cause = error.__cause__
    if isinstance(cause, Refused):
        cause = cause.__cause__
    elif not isinstance(error, Raised):
        return None
    return None if isinstance(cause, InvalidInput) else cause


@contextmanager
def interruptible(limit: Limit, errors: Console) -> Iterator[Limit]:
    """Ctrl-C ends the audit before the next question to the certifier; a second one at once, with nothing shown."""

    def stop(*_: object) -> None:
        if limit.why == CTRL_C:
            raise Interrupted
        limit.stop(CTRL_C)
        errors.print("stopping when the certifier has answered; Ctrl-C once more ends at once, without a report")

    if threading.current_thread() is not threading.main_thread():
        yield limit
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield limit
    finally:
        signal.signal(signal.SIGINT, before)


def asked_for(target: str | None, factory: str | None) -> dict[str, Any]:
    """Returns the certifier's name in a form that works from any folder: files by their full paths, and for modules
    the folder from which they were found.
    """
    named = {"target": _full(target), "factory": _full(factory)}
    modules = [
        text for text in (target, factory) if text and ":" in text and not text.rpartition(":")[0].endswith(".py")
    ]
    return {**named, **({"folder": str(Path.cwd())} if modules else {})}


def _full(text: str | None) -> str | None:
    if text is None:
        return None
    where, colon, name = text.rpartition(":")
    if colon and where.endswith(".py"):
        return f"{Path(where).expanduser().resolve()}:{name}"
    return str(Path(text).resolve()) if not colon and Path(text).is_file() else text
