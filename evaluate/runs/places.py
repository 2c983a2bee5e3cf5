"""Where a command may put its results."""

from __future__ import annotations

from pathlib import Path

from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store

_FLEETING = ("memory://",)


def place_of(output: str | Path) -> Store:
    """The store of that name. Raises `InvalidInput` where fsspec does not know it, and for memory: what a command puts
    there is gone when it ends.
    """
    if str(output).startswith(_FLEETING):
        raise InvalidInput(
            f"output is {output}, which is gone when the command ends; name a folder, s3://… or the like"
        )
    return Store(output)
