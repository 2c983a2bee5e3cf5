"""python -m tests.evaluate.audit_table [TEXT]: docs/audit.md, the audit of ours, of ART's and of planted bugs.

With TEXT, the rows that have it in their title or name. Seconds are of processor time, on one thread.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from evaluate.audit import Audit, audit
from evaluate.audit import art as arts
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, Rows
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.evaluate.audit_bugs import THROUGH_A_FACTORY, make
from tests.evaluate.audits import Foreign
from tests.evaluate.planted import PLANTS

HEAD = "| | verdict | found | certificates tested | ballots | s |\n| --- | --- | --- | ---: | ---: | ---: |"
Row = tuple[str, Any, dict[str, Any]]  # name, target, other arguments of `audit`


def smoothed(ablation, voting, kind=SmoothedClassifier) -> Callable[..., SmoothedClassifier]:
    """A factory of ours, or of one that is derived from it."""
    return lambda base, k, shape: kind(base, ablation, num_classes=k, voting=voting).eval()


def ours() -> Iterator[Row]:
    for name in ("mnist-columns2", "mnist-rows2", "mnist-columns4-top1"):
        yield name, SmoothedClassifier.from_pretrained(name), {"budget": 400}
    small = {"image_shape": (1, 24, 24), "threat": PatchThreat(2, 2)}
    for ablation, voting, where in (
        (Columns(19, 10), TopOne(), {}),
        (Rows(3, 2), Threshold(0.2), {}),
        (Columns(4), Threshold(0.3), {}),
        (Blocks(3), Threshold(0.3), small),
        (GridBlocks(4, 2), Threshold(0.3), small),
    ):
        name = f"{ablation}, {voting}, factory{', 1×24×24, 2×2' if where else ''}"
        yield name, None, {"factory": smoothed(ablation, voting), "budget": 400, **where}


def of_art() -> Iterator[Row]:
    small = {"image_shape": (1, 12, 12), "threat": PatchThreat(1, 1)}
    names = ("levine_column", "levine_row", "levine_probabilities", "salman_column", "salman_row")
    for name in (*names, "levine_block", "salman_block"):
        yield name, None, {"factory": getattr(arts, name), "budget": 150, **(small if "block" in name else {})}


def planted() -> Iterator[Row]:
    for name, plant in PLANTS.items():
        factory = smoothed(plant.ablation, TopOne(1e-6), type(plant.broken()))
        yield name, None, {"factory": factory, "threat": plant.threat, "image_shape": (1, 12, 16), "budget": 25}


def by_attacks() -> Iterator[Row]:
    for name, plant in PLANTS.items():
        x = plant.candidates()[:: max(1, len(plant.candidates()) // 24)]
        yield name, Foreign(plant.broken()), {"x": x, "threat": plant.threat, "images": 24, "budget": 200}


def of_a_stranger() -> Iterator[Row]:
    for bug in ["", *(bug for bug, check in THROUGH_A_FACTORY.items() if check)]:
        shape = (3 if "channel" in bug else 1, 6, 15)
        yield (
            bug or "no bug",
            None,
            {"factory": make(bug), "threat": PatchThreat(2, 2), "image_shape": shape, "budget": 25},
        )


TABLES = {
    "Ours, 5×5": ours,
    "ART 1.20.1, PyTorchDeRandomizedSmoothing, 5×5 (blocks: 1×12×12, 1×1)": of_art,
    "Planted bugs of tests/evaluate/planted.py, through a factory": planted,
    "The same without a factory, by attacks on images": by_attacks,
    "A stranger's column smoothing with the bugs of PITFALLS (tests/evaluate/audit_bugs.py), through a factory": (
        of_a_stranger
    ),
}


def found(done: Audit) -> str:
    """The findings of an audit as the cell of a table."""
    return ", ".join(f"{one.check} ({one.severity}, {one.times}×)" for one in done.findings) or "–"


def main(text: str) -> None:
    """Print the rows as Markdown."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for title, rows in TABLES.items():
        chosen = [row for row in rows() if text in f"{title}, {row[0]}"]
        if chosen:
            print(f"\n## {title}\n\n{HEAD}", flush=True)
        for name, target, options in chosen:
            started = time.process_time()
            done = audit(target, **options)
            cells = [name, done.verdict, found(done), f"{done.certified:,}", f"{done.ballots:,}"]
            print(f"| {' | '.join(cells)} | {time.process_time() - started:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
