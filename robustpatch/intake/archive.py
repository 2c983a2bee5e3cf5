"""Zip archives that nobody vouches for: their members, read whole and bounded."""

from __future__ import annotations

import zipfile
from pathlib import Path

MOST_TEXT = 2**26  # bytes of code or JSON of one archive


def members(path: Path) -> dict[str, int] | None:
    """The size of each file of a zip archive, by its name below the archive's one folder; None where it is no archive.

    Raises `ValueError` for an archive that holds a name twice, of which two readers could see different files, and for
    one that unpacks to more than its own length and as much text: tensors lie in it as they are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [(name_in(info.filename), info.file_size) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError):
        return None
    if len({name for name, _ in found}) < len(found):
        raise ValueError("it holds two files of one name")
    unpacked, packed = sum(size for _, size in found), path.stat().st_size
    if unpacked > packed + MOST_TEXT:
        raise ValueError(f"it has {packed:,} bytes, and {unpacked:,} unpacked, where tensors are not compressed")
    return dict(found)


def name_in(filename: str) -> str:
    """The name without the archive's own folder."""
    return filename.partition("/")[2] or filename


def texts(path: Path, suffix: str) -> dict[str, str]:
    """The text of each file of that suffix. Raises `ValueError` where they are too long, or no text."""
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(suffix)]
        size = sum(info.file_size for info in infos)
        if size > MOST_TEXT:
            raise ValueError(f"it holds {size:,} bytes of text; at most {MOST_TEXT:,} are read")
        return {name_in(info.filename): archive.read(info).decode("utf-8") for info in infos}
