"""The boards of the package can be read, and each row names a checkpoint and a recipe's run that exist."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch

from evaluate.leaderboard.config import board_path, read_board
from evaluate.model.load import load_model
from robustpatch.checkpoints import names
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.recipe import load_recipe
from robustpatch.threats import parse_threat

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


@pytest.mark.parametrize("board", BOARDS)
def test_a_defense_of_a_row_can_certify_its_patch(board):
    """Masks and windows are made for one patch: a row that names others is refused before the whole board is."""
    for entry in read_board(board_path(board)).entries:
        if entry.options.defense is None:
            continue
        loaded = load_model(str(entry.options.checkpoint), defense=entry.options.defense)
        classifier, shape = as_classifier(loaded.model), loaded.config["image_shape"]
        if isinstance(classifier, CertifiedClassifier):
            x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
            assert len(classifier.certify(x, parse_threat(entry.options.patch, shape[1:])).certified) == 1
