"""Many defenses on the same images and against the same patch, side by side."""

from evaluate.leaderboard.config import Board, Entry, read_board
from evaluate.leaderboard.figure import draw
from evaluate.leaderboard.rows import Row, measure, plan
from evaluate.leaderboard.table import markdown, ordered, parquet

__all__ = ["Board", "Entry", "Row", "draw", "markdown", "measure", "ordered", "parquet", "plan", "read_board"]
