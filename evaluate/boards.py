"""python -m evaluate.boards BOARD...: several boards on one page, to sort and filter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from evaluate.cli.command import HELD, takes
from evaluate.leaderboard.page import TASKS, Listed, page
from evaluate.results.metrics import Share
from evaluate.runs.output import folder_of, place_of, writing
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.errors import InvalidInput
from robustpatch.options import OPEN, Count, Whole, read, table_of
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
BUNDLE = "bundle.zip"  # beside the records of a row
_TEXTS = ("name", "dataset", "patch", "task", "verdict", "command", "report")
_SHARES = ("clean", "certified", "detected", "false_alerts", "empirical", "certified_of_attacked")
_NUMBERS = ("published_clean", "published_certified", "speed_predict", "speed_certify", "train_seconds")
_KEPT = table_of(
    dict.fromkeys(_TEXTS, str)
    | dict.fromkeys(("attacks", "source"), str | None)
    | dict.fromkeys((*_SHARES, *_NUMBERS), float | None)
    | {"images": Count, "attacked_images": Whole | None},
    OPEN,
)


def read_boards(outputs: Sequence[str], place: str) -> list[Listed]:
    """The rows of finished boards, their links as seen from the folder `place`. Raises `InvalidInput`."""
    return [row for output in outputs for row in _rows(output, place)]


def _rows(output: str, place: str) -> list[Listed]:
    store = place_of(output)
    try:
        content = read_object(store.read("leaderboard.json"))
        title, rows = str(content["title"]), list(content["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"board {output} holds no leaderboard.json ({error!r}); name an --output of robustpatch leaderboard"
        ) from error
    return [_row(title, output, store, place, row) for row in rows]


def _row(title: str, output: str, store: Store, place: str, given: Any) -> Listed:
    where = f"board {output}: "
    row: dict[str, Any] = read(_KEPT, given if isinstance(given, dict) else {}, where)
    missing = [name for name in (*_TEXTS, "clean", "images") if row.get(name) is None]
    if missing or row["task"] not in TASKS:
        raise InvalidInput(f"{where}a row has no {', '.join(missing) or 'known task'}; repeat the board's command")

    def share(name: str, of: str) -> Share | None:
        value, total = row.get(name), row.get(of)
        return None if value is None or not total else Share(min(total, max(0, round(value * total))), total)

    clean = share("clean", "images")
    assert clean is not None
    folder = row["report"].rpartition("/")[0]
    beside = {"report": row["report"], "proof bundle": f"{folder}/{BUNDLE}"}
    return Listed(
        title,
        **{name: row[name] for name in ("name", "dataset", "patch", "task", "verdict", "command")},
        clean=clean,
        certified=share("detected" if row["task"] == "detection" else "certified", "images"),
        false_alerts=share("false_alerts", "images"),
        attacked=share("empirical", "attacked_images"),
        certified_of_attacked=share("certified_of_attacked", "attacked_images"),
        attacks=row.get("attacks"),
        published=(row.get("published_clean"), row.get("published_certified")),
        source=row.get("source"),
        predict=row.get("speed_predict"),
        certify=row.get("speed_certify"),
        train_seconds=row.get("train_seconds"),
        links={what: _seen_from(place, store, name) for what, name in beside.items() if store.exists(name)},
    )


def _seen_from(place: str, store: Store, name: str) -> str:
    """The address of a file of a board for a page in the folder `place`: relative where both are folders here."""
    here = place_of(place)
    if here.root == store.root:
        return f"./{name}"
    if here.local is None or store.local is None:
        return store.path(name)
    return "./" + os.path.relpath(store.local / name, here.local).replace(os.sep, "/")


@app.command(cls=Command)
@takes
def main(
    boards: Annotated[list[str], typer.Argument(help="Outputs of robustpatch leaderboard, of any data sets.")],
    output: Annotated[str, typer.Option(help="The page, NAME.html.")] = "boards.html",
) -> int:
    """Put the rows of finished boards on one page, to sort and filter.

    Exit status 0: written, whatever the verdicts. 2: wrong call. 3: internal error.
    """
    if not output.endswith(".html"):
        raise InvalidInput(f"output is {output}; let it end in .html")
    with writing(folder_of(output)) as store:
        rows = read_boards(boards, folder_of(output))
        store.write(output.rpartition("/")[2], page(rows).encode())
    TextConsole().print(f"{len(rows)} rows in {output}", soft_wrap=True)
    return HELD


if __name__ == "__main__":
    app()
