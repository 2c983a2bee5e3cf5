"""python -m evaluate.court.board: what published rules certify, printed and repaired, on MNIST by the shipped columns.

All rules get the same answers of the same network (mnist-columns2, bands of two columns) for the whole test set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from evaluate.cli.command import HELD, takes
from evaluate.court.art_votes import EveryRival, KthValue
from evaluate.court.levine_feizi import ColumnSmoothing
from evaluate.court.masked_ds import MaskedColumns, Wrapping
from evaluate.court.masked_ds_threshold import Across, NotAcross
from evaluate.court.randomized_columns import ByWidth, RandomizedColumns
from evaluate.court.robust_masking import exact
from evaluate.court.smoothed_vit import Counted, StridedColumns
from evaluate.results.table import Column, Table
from robustpatch.checkpoints import load_checkpoint
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.data.images import DataRoot, named_images
from robustpatch.threats.rectangle import PatchThreat

NETWORK, SIDE, CHUNK = "mnist-columns2", 5, 250
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _Uncorrected(Wrapping):
    """Masked DS with a threshold before the correction of December 2021."""

    threshold, corrected = NotAcross.threshold, False


Row = tuple[str, str, int, int, int]  # rule, form, images predicted right, of these certified, certified otherwise
RULES: tuple[tuple[str, str, type[Any]], ...] = (
    ("columns (Levine & Feizi)", "printed", ColumnSmoothing),
    ("ART's vote rule", "printed", KthValue),
    ("ART's vote rule", "repaired", EveryRival),
    ("smoothed ViT's formula, stride 3, top-1", "printed", StridedColumns),
    ("smoothed ViT's formula, stride 3, top-1", "repaired", Counted),
    ("randomized columns, all of them", "printed", RandomizedColumns),
    ("randomized columns, all of them", "repaired", ByWidth),
    ("masked DS, windows", "printed", MaskedColumns),
    ("masked DS, windows", "repaired", Wrapping),
    ("masked DS, threshold 0.5", "before December 2021", _Uncorrected),
    ("masked DS, threshold 0.5", "as corrected", NotAcross),
    ("masked DS, threshold 0.5", "repaired", Across),
)


def counted(name: str, form: str, kind: type[Any], logits: Tensor, labels: Tensor) -> Row:
    """The counts of one rule for logits [B,28,K]. `certify` speaks of the class that it names."""
    rule = kind(_unasked, logits.shape[2])
    told = _answering(rule, logits)
    right = certified = wrong = 0
    for part, own in zip(told, labels.split(CHUNK), strict=True):
        claim = part.certify(torch.zeros(len(own), 1, 28, 28), PatchThreat(SIDE, SIDE))
        right += int((claim.prediction == own).sum())
        certified += int((claim.certified & (claim.prediction == own)).sum())
        wrong += int((claim.certified & (claim.prediction != own)).sum())
    return name, form, right, certified, wrong


def _answering(rule: Any, logits: Tensor) -> list[Any]:
    """The rule for each chunk, its base replaced by what the network said."""

    def of(part: Tensor) -> Any:
        one = type(rule)(rule.base, rule.num_classes)
        if isinstance(one, MaskedColumns):
            one.side, features = SIDE, exact(64 * part.softmax(dim=2).transpose(1, 2))
            one.features = lambda x: features
        elif isinstance(one, RandomizedColumns):
            shares = F.one_hot(part.argmax(dim=2), part.shape[2]).sum(dim=1) / part.shape[1]
            one.shares = lambda x: shares
        elif isinstance(one, StridedColumns):
            one.size, one.stride = 2, 3
            counts = F.one_hot(part[:, ::3].argmax(dim=2), part.shape[2]).sum(dim=1)
            one.counts = lambda x: counts
        else:
            counts = (part.softmax(dim=2) >= one.threshold).sum(dim=1)
            one.counts = lambda x: counts
        return one

    return [of(part) for part in logits.split(CHUNK)]


def _unasked(_: Any) -> Any:
    raise AssertionError("the rule asks its base, though its answers are known")


COLUMNS: tuple[Column[tuple[Row, int]], ...] = (
    Column("rule", lambda row: row[0][0], words=True),
    Column("form", lambda row: row[0][1], words=True),
    Column("right", lambda row: f"{100 * row[0][2] / row[1]:.2f}"),
    Column("right and certified", lambda row: f"{100 * row[0][3] / row[1]:.2f}"),
    Column("wrong and certified", lambda row: f"{100 * row[0][4] / row[1]:.2f}"),
)


def network_says(images: Any, on_progress: Callable[[str], None] = lambda _: None) -> tuple[Tensor, Tensor]:
    """The logits [M,28,K] of the network for all bands of all images, and the labels."""
    model = load_checkpoint(NETWORK).smoothed
    found, labels = [], []
    with torch.no_grad():
        for start in range(0, len(images), CHUNK):
            on_progress(f"{start} of {len(images)} images")
            x, y = images.batch(range(start, min(start + CHUNK, len(images))))
            found.append(model.logits(x))
            labels.append(y)
    return torch.cat(found), torch.cat(labels)


@app.command(cls=Command)
@takes
def main(
    dataset: Annotated[str, typer.Option(help="mnist, or mnist-sample.")] = "mnist",
    data_root: Annotated[DataRoot | None, "$ROBUSTPATCH_DATA"] = None,
) -> int:
    """Print what each rule certifies against one 5x5 patch, in percent of the test set.

    Exit status 0: done. 2: wrong call. 3: internal error.
    """
    logits, labels = network_says(named_images(dataset, data_root))
    rows = [(counted(*rule, logits, labels), len(labels)) for rule in RULES]
    TextConsole().print(Table.of(COLUMNS, rows).markdown(), soft_wrap=True, markup=False)
    return HELD


if __name__ == "__main__":
    app()
