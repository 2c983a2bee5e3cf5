"""JSON that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 2**24  # of a text: the longest that is written here, a training's history, has some hundred thousand


def read_json(content: str | bytes, most: int = MOST_BYTES) -> Any:
    """The value of a JSON text of at most `most` bytes. Raises `ValueError` for anything else: too long a text is not
    looked into, and one that is nested too deeply, holds numbers of thousands of digits or is not UTF-8 is refused.
    """
    if len(content) > most:
        raise ValueError(f"it has {len(content):,} bytes of JSON; at most {most:,} are read")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def read_object(content: str | bytes, most: int = MOST_BYTES) -> dict[str, Any]:
    """The same of an object {…}; any other value is refused with `ValueError`."""
    found = read_json(content, most)
    if not isinstance(found, dict):
        raise ValueError("its JSON is no object")
    return found
