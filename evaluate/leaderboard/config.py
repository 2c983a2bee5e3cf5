"""The configuration of a leaderboard: one TOML file, the whole board first, a table [[defense]] for each row."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from evaluate.cli.options import AttackOptions, ModelOptions, Options
from robustpatch.cli.text import one_line, slug
from robustpatch.data.images import DataOptions
from robustpatch.errors import InvalidInput
from robustpatch.options import Count, Whole, names_of, options, read, some_of, table_of
from robustpatch.storage.toml import read_toml


def _named(name: str) -> str:
    if not name.strip() or "," in name:
        raise InvalidInput(f"name is {name!r}; every row needs one, without commas for --only to part")
    return name


def _patches(given: Any) -> Any:
    several = given if isinstance(given, list | tuple) else [given]
    if not several or not all(isinstance(one, str) for one in several) or len(set(several)) < len(several):
        raise InvalidInput(f"patch is {given!r}; give a threat such as '5x5', or a list of different ones")
    return tuple(several)


_PERCENT = Annotated[float, Field(ge=0, le=100)]


@options
class _Counts(AttackOptions):
    """Settings of the whole board that a row may replace: all images are certified, the first of them attacked, against
    each patch.
    """

    patch: Annotated[Any, AfterValidator(_patches)] = ("5x5",)
    num_images: Whole = 0
    attacked_images: Whole = 500
    timed_images: Count = 200


@options
class _Whole(_Counts, DataOptions):
    """The whole board: one and the same images for all rows."""

    title: str = "Leaderboard"


@options
class _Row(_Counts, ModelOptions):
    """A table [[defense]]."""

    name: Annotated[str, AfterValidator(_named)]
    recipe: str | None = None
    run: str | None = None
    train: str | None = None
    published: Any = None
    source: str | None = None


@dataclass(frozen=True)
class Entry:
    """One row: what it is called, the run it takes (`evaluate.attack_vs_cert`'s options), and what is known of it.

    `several`: True where the row of this name stands once for each of several patches. `attacked_images` of the first
    images are attacked, `timed_images` are timed. `recipe` and `run`: the file that trains it, and which of its runs.
    `published`: clean and certified accuracy in percent, from `source`; None where not given. `train`: the command that
    trains it, of one without a recipe. `board`: the name of its board.
    """

    name: str
    options: Options
    attacked_images: int
    timed_images: int
    recipe: str | None = None
    run: str | None = None
    train: str | None = None
    published: tuple[float | None, float | None] | None = None
    source: str | None = None
    several: bool = False
    board: str = ""

    @property
    def called(self) -> str:
        """Its name, with the patch where several are tried."""
        return f"{self.name}, {self.options.patch}" if self.several else self.name

    @property
    def folder(self) -> str:
        """The name of the folder of its results."""
        return slug(re.sub(r"[^a-z0-9]+", "-", self.called.lower()).strip("-"))

    @property
    def command(self) -> str:
        """The command that makes the row again; DIR stands for the folder of the images."""
        words = ["robustpatch", "leaderboard", self.board, "--only", self.name]
        words += ["--dataset", self.options.dataset]
        return shlex.join(words) + ("" if self.options.data_root is None else " --data-root DIR")

    @property
    def retrain(self) -> str | None:
        """The command that trains it again."""
        if self.recipe is None:
            return self.train
        only = "" if self.run is None else f" --only {self.run}"
        return f"robustpatch recipe {self.recipe}{only} --output runs/train --dataset {self.options.dataset}"


@dataclass(frozen=True)
class Board:
    """All rows, on the same images."""

    title: str
    entries: tuple[Entry, ...]
    images: DataOptions


def _shipped() -> dict[str, Path]:
    folder = Path(str(resources.files("robustpatch.evaluate.leaderboard")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def board_path(name: str) -> Path:
    """The file of that name, or the package's. Raises `InvalidInput`."""
    shipped = _shipped()
    path = shipped.get(name, Path(os.path.expanduser(name)))
    if not os.path.isfile(path):
        raise InvalidInput(f"board is {name!r}, neither a file nor one of: {', '.join(shipped)}")
    return path


def read_board(path: str | Path, **instead: Any) -> Board:
    """The board that a TOML file describes; `instead` replaces values of the whole board, None leaves them.

    Of the whole board: title, dataset, data_root, image_size, channels, classes, skip_broken. Of the board or of a row:
    patch (a threat, or a list of them, each of which makes a row), num_images (0: all), attacked_images (0: none is
    attacked), timed_images, attacks, steps, budget, certified_budget, batch_size, seed, device, dtype. Of a row: name,
    checkpoint or model, defense, theta, voting, guard, randomized, alpha, samples, recipe and run, or train, published,
    source. Raises `InvalidInput`, before anything is loaded.
    """
    given = read_toml(path, "board") | {name: value for name, value in instead.items() if value is not None}
    rows = given.pop("defense", [])
    board = read(some_of(_Whole), given, f"board {path}: ")
    rows = read(_ROWS, {"defense": rows}, f"board {path}: [[defense]], a table each: ")["defense"]
    entries = tuple(entry for row in rows for entry in _entries(path, board, row))
    for names in ([entry.called for entry in entries], [entry.folder for entry in entries]):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidInput(f"board {path} has two rows called {twice!r}; let each have a name of its own")
    images = DataOptions(**{name: value for name, value in board.items() if name in names_of(DataOptions)})
    return Board(board.get("title", "Leaderboard"), entries, images)


_PUBLISHED = table_of({"published": table_of({"clean": _PERCENT, "certified": _PERCENT})})
_ROWS = table_of({"defense": Annotated[list[dict[str, Any]], Field(min_length=1)]})


def _entries(path: str | Path, board: dict[str, Any], given: dict[str, Any]) -> list[Entry]:
    """A table's rows, one for each patch."""
    where = f"board {path}: [[defense]] {one_line(given.get('name'), 100)}: "
    if ("checkpoint" in given) == ("model" in given):
        raise InvalidInput(f"{where}name a checkpoint, or a model of your own, FILE.py:NAME")
    shared = {name: value for name, value in board.items() if name in names_of(_Row)}
    row = read(_Row, {**shared, **given}, where)
    of_images = {name: value for name, value in board.items() if name in names_of(DataOptions)}
    name = next((stem for stem, own in _shipped().items() if own == Path(path)), str(path))
    of_row = {name: getattr(row, name) for name in (*names_of(ModelOptions), *names_of(AttackOptions))}
    published = None if row.published is None else read(_PUBLISHED, {"published": row.published}, where)["published"]
    return [
        Entry(
            row.name,
            Options(patch=patch, **of_images, **of_row),
            row.attacked_images,
            row.timed_images,
            row.recipe,
            row.run,
            row.train,
            None if published is None else (published.get("clean"), published.get("certified")),
            row.source,
            several=len(row.patch) > 1,
            board=name,
        )
        for patch in row.patch
    ]
