"""Many defenses on the same images and against the same patch, side by side."""

from evaluate.leaderboard.config import Board, Entry, read_board
from evaluate.leaderboard.figure import draw
from evaluate.leaderboard.rows import Row, measure, plan
from evaluate.leaderboard.table import markdown, ordered, write_parquet

__all__ = ["Board", "Entry", "Row", "draw", "markdown", "measure", "ordered", "plan", "read_board", "write_parquet"]
