"""python -m tests.evaluate.audit_table [TEXT]: docs/audit.md, the audit of ours, of ART's and of planted bugs.

With TEXT, the rows that have it in their title or name. Seconds are of processor time, on one thread.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from evaluate.audit import Audit, audit
from evaluate.audit import art as arts
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, Rows
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.evaluate.audit_bugs import THROUGH_A_FACTORY, make
from tests.evaluate.planted import PLANTS


def ours(ablation, voting) -> Callable[..., SmoothedClassifier]:
    """A factory of ours."""
    return lambda base, k, shape: SmoothedClassifier(base, ablation, num_classes=k, voting=voting).eval()


def planted(name: str) -> Callable[..., SmoothedClassifier]:
    """A factory of the plant's broken certifier."""
    plant = PLANTS[name]
    kind = type(plant.broken())
    return lambda base, k, shape: kind(base, plant.ablation, num_classes=k, voting=TopOne(1e-6)).eval()


class Foreign:
    """Of a smoothed classifier what any certifier has."""

    def __init__(self, model: Any) -> None:
        self.model, self.num_classes = model, model.num_classes

    def predict(self, x):
        return self.model.predict(x)

    def certify(self, x, threat):
        return self.model.certify(x, threat)


HEAD = "| | verdict | found | certificates tested | ballots | s |\n| --- | --- | --- | ---: | ---: | ---: |"


def row(name: str, run: Callable[[], Audit]) -> str:
    started = time.process_time()
    done = run()
    found = ", ".join(f"{f.check} ({f.severity}, {f.times}×)" for f in done.findings) or "–"
    seconds = time.process_time() - started
    cells = [name, done.verdict, found, f"{done.certified:,}", f"{done.ballots:,}", f"{seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def main(text: str) -> None:
    """Print the rows as Markdown."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows: list[tuple[str, list[tuple[str, Callable[[], Audit]]]]] = [
        (
            "Ours, 5×5",
            [
                (name, lambda name=name: audit(SmoothedClassifier.from_pretrained(name), budget=400))
                for name in ("mnist-columns2", "mnist-rows2", "mnist-columns4-top1")
            ]
            + [
                (f"{ablation}, {voting}, factory", lambda a=ablation, v=voting: audit(factory=ours(a, v), budget=400))
                for ablation, voting in (
                    (Columns(19, 10), TopOne()),
                    (Rows(3, 2), Threshold(0.2)),
                    (Columns(4), Threshold(0.3)),
                )
            ]
            + [
                (
                    f"{ablation}, {voting}, factory, 1×24×24, 2×2",
                    lambda a=ablation, v=voting: audit(
                        factory=ours(a, v), image_shape=(1, 24, 24), threat=PatchThreat(2, 2), budget=400
                    ),
                )
                for ablation, voting in ((Blocks(3), Threshold(0.3)), (GridBlocks(4, 2), Threshold(0.3)))
            ],
        ),
        (
            "ART 1.20.1, PyTorchDeRandomizedSmoothing, 5×5 (blocks: 1×12×12, 1×1)",
            [
                (f"{name}", lambda name=name: audit(factory=getattr(arts, name), budget=150))
                for name in ("levine_column", "levine_row", "levine_probabilities", "salman_column", "salman_row")
            ]
            + [
                (
                    name,
                    lambda name=name: audit(
                        factory=getattr(arts, name), image_shape=(1, 12, 12), threat=PatchThreat(1, 1), budget=150
                    ),
                )
                for name in ("levine_block", "salman_block")
            ],
        ),
        (
            "Planted bugs of tests/evaluate/planted.py, through a factory",
            [
                (
                    name,
                    lambda name=name: audit(
                        factory=planted(name), threat=PLANTS[name].threat, image_shape=(1, 12, 16), budget=25
                    ),
                )
                for name in PLANTS
            ],
        ),
        (
            "The same without a factory, by attacks on images",
            [
                (
                    name,
                    lambda name=name: audit(
                        Foreign(PLANTS[name].broken()),
                        x=PLANTS[name].candidates()[:: max(1, len(PLANTS[name].candidates()) // 24)],
                        threat=PLANTS[name].threat,
                        images=24,
                        budget=200,
                    ),
                )
                for name in PLANTS
            ],
        ),
        (
            "A stranger's column smoothing with the bugs of PITFALLS (tests/evaluate/audit_bugs.py), through a factory",
            [
                (
                    f"{bug or 'no bug'}",
                    lambda bug=bug: audit(
                        factory=make(bug),
                        threat=PatchThreat(2, 2),
                        image_shape=(3 if "channel" in bug else 1, 6, 15),
                        budget=25,
                    ),
                )
                for bug in ["", *(bug for bug, check in THROUGH_A_FACTORY.items() if check)]
            ],
        ),
    ]
    for title, some in rows:
        chosen = [(name, run) for name, run in some if text in f"{title}, {name}"]
        if chosen:
            print(f"\n## {title}\n\n{HEAD}", flush=True)
        for name, run in chosen:
            print(row(name, run), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
