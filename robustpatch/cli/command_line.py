"""Commands that answer a wrong call with one line on stderr and status 2."""

from __future__ import annotations

import codecs
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.options import check_value

WRONG_CALL = 2
_DASH = "robustpatch-dash"
codecs.register_error(_DASH, lambda error: ("-", error.end) if isinstance(error, UnicodeEncodeError) else ("", 0))
_Usage: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def refused(error: Exception) -> None:
    """Say why in one line, whatever the message holds: names and files of others are in it."""
    console = TextConsole(stderr=True)
    text = f"error: {one_line(error, 4_000)}"
    console.print(text, style="red", soft_wrap=True)


def show_what_can_be_shown() -> None:
    """A console that knows few characters (cp437, ascii) gets "-" for the others, no error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and (stream.encoding or "").lower().replace("-", "") != "utf8":
            reconfigure(errors=_DASH)


class Command(TyperCommand):
    """A command that refuses unknown options, missing ones and values of other types in one line, too."""

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        show_what_can_be_shown()
        try:
            context = super().make_context(*arguments, **extra)
            for name, value in context.params.items():
                check_value(name, value)
            return context
        except InvalidInput as error:
            refused(error)
            raise typer.Exit(WRONG_CALL) from None
        except _Usage as error:
            refused(ValueError(f"{error.format_message().rstrip('.')}; --help says what can be given"))  # type: ignore[attr-defined]
            raise typer.Exit(WRONG_CALL) from None
