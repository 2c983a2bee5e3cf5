"""A folder of classes: which pictures lie in it, and which of them cannot be used, known before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from robustpatch.cli.text import one_line
from robustpatch.data.pictures import EXTENSIONS, Unreadable, look, picture

_DECODED = 2**25  # pixels that are decoded, of so many files, spread evenly, as have them; it takes about a second
_NAMED = 10  # files that a refusal names


@dataclass
class Folder:
    """`classes` in alphabetical order, `files` (path, number of the class) by class and path, the height and width that
    they share (None: they need none), and why each of the `broken` cannot be used.
    """

    classes: list[str]
    files: list[tuple[Path, int]]
    size: tuple[int, int] | None
    broken: dict[Path, str] = field(default_factory=dict)
    undecoded: int = 0  # files of which the header was read, and the end of PNG and JPEG, but not what is between

    @property
    def what_was_not_decoded(self) -> str | None:
        """Counts the files that were not decoded, and says what that means; None where all were."""
        if not self.undecoded:
            return None
        return (
            f"{self.undecoded:,} of {len(self.broken) + len(self.files):,} pictures were not decoded beforehand, only "
            "their headers and ends were read; one that cannot be decoded ends the run when its turn comes"
        )

    def what_is_broken(self, root: Path) -> str:
        """Counts the files that cannot be used, and the reasons of the first ten, by their names in `root`."""
        named = [f"{path.relative_to(root)} ({reason})" for path, reason in [*self.broken.items()][:_NAMED]]
        more = [f"and {len(self.broken) - _NAMED} more"] if len(self.broken) > _NAMED else []
        number = len(self.broken) + len(self.files)
        return one_line(f"{len(self.broken)} of {number} pictures cannot be used: {'; '.join([*named, *more])}", 4_000)


def look_into(root: Path, *, resized: bool) -> Folder:
    """Every picture of `root`/CLASS/, at any depth; hidden files and folders (.ipynb_checkpoints, ._0.png) are passed
    over, and so are files that are not called like pictures. Unless they are to be `resized`, all have the size of the
    first that can be read. Raises `OSError` where there is no such folder.
    """
    classes = classes_in(root)
    found, broken = list[tuple[Path, int]](), dict[Path, str]()
    for number, name in enumerate(classes):
        for path in _walk(root / name, (), broken):
            found.append((path, number))
    sizes: dict[Path, tuple[int, int]] = {}
    for path, _ in found:
        try:
            sizes[path] = look(path)
        except Unreadable as error:
            broken[path] = str(error)
    looked_at = len(sizes)
    some = list(sizes)[:: max(1, -(-sum(height * width for height, width in sizes.values()) // _DECODED))]
    for path in some:
        try:
            picture(path, 3)
        except Unreadable as error:
            broken[path] = str(error)
            del sizes[path]
    size = None if resized else next(iter(sizes.values()), None)
    for path, own in sizes.items():
        if size is not None and own != size:
            broken[path] = f"{own[0]}x{own[1]} pixels, the first has {size[0]}x{size[1]}"
    files = [one for one in found if one[0] not in broken]
    return Folder(classes, files, size, dict(sorted(broken.items())), looked_at - len(some))


def classes_in(root: Path) -> list[str]:
    """The names of the classes of a folder, in alphabetical order."""
    return sorted(entry.name for entry in os.scandir(root) if _is_class(entry))


def _is_class(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _walk(folder: Path, above: tuple[tuple[int, int], ...], broken: dict[Path, str]) -> Iterator[Path]:
    """The files below that are called like pictures, in order; a folder inside itself, by a link, is broken."""
    try:
        about = folder.stat()
        here = (about.st_dev, about.st_ino)
        if here in above:
            raise OSError("a link that leads back to a folder it is in")
        inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        broken[folder] = one_line(error.strerror or error)
        return
    for entry in inside:
        if entry.name.startswith("."):
            continue
        if _is_class(entry):
            yield from _walk(folder / entry.name, (*above, here), broken)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield folder / entry.name
