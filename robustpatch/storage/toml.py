"""TOML files that users write, and send to one another."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from stat import S_ISREG
from typing import Any

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput

MOST_BYTES = 2**22


def read_toml(path: str | Path, name: str) -> dict[str, Any]:
    """The tables of a TOML file in UTF-8. Raises `InvalidInput` for any other, calling it `name`: for one that is no
    regular file, too large, or nested too deeply.
    """
    try:
        with open(os.open(os.path.expanduser(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        return tomllib.loads(content.decode())
    except RecursionError:
        raise InvalidInput(f"{name} is {path}, which is nested too deeply for a TOML file; write it flat") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{name} is {path}, which cannot be read as TOML ({one_line(error, 200)})") from error


def as_toml(values: dict[str, Any]) -> str:
    """The values, texts, numbers and booleans, as lines of TOML."""
    lines = []
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"{name} = {_quoted(value) if isinstance(value, str) else text}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
