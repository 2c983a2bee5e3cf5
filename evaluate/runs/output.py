"""The output of a command: the places that it may be, and the room that it needs there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store


def place_of(output: str | Path) -> Store:
    """The store of that name. Raises `InvalidInput` where fsspec does not know it, and for memory: what a command puts
    there is gone when it ends.
    """
    if str(output).startswith("memory://"):
        raise InvalidInput(
            f"output is {output}, which is gone when the command ends; name a folder, s3://… or the like"
        )
    return Store(output)


def folder_of(path: str | Path) -> str:
    """The folder of a file, or of a place that fsspec knows."""
    folder, slash, _ = str(path).rpartition("/")
    return folder or slash or "."


@contextmanager
def writing(output: str | Path, *, alone: bool = False, room: int = 0) -> Iterator[Store]:
    """The place `output`, found to be one where `room` bytes can be written before the block does any work, and held
    while it runs (`Store.held`). Nothing is left of it where the block writes nothing. Raises `InvalidInput`.
    """
    store = place_of(output)
    with store.held(alone=alone):
        store.check_writable(room)
        yield store


def room_of_run(images: int, attacks: int, shape: Sequence[int], shown: int) -> int:
    """Bytes that a run of `evaluate.attack_vs_cert` may write, at most some two times what it does: records of its
    images, and of each image `shown` its pictures and maps, twice: in exhibits and in the report's page.
    """
    channels, height, width = shape
    picture = min(height, 128) * min(width, 128)  # as `evaluate.runs.gallery` makes them smaller
    return images * (2**9 + attacks * 2**9) + min(shown, images) * 2 * (3 * channels + 4 * 2) * picture


def room_of_sweep(images: int, rules: int, columns: int) -> int:
    """Bytes of the rows of a sweep: one for each image under each rule of each checkpoint."""
    return images * rules * columns * 8
