"""python -m evaluate.leaderboard BOARD: which defense to take, from one file and one command."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Console

from evaluate.boards import read_boards
from evaluate.cli.command import BROKEN, HELD, circumstances, showing, takes
from evaluate.leaderboard.config import Board, board_path, read_board
from evaluate.leaderboard.figure import draw
from evaluate.leaderboard.page import page
from evaluate.leaderboard.rows import GALLERY, Row, measure, plan
from evaluate.leaderboard.table import as_dicts, markdown, parquet, table
from evaluate.leaderboard.table import ordered as ranking
from evaluate.report.write import write_report
from evaluate.results.drawing import write_figure
from evaluate.runs.output import room_of_run, writing
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.data.images import DataRoot, Dataset
from robustpatch.options import options as checked
from robustpatch.precision import check_device
from robustpatch.storage.store import Store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@checked
class LeaderboardOptions:
    """A board, and what the command line says instead of it."""

    board: Annotated[
        str, typer.Argument(help="A TOML file, or one of the package: mnist, cifar10, signs, imagenette, stickers.")
    ]
    output: Annotated[
        str | None, typer.Option(help="Folder of records, table and picture; a killed run is resumed."), "runs/BOARD"
    ] = None
    dataset: Annotated[Dataset | None, "the board's"] = None
    data_root: Annotated[DataRoot | None, "the board's"] = None
    only: Annotated[shared.Only | None, "all"] = None
    device: Annotated[shared.Device | None, "the board's"] = None


@app.command(cls=Command)
@takes
def main(options: LeaderboardOptions, errors: Console) -> int:
    """Certify, attack and time every defense of a board; write leaderboard.html, .md, .parquet and .png.

    Exit status 0: no certificate was broken. 1: a certified prediction was changed. 2: wrong call. 3: internal error.
    """
    path = board_path(options.board)
    read = read_board(path, dataset=options.dataset, data_root=options.data_root, device=options.device)
    wanted = shared.chosen(options.only, [entry.name for entry in read.entries], "the board")
    entries = [entry for entry in read.entries if entry.name in wanted]
    around = circumstances(check_device(entries[0].options.device))
    images = read.images.load()
    planned = [plan(entry, images) for entry in entries]  # all of them refused, or none, before any work
    total = sum(one.settings.num_images + one.entry.attacked_images for one in planned)
    rows: list[Row] = []
    with ExitStack() as open_until_written:
        place = f"runs/{path.stem}" if options.output is None else options.output
        room = room_of_run(total, 8, images.image_shape, 10 * GALLERY * len(planned))  # of up to eight attacks
        store = open_until_written.enter_context(writing(place, alone=True, room=room))
        with showing(errors, total, notes=images.notes) as on_progress:
            done = 0
            for one in planned:
                rows.append(measure(one, images, store, lambda more, what, at=done: on_progress(at + more, what)))
                done += one.settings.num_images + one.entry.attacked_images
        _write(read, rows, store, around)
    console = TextConsole()
    console.print(table(ranking(rows)).terminal(read.title))
    console.print(f"leaderboard.html, .md, .parquet, .png and .json in {store}", soft_wrap=True)
    return BROKEN if any(row.broken for row in rows) else HELD


def _write(board: Board, rows: list[Row], store: Store, around: dict[str, object]) -> None:
    content = {"title": board.title, "rows": as_dicts(rows), **around}
    store.write("leaderboard.md", markdown(board.title, rows).encode())
    store.write("leaderboard.parquet", parquet(rows))
    write_figure(store, "leaderboard.png", draw(board.title, rows), dpi=150)
    store.write("leaderboard.json", json.dumps(content, indent=1).encode())
    for row in rows:
        write_report(store.inside(row.records))
    place = str(store)
    store.write("leaderboard.html", page(read_boards([place], place), board.title).encode())


if __name__ == "__main__":
    app()
