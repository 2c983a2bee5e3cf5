"""The certifiers by kind, each with the small place where it can be shown to be unsound, or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.acceptance import alarms, batches, cancellation, chance, nonmonotone, sizes, sound, ties
from tests.evaluate.acceptance.common import ArrayVotes, factory
from tests.evaluate.acceptance.search import Place


@dataclass(frozen=True)
class Case:
    """`options`: what the audit is told besides the factory; everything else is by default."""

    kind: str
    name: str
    make: Callable[..., Any] | None
    place: Place
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


_ONE, _ROW = PatchThreat(1, 1), PatchThreat(1, 5)
_ALERTS = {"alerts": True}
_LARGE = (4.0, 2.0**40)

UNSOUND = [
    Case("a", "sorted columns", factory(ties.SortedColumns), Place((1, 1, 8), _ONE)),
    Case("a", "paired rows", factory(ties.PairedRows), Place((1, 12, 1), _ONE)),
    Case("a", "fair blocks", factory(ties.FairBlocks), Place((1, 8, 8), _ONE)),
    Case("b", "wary columns", factory(alarms.WaryColumns), Place((1, 1, 9), PatchThreat(1, 2), alerts=True), _ALERTS),
    Case("b", "one mask", factory(alarms.OneMask), Place((1, 1, 9), _ROW, 2, (-3.0, 4.0), alerts=True), _ALERTS),
    Case(
        "b",
        "minority",
        factory(alarms.Minority),
        Place((1, 9, 13), PatchThreat(5, 5), 2, alerts=True, rounds=200),
        _ALERTS,
    ),
    Case("c", "suspicious columns", factory(nonmonotone.SuspiciousColumns), Place((1, 1, 40), _ROW, 4, rounds=10_000)),
    Case(
        "c",
        "confident rows",
        factory(nonmonotone.ConfidentRows),
        Place((1, 24, 1), PatchThreat(5, 1), 2, rounds=10_000),
    ),
    Case("c", "hasty cleanser", factory(nonmonotone.HastyCleanser), Place((1, 7, 7), PatchThreat(2, 2), rounds=2_000)),
    Case(
        "d", "masked columns", factory(cancellation.MaskedColumns), Place((1, 1, 20), PatchThreat(1, 1), patched=_LARGE)
    ),
    Case(
        "d",
        "rescaled columns",
        factory(cancellation.RescaledColumns),
        Place((1, 1, 20), PatchThreat(1, 1), patched=(4.0, 900.0)),
    ),
    Case("d", "districts", factory(cancellation.Districts), Place((1, 28, 28), _ONE, patched=_LARGE)),
    Case("e", "leftover", factory(batches.Leftover), Place((1, 7, 1), _ONE, company=8)),
    Case("e", "shuffled", factory(batches.Shuffled), Place((1, 1, 9), _ONE, company=2)),
    Case("e", "broadcast", factory(batches.Broadcast), Place((1, 1, 16), _ONE, company=2)),
    Case("f", "rounded", factory(sizes.Rounded), Place((1, 1, 16), PatchThreat(1, 2))),
    Case("f", "centred", factory(sizes.Centred), Place((1, 12, 8), PatchThreat(2, 1))),
    Case("f", "areal", factory(sizes.Areal), Place((1, 1, 24), PatchThreat(1, 8))),
    Case("g", "sampled columns", factory(chance.SampledColumns), Place((1, 1, 12), _ONE)),
    Case("g", "dropped", factory(chance.Dropped), Place((1, 1, 12), _ONE)),
    Case("g", "restless", factory(chance.Restless), Place((1, 12, 1), _ONE)),
]

_COLUMNS = Place((1, 1, 9), PatchThreat(1, 2))

SOUND = [
    Case("sound", "exact columns", factory(sound.ExactColumns), replace(_COLUMNS, rounds=60)),
    Case("sound", "ties to the higher class", factory(sound.HigherColumns), replace(_COLUMNS, rounds=60)),
    Case("sound", "plain rows, numpy", factory(ArrayVotes), Place((1, 9, 1), PatchThreat(2, 1), rounds=60)),
    Case("sound", "blocks", sound.blocks, Place((1, 8, 12), PatchThreat(2, 1), rounds=8), {"image_shape": (1, 24, 24)}),
    Case("sound", "strided", sound.strided, Place((1, 1, 22), PatchThreat(1, 2), rounds=12)),
    Case("sound", "union", sound.union, Place((1, 7, 6), PatchThreat(1, 2), rounds=12)),
    Case("sound", "patchguard", sound.patchguard, Place((1, 5, 16), PatchThreat(2, 2), rounds=6)),
    Case("sound", "patchcleanser", sound.patchcleanser, Place((1, 7, 7), PatchThreat(2, 2), rounds=30)),
    Case("sound", "bagcert", sound.bagcert, replace(_COLUMNS, rounds=15)),
    Case(
        "sound",
        "alerts",
        factory(alarms.WaryColumns, slack=0),
        Place((1, 1, 9), PatchThreat(1, 2), alerts=True, rounds=50),
        _ALERTS,
    ),
    Case(
        "sound",
        "randomized by declaration",
        factory(sound.Sampling),
        Place((1, 9, 1), PatchThreat(2, 1), alerts=True, rounds=60),
    ),
    Case("sound", "ibp", None, _COLUMNS, {"image_shape": (1, 8, 8), "threat": _ONE}),
]
