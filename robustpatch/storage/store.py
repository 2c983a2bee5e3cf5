"""The place of results: a folder of this machine, or any place that fsspec can name (s3://…, gs://…, memory://…)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.locks import being_written, held, held_by_none_else, part_name, remove_leftovers

LEAST_ROOM = 2**22  # bytes that every command needs, for tables, pages and pictures
MOST_BYTES = 2**33  # of a file that is read: the state of a training holds its weights thrice


class Store:
    """Files under one root, named "records/0-50.parquet": each is there whole or not at all.

    A local file has no name, or a hidden one where the file system wants that, until it is whole; an object store shows
    an object when it is complete.
    Raises `InvalidInput` for a root that is empty or that fsspec cannot open, and where something cannot be written.
    """

    def __init__(self, root: str | Path) -> None:
        if not str(root).strip():
            raise InvalidInput("output is empty; name a folder, or . for the one that you are in")
        self.root = str(root).rstrip("/") or "/"
        try:
            self._files, self._base = url_to_fs(self.root)
        except (ValueError, ImportError) as error:
            raise InvalidInput(f"output is {root}, which cannot be opened ({error}); name a folder") from error
        if self.local is not None and any(len(os.fsencode(part)) > 255 for part in self.local.parts):
            raise InvalidInput(
                f"output is {one_line(self.root, 60)}, longer than any file's name; give parts of at most 255 bytes"
            )

    @classmethod
    def of(cls, root: str | Path | Store) -> Store:
        """A store as it is, or that of a folder."""
        return root if isinstance(root, Store) else cls(root)

    @property
    def local(self) -> Path | None:
        """The folder, where it is one of this machine."""
        return Path(self._base) if isinstance(self._files, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """Return what to call the file `name` in a message."""
        return f"{self.root}/{name}"

    def inside(self, folder: str) -> Store:
        """The store of a folder of this one."""
        return Store(f"{self.root.rstrip('/')}/{folder}")

    @contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Lock the folder while the block runs; see `locks.held`. An object store has no locks, and none is taken."""
        with ExitStack() as holding:
            if self.local is not None:
                try:
                    holding.enter_context(held(self.local, alone=alone))
                except (OSError, ValueError) as error:
                    raise self._cannot("a file", error) from error
            yield

    @property
    def others(self) -> bool:
        """True where another process may be at work here. It has to be `held` by this one."""
        return self.local is None or not held_by_none_else(self.local)

    def exists(self, name: str) -> bool:
        self._files.invalidate_cache()  # others write here too
        return bool(self._files.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        """The content. Raises `FileNotFoundError` where there is no such file, `InvalidInput` if it cannot be read or
        is larger than any that is written here.
        """
        try:
            size = self._files.info(self._at(name))["size"]
            if size is not None and size > MOST_BYTES:
                raise OSError(f"it has {size:,} bytes; at most {MOST_BYTES:,} are read")
            content = self._files.cat_file(self._at(name))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InvalidInput(
                f"output is {self.root}, where {name} cannot be read ({error}); see to that, and repeat the command"
            ) from error
        assert isinstance(content, bytes)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put the file in its place, over what was there."""
        self._put(name, content, over=True)

    def create(self, name: str, content: bytes) -> bool:
        """Put the file in its place unless there is one, and say whether it was put: of two that try, one does.

        So on this machine, where it knows hard links, and in object stores that put on a condition.
        """
        if self.exists(name):
            return False
        try:
            self._put(name, content, over=False)
        except FileExistsError:
            return False
        return True

    def check_writable(self, room: int = 0) -> None:
        """Raises `InvalidInput` where nothing can be written, or on this machine fewer bytes than `room` and
        `LEAST_ROOM`, before there is anything to lose.
        """
        room += LEAST_ROOM
        name = part_name()
        self.write(name, b"A file that was written to see whether it can be; delete it.")
        self.remove(name)
        free = None if self.local is None else shutil.disk_usage(self.local).free
        if free is not None and free < room:
            raise InvalidInput(
                f"output is {self.root}, where {free / 1e6:,.0f} MB are free and {room / 1e6:,.0f} may be needed; make "
                "room or name another output"
            )

    def remove(self, name: str) -> None:
        """Delete the file, if it is there."""
        try:
            if self.exists(name):
                with suppress(FileNotFoundError):  # somebody else has just done it
                    self._files.rm_file(self._at(name))
        except OSError as error:
            raise self._cannot(name, error) from error

    def names(self, folder: str, ending: str, *, depth: int | None = 1) -> list[str]:
        """The files inside `folder`, down to a depth (None: any), whose names end so, in order; none where there is no
        such folder.
        """
        self._files.invalidate_cache()
        found = (str(place) for place in self._files.find(self._at(folder), maxdepth=depth))
        return sorted(place.removeprefix(self._at("")) for place in found if place.endswith(ending))

    def _put(self, name: str, content: bytes, *, over: bool) -> None:
        place, local = self._at(name), self.local is not None
        failures = (OSError, ValueError) if local else Exception  # object stores raise what they like
        try:
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            if local:
                _put_locally(place, content, over=over)
            else:
                self._files.pipe_file(place, content, mode="overwrite" if over else "create")
        except failures as error:
            if isinstance(error, FileExistsError) and self.exists(name):  # not a file in a folder's place
                raise
            raise self._cannot(name, error) from error

    def _cannot(self, name: str, error: Exception) -> InvalidInput:
        return InvalidInput(
            f"output is {self.root}, where {name} cannot be written ({error}); make room or name another output, and "
            "repeat the command: what is finished is kept"
        )

    def _at(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    def __str__(self) -> str:
        return self.root


def local_folder(output: str | Path) -> Path:
    """The folder of that name, or of a file:// address. Raises `InvalidInput` for any other place."""
    folder = Store(output).local
    if folder is None:
        raise InvalidInput(f"output is {output}, but this command reads again by path what it keeps; name a folder")
    return folder


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a local file over what was there: it appears whole or not at all, even after a loss of power. Raises
    `OSError`.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    _put_locally(str(place), content, over=True)


_TRIES = 5
_looked_into: set[str] = set()  # folders in which this process has looked for leftovers


def _put_locally(place: str, content: bytes, *, over: bool) -> None:
    """On the disk first, then in its place, and the name on the disk, too; `over` what is there, or raise
    `FileExistsError`. What killed processes left half written beside it is removed.
    """
    folder = os.path.dirname(place) or "."
    key = os.path.realpath(folder)
    if key not in _looked_into:
        _looked_into.add(key)
        remove_leftovers(folder)
    try:
        _put_unnamed(folder, place, content, over)
    except FileExistsError:
        raise
    except OSError:  # no such files here; if it is for another reason, that is raised again
        _put_named(folder, place, content, over)
    _sync(folder)


def _put_unnamed(folder: str, place: str, content: bytes, over: bool) -> None:
    """Write a file that has no name until it is whole: when its writer is killed, nothing is left of it.

    To replace a file it takes a hidden name first, for no longer than it takes to rename it: no system call gives an
    unnamed file the name of another (see linkat(2)). Raises `OSError` where the system or the file system knows no
    unnamed files.
    """
    if not hasattr(os, "O_TMPFILE"):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    with open(descriptor, "wb") as file, being_written(descriptor):
        _fill(file, content)
        name_it = partial(os.link, f"/proc/self/fd/{descriptor}", src_dir_fd=descriptor, follow_symlinks=True)
        try:
            name_it(place)
        except FileExistsError:
            if not over:
                raise
            part = os.path.join(folder, part_name())
            try:
                name_it(part)
                os.replace(part, place)
            finally:
                Path(part).unlink(missing_ok=True)


def _put_named(folder: str, place: str, content: bytes, over: bool) -> None:
    """Write a file under a hidden name until it is whole."""
    for left in reversed(range(_TRIES)):
        part = os.path.join(folder, part_name())
        try:
            with ExitStack() as writing:
                with open(part, "wb") as file:
                    writing.enter_context(being_written(file.fileno()))
                    _fill(file, content)
                (os.replace if over else _link)(part, place)
            break
        except FileNotFoundError:  # taken for a leftover by another process, before it was locked
            if not left or not os.path.isdir(folder):
                raise
        finally:
            Path(part).unlink(missing_ok=True)


def _fill(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: str) -> None:
    with suppress(OSError):  # not every system opens folders, or syncs them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _link(part: str, place: str) -> None:
    """Move without replacing."""
    try:
        os.link(part, place)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.replace(part, place)
