"""TOML files that users write, and send to one another."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from stat import S_ISREG
from typing import Any

MOST_BYTES = 2**22


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file in UTF-8. Raises `OSError` or `ValueError` for any other: for one that is no regular
    file, too large, or nested too deeply.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
