"""Where results go: a folder of this machine, or any place that fsspec can name (s3://…, gs://…, memory://…)."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from robustpatch.errors import InvalidInput


class Store:
    """Files under one root, named "records/0-50.parquet": each is there whole or not at all.

    A local file is written beside its place and moved into it; an object store shows an object when it is complete.
    Raises `InvalidInput` for a root that fsspec cannot open, and where something cannot be written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/") or "/"
        try:
            self._files, self._base = url_to_fs(self.root)
        except (ValueError, ImportError) as error:
            raise InvalidInput(f"output is {root}, which cannot be opened ({error}); name a folder") from error

    @classmethod
    def of(cls, root: str | Path | Store) -> Store:
        """A store as it is, or that of a folder."""
        return root if isinstance(root, Store) else cls(root)

    @property
    def local(self) -> Path | None:
        """The folder, where it is one of this machine."""
        return Path(self.root) if isinstance(self._files, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """What to call the file `name` in a message."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self._files.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        """The file's content. Raises `OSError` (`FileNotFoundError` where there is none)."""
        content = self._files.cat_file(self._at(name))
        assert isinstance(content, bytes)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put the file in its place, over what was there."""
        place = self._at(name)
        try:
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            if not isinstance(self._files, LocalFileSystem):
                self._files.pipe_file(place, content)
                return
            part = f"{place}.{uuid4().hex[:8]}.part"
            try:
                with open(part, "wb") as file:
                    file.write(content)
                os.replace(part, place)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InvalidInput(
                f"output is {self.root}, where {name} cannot be written ({error}); make room or name another output, "
                "and repeat the command: what is finished is kept"
            ) from error

    def remove(self, name: str) -> None:
        """Delete the file, if it is there."""
        if self.exists(name):
            self._files.rm_file(self._at(name))

    def names(self, folder: str, ending: str) -> list[str]:
        """The files right inside `folder` whose names end so, in order; none where there is no such folder."""
        try:
            found = self._files.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        names = (str(place).rstrip("/").rpartition("/")[2] for place in found)
        return sorted(f"{folder}/{name}" for name in names if name.endswith(ending))

    def _at(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    def __str__(self) -> str:
        return self.root
