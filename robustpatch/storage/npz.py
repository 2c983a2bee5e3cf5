"""Arrays of a numpy archive that nobody vouches for: sizes are known and bounded before anything is decompressed.

Only what `numpy.savez` writes of plain arrays is read: one stored or deflated member NAME.npy for each array, little
endian booleans and numbers in C order. Headers are matched, not evaluated; nothing is unpickled. Needs numpy alone.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

import numpy as np

MOST_BYTES = 2**29  # of one array
_MOST_DIRECTORY = 2**16  # of the table of contents of an archive whose names are known: eight members need 600
_MOST_FILES = 2**12  # of an archive of whole files
_MOST_MEMBERS = 2**17  # of one whose names are not known; a byte of a table of contents is some 1/60 of a member
_HEADER = re.compile(
    rb"\{'descr': '(\|b1|\|u1|<i2|<i4|<i8|<f4|<f8)', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,18},|[0-9]{1,18}(?:, [0-9]{1,18})+)?)\), \} *\n"
)
_START, _MAGIC, _END, _END_64 = b"PK\3\4", b"\x93NUMPY\x01\x00", b"PK\5\6", b"PK\6\7"

ANY = -1  # number of dimensions
Spec = Mapping[str, int]  # the types that an array may have, as numpy writes them ("<i8"), and its dimensions if so


def read_arrays(
    path: str | Path | bytes, wanted: Mapping[str, Spec], *optional: Mapping[str, Spec]
) -> dict[str, np.ndarray]:
    """The arrays, in a file or its bytes, of exactly the names in `wanted`, each of a type and a number of dimensions
    that it may have; and of each group in `optional`, of which all are there or none.

    Memory and time are bounded by `MOST_BYTES` an array, whatever the file claims to hold. Raises `ValueError`, or
    whatever `zipfile` and `zlib` raise, for any other file: one line that names the member.
    """
    with opened(path) as (raw, size):
        _check_directory(raw, size, _MOST_DIRECTORY)
        with zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
            names = sorted(member.filename for member in members)
            for group in optional:
                if any(f"{name}.npy" in names for name in group):
                    wanted = {**wanted, **group}
            if names != sorted(f"{name}.npy" for name in wanted):
                raise ValueError(
                    f"it holds {', '.join(map(repr, names[:12])) or 'nothing'}; exactly {', '.join(wanted)} are needed"
                )
            by_name = {member.filename.removesuffix(".npy"): member for member in members}
            return {name: _array(archive, by_name[name], spec) for name, spec in wanted.items()}


def read_all_arrays(content: bytes, spec: Spec, most: int) -> dict[str, np.ndarray]:
    """All arrays of an archive by name, each of a type and a number of dimensions that `spec` allows; all together have
    at most `most` bytes. Raises as `read_arrays`.
    """
    raw = BytesIO(content)
    _check_directory(raw, len(content), 64 * _MOST_MEMBERS)
    with zipfile.ZipFile(raw) as archive:
        members, found, left = archive.infolist(), dict[str, np.ndarray](), most
        if len({member.filename for member in members}) < len(members):
            raise ValueError("it holds two members of one name")
        for member in members:
            left -= member.file_size
            if left < 0:
                raise ValueError(f"its arrays are said to have more than {most:,} bytes")
            found[member.filename.removesuffix(".npy")] = _array(archive, member, spec)
        return found


@contextmanager
def opened(path: str | Path | bytes) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, or bytes as one, and its size. Raises `ValueError` for what is no regular file."""
    if isinstance(path, bytes):
        yield BytesIO(path), len(path)
        return
    with open(path, "rb") as raw:
        found = os.fstat(raw.fileno())
        if not S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        yield raw, found.st_size


def read_members(path: str | Path | bytes, most: int) -> dict[str, bytes]:
    """The content of all members of an archive, by name: at most 4,096, of at most `most` bytes together, stored or
    deflated. Raises as `read_arrays`.
    """
    with opened(path) as (raw, size):
        _check_directory(raw, size, 2**10 * _MOST_FILES)
        with zipfile.ZipFile(raw) as archive:
            members, found, left = archive.infolist(), dict[str, bytes](), most
            if len({member.filename for member in members}) < len(members) or len(members) > _MOST_FILES:
                raise ValueError(f"it holds two members of one name, or more than {_MOST_FILES}")
            for member in members:
                left -= member.file_size
                if left < 0:
                    raise ValueError(f"its members are said to have more than {most:,} bytes")
                if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{member.filename[:80]!r} is encrypted, or compressed in another way")
                with archive.open(member) as stream:
                    content = stream.read(member.file_size)
                    if len(content) != member.file_size or stream.read(1):
                        raise ValueError(f"{member.filename[:80]!r} does not have the bytes that it is said to have")
                found[member.filename] = content
            return found


def _check_directory(raw: BinaryIO, size: int, most: int) -> None:
    """Refuse an archive whose table of contents `zipfile` would have to read at length, before it does."""
    start = raw.read(4)
    raw.seek(max(0, size - 42))
    tail = raw.read(42)
    if start != _START or len(tail) < 42 or tail[20:24] != _END or tail[40:] != b"\0\0":
        raise ValueError("it is no whole numpy archive")
    if tail[:4] == _END_64 or int.from_bytes(tail[32:36], "little") > most:
        raise ValueError("its table of contents is larger than any that is written here")
    raw.seek(0)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, spec: Spec) -> np.ndarray:
    name = member.filename
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is encrypted, or compressed in another way than numpy does")
    with archive.open(member) as stream:
        start = stream.read(len(_MAGIC) + 2)
        header = stream.read(int.from_bytes(start[len(_MAGIC) :], "little")) if start.startswith(_MAGIC) else b""
        known = _HEADER.fullmatch(header)
        if known is None:
            raise ValueError(
                f"{name} has no header of plain booleans or numbers: {header[:80]!r}; anything else is not read"
            )
        kind, order, sides = (part.decode() for part in known.groups())
        shape = tuple(int(side) for side in sides.split(",") if side)
        if order != "False" or spec.get(kind) not in (len(shape), ANY):
            needed = " or ".join(f"{one} with {'any' if number == ANY else number}" for one, number in spec.items())
            raise ValueError(
                f"{name} has type {kind} and shape {list(shape)}, Fortran order {order}; type {needed} dimensions, in "
                "C order, is needed"
            )
        number = prod(shape) * np.dtype(kind).itemsize
        if number > MOST_BYTES:
            raise ValueError(f"{name} is said to have {number} bytes; at most {MOST_BYTES} are read")
        if member.file_size != len(start) + len(header) + number:
            raise ValueError(f"{name} has {member.file_size} bytes, but its header says {number} and its own length")
        content = stream.read(number)
        if len(content) != number or stream.read(1):
            raise ValueError(f"{name} does not have the {number} bytes that its header says")
    if kind == "|b1" and content.translate(None, b"\0\1"):
        raise ValueError(f"{name} holds bytes other than 0 and 1, which are no booleans")
    return np.frombuffer(content, kind).reshape(shape)
