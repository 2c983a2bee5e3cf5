"""Text that others wrote - names, file contents, messages of libraries - made fit to be shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from hashlib import sha256

_MOST = 2_000  # characters of one message
_MARKS = re.compile(r"([\\`*_\[\]<>|~$]|&(?=[#A-Za-z]))")  # what Markdown or HTML inside it would obey
LONGEST_SLUG = 100


def one_line(text: object, most: int = _MOST) -> str:
    """The text on one line, at most `most` characters: white space becomes single spaces, and each character that a
    terminal or a page would obey and not show (escapes, changes of direction, halves of a character) its code.
    """
    line = visible(" ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def visible(text: str) -> str:
    """The text with the code of each character that would be obeyed and not shown, but for ends of lines."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode("ascii") for one in text
    )


def why_no_text(text: str) -> str | None:
    """Say why the text cannot be written as UTF-8, and what to do about it; None where it can.

    Python stands halves of characters in for the bytes of a file's name that are no text in the locale's encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"no text in {sys.getfilesystemencoding()}; rename it, or set PYTHONUTF8=1 if it is text in UTF-8"
    return None


def markdown(text: object) -> str:
    """The text as Markdown that means itself: no mark-up, HTML or formula, and on one line."""
    return _MARKS.sub(r"\\\1", one_line(text))


def some_of(numbers: Sequence[int], most: int = 8) -> str:
    """The first of the numbers, with a sign that there are more."""
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")


def counted(number: int, what: str, many: str | None = None) -> str:
    """The number and what it counts: "1 image", "2,000 images". `many`: the plural, where "s" does not make it."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def code_block(lines: Iterable[str]) -> str:
    """The lines as a block of code in Markdown that none of them ends."""
    return "\n".join(["```", *(visible(line).replace("```", "'''") for line in lines), "```"])


def file_name(patch: str) -> str:
    """The text of a threat as part of a file's name, "of" for the star: as it is where any file system takes it, else a
    slug with a checksum, so that it names no other folder and two texts no one file.
    """
    plain = patch.replace("*", "of")
    if re.fullmatch(r"[A-Za-z0-9.%,@-]{1,60}", plain):
        return plain
    return f"{slug(plain)[:40]}-{sha256(patch.encode()).hexdigest()[:8]}"


def slug(text: str) -> str:
    """A name after `text` that a file or folder can have on any system: letters, digits, ".", "_" and "-", so that none
    is hidden or above where it belongs; at most `LONGEST_SLUG` characters, and never nothing. A slug is its own.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:LONGEST_SLUG].rstrip("-.")
    return plain or "unnamed"
