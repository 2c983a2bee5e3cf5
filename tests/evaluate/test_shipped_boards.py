"""The boards of the package can be read, and each row names a checkpoint and a recipe's run that exist."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from evaluate.leaderboard.config import board_path, read_board
from robustpatch.checkpoints import names
from robustpatch.recipe import load_recipe

ROOT = Path(__file__).parents[2]
FILES = [Path(entry.name) for entry in resources.files("evaluate.leaderboard").iterdir()]
BOARDS = sorted(file.stem for file in FILES if file.suffix == ".toml")


@pytest.mark.parametrize("board", BOARDS)
def test_a_shipped_board(board):
    for entry in read_board(board_path(board)).entries:
        assert entry.options.checkpoint in names()
        if entry.recipe is not None:
            runs = [run.name for run in load_recipe(ROOT / entry.recipe)]
            assert entry.run in runs if entry.run is not None else len(runs) == 1, entry.called
