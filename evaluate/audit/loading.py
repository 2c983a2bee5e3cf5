"""Foreign certifiers, loaded by their names for the audit's command line, and the errors that their code raises."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluate.audit.certifier import Raised, Refused, told
from robustpatch.checkpoints import load_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.cli.import_by_name import named_object
from robustpatch.errors import InvalidInput


def load_named(text: str | None, what: str) -> Any:
    """The object of that name; a "target" is made where it is a class or a function. Raises `InvalidInput`."""
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
        cause = error.__cause__
        if isinstance(cause, Refused):
            cause = cause.__cause__
        elif not isinstance(error, Raised):
            cause = None
        if cause is not None and not isinstance(cause, InvalidInput):  # a refusal in one line says enough by itself
            text = "".join(traceback.format_exception(cause, chain=False))
            errors.print(text.rstrip(), soft_wrap=True)
        raise


def names_from_anywhere(target: str | None, factory: str | None) -> dict[str, Any]:
    """The certifier's names in a form that works from any folder: files by their full paths, and for modules the folder
    from which they were found.
    """
    modules = [text for text in (target, factory) if text and ":" in text and not _is_file(text)]
    folder = {"folder": str(Path.cwd())} if modules else {}
    return {"target": _full(target), "factory": _full(factory), **folder}


def _is_file(text: str) -> bool:
    return text.rpartition(":")[0].endswith(".py")


def _full(text: str | None) -> str | None:
    if text is None:
        return None
    where, _, name = text.rpartition(":")
    if _is_file(text):
        return f"{os.path.realpath(os.path.expanduser(where))}:{name}"
    return os.path.realpath(text) if ":" not in text and os.path.isfile(text) else text
