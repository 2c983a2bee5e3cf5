"""The configuration of a leaderboard: one TOML file, the whole board first, a table [[defense]] for each row."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from evaluate.cli.options import Options
from robustpatch.cli.text import one_line, slug
from robustpatch.errors import InvalidInput
from robustpatch.storage.toml import read_toml

_MODEL = ("checkpoint", "model", "defense", "theta", "voting", "guard", "randomized", "alpha", "samples")
_BOARD = (
    "dataset",
    "data_root",
    "image_size",
    "channels",
    "classes",
    "skip_broken",
    "patch",
)  # one and the same for all rows
_RUN = ("num_images", "attacks", "steps", "budget", "certified_budget", "batch_size", "seed", "device", "dtype")
_COUNTS = ("attacked_images", "timed_images")
_WORDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Entry:
    """One row: what it is called, the run it takes (`evaluate.attack_vs_cert`'s options), and what is known of it.

    `attacked_images` of the first images are attacked, `timed_images` are timed. `recipe` and `run`: the file that
    trains it, and which of its runs. `published`: clean and certified accuracy in percent, from `source`; None where
    not given. `train`: the command that trains it, of one without a recipe.
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

    @property
    def folder(self) -> str:
        """What its results are kept under."""
        return slug(re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-"))

    @property
    def retrain(self) -> str | None:
        """The command that trains it again."""
        if self.recipe is None:
            return self.train
        only = "" if self.run is None else f" --only {self.run}"
        return f"python -m robustpatch.recipe {self.recipe}{only} --output runs/train --dataset {self.options.dataset}"


@dataclass(frozen=True)
class Board:
    """All rows, on the same images and against the same patch."""

    title: str
    entries: tuple[Entry, ...]


def board_path(name: str) -> Path:
    """The file of that name, or the package's. Raises `InvalidInput`."""
    folder = Path(str(resources.files("evaluate.leaderboard")))
    shipped = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    path = shipped.get(name, Path(name).expanduser())
    if not path.is_file():
        raise InvalidInput(f"board is {name!r}, neither a file nor one of: {', '.join(shipped)}")
    return path


def read_board(path: str | Path, **instead: Any) -> Board:
    """The board that a TOML file describes; `instead` replaces values of the whole board, None leaves them.

    Of the whole board: title, dataset, data_root, image_size, channels, classes, skip_broken, patch. Of the board or of
    a row: num_images (0: all), attacked_images (0: none is attacked), timed_images, attacks, steps, budget,
    certified_budget, batch_size, seed, device, dtype. Of a row: name, checkpoint or model, defense, theta, voting,
    guard, randomized, alpha, samples, recipe and run, or train, published, source. Raises `InvalidInput`, before
    anything is loaded.
    """
    try:
        given = read_toml(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"board is {path}, which cannot be read as TOML ({one_line(error, 200)})") from error
    given |= {name: value for name, value in instead.items() if value is not None}
    rows = given.pop("defense", [])
    _refuse_unknown(path, "the board", given.keys() - {"title"}, (*_BOARD, *_RUN, *_COUNTS))
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidInput(f"board {path} has no rows; give a table [[defense]] for each")
    entries = tuple(_entry(path, given, row) for row in rows)
    for names in ([entry.name for entry in entries], [entry.folder for entry in entries]):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidInput(f"board {path} has two rows called {twice!r}; let each have a name of its own")
    return Board(str(given.get("title", "Leaderboard")), entries)


def _entry(path: str | Path, board: dict[str, Any], row: dict[str, Any]) -> Entry:
    name = row.get("name")
    if not isinstance(name, str) or not name.strip() or "," in name:
        raise InvalidInput(f"board {path}: name is {name!r}; every row needs one, without commas for --only to part")
    own = ("name", "recipe", "run", "train", "published", "source")
    _refuse_unknown(path, f"row {name}", row.keys(), (*own, *_MODEL, *_RUN, *_COUNTS))
    if ("checkpoint" in row) == ("model" in row):
        raise InvalidInput(f"board {path}, row {name}: name a checkpoint, or a model of your own, FILE.py:NAME")
    values = {"num_images": 0, "attacked_images": 500, "timed_images": 200, **board, **row}
    options = {key: values[key] for key in (*_MODEL, *_BOARD, *_RUN) if key in values}
    kinds = {own.name: own.default for own in fields(Options)}
    for key, value in options.items():
        _check(path, name, key, value, kinds[key])
    for key in _COUNTS:
        if not isinstance(values[key], int) or isinstance(values[key], bool) or values[key] < (key == "timed_images"):
            raise InvalidInput(f"board {path}, row {name}: {key} is {values[key]!r}; give a number of images")
    if "data_root" in options:
        options["data_root"] = Path(options["data_root"])
    return Entry(
        name,
        Options(**options),
        values["attacked_images"],
        values["timed_images"],
        row.get("recipe"),
        row.get("run"),
        row.get("train"),
        _published(path, name, row.get("published")),
        row.get("source"),
    )


def _refuse_unknown(path: str | Path, where: str, given: Any, known: tuple[str, ...]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidInput(f"board {path}: {where} has {', '.join(unknown)}; known are {', '.join(known)}")


def _check(path: str | Path, name: str, key: str, value: Any, default: Any) -> None:
    if default is None:
        kind: Any = {"theta": float, "guard": float, "alpha": float}.get(key, int)
        kind = str if key in ("model", "defense", "voting", "data_root", "image_size", "classes") else kind
    else:
        kind = type(default)
    wanted = (int, float) if kind is float else kind
    if key == "data_root":
        wanted = (str, Path)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise InvalidInput(f"board {path}, row {name}: {key} is {value!r}; {_WORDS[kind]} is needed")


def _published(path: str | Path, name: str, given: Any) -> tuple[float | None, float | None] | None:
    if given is None:
        return None
    fits = isinstance(given, dict) and given.keys() <= {"clean", "certified"}
    if not fits or not all(isinstance(value, int | float) and 0 <= value <= 100 for value in given.values()):
        raise InvalidInput(
            f"board {path}, row {name}: published is {given!r}; write {{ clean = 96.66, certified = 52.83 }}, "
            "in percent"
        )
    return given.get("clean"), given.get("certified")
