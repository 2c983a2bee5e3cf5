"""Text that others wrote - names, file contents, messages of libraries - made fit to be shown."""

from __future__ import annotations

import re

_MOST = 2_000  # characters of one message
LONGEST_SLUG = 100


def one_line(text: object, most: int = _MOST) -> str:
    """The text on one line, at most `most` characters: white space becomes single spaces, and each character that a
    terminal or a page would obey and not show (escapes, changes of direction, halves of a character) its code.
    """
    line = " ".join(str(text).split())
    line = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def slug(text: str) -> str:
    """What a file or folder can be called after `text`, anywhere: letters, digits, ".", "_" and "-", so that none is
    hidden or above where it belongs; at most `LONGEST_SLUG` characters, and never nothing. A slug is its own.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:LONGEST_SLUG].rstrip("-.")
    return plain or "unnamed"
