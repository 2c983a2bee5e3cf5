"""The audit's eyes on this machine: certifiers with a bug each are caught, and the sound one is not."""

from __future__ import annotations

import torch

from evaluate.audit.adversarial_votes import try_votes
from evaluate.audit.dictated_attack import DictatedAttack
from evaluate.audit.finding import Tally
from evaluate.audit.harness import Harness, view_findings
from evaluate.selftest.check import Check
from evaluate.selftest.planted import make
from robustpatch.threats.rectangle import PatchThreat

_PLAIN = ((1, 3, 13), PatchThreat(2, 2))
BUGS = {  # name -> the images and the patch on which it shows
    "1 off by one": _PLAIN,
    "3 stride": ((1, 3, 16), PatchThreat(1, 1)),
    "4 tie with another rival": _PLAIN,
    "7 patch sides swapped": ((1, 3, 13), PatchThreat(1, 3)),
    "8 a view twice": _PLAIN,
    "8 a wider view": _PLAIN,
    "10 one channel ablated": ((3, 3, 13), PatchThreat(2, 2)),
    "11 ablation in place": _PLAIN,
    "12 predict without the last view": _PLAIN,
    "14 normalised by the image": _PLAIN,
    "ties forgotten": _PLAIN,
    "withdrawn votes only": _PLAIN,
}
_BUDGET = 1_000


def check_certifiers() -> list[Check]:
    """Twelve planted bugs, and the certifier without one."""
    caught = {bug: _findings(bug, *where) for bug, where in BUGS.items()}
    missed = [bug for bug, found in caught.items() if not found]
    told = f"{len(caught) - len(missed)} of {len(caught)}" + (f", but not: {', '.join(missed)}" if missed else "")
    sound = _findings("", *_PLAIN)
    return [
        Check("planted certifiers caught", not missed, told),
        Check("a sound certifier left alone", not sound, ", ".join(sound)),
    ]


def _findings(bug: str, shape: tuple[int, int, int], threat: PatchThreat) -> list[str]:
    harness = Harness(make(bug), 4, shape)
    tally = try_votes(DictatedAttack(harness, threat, Tally()), _BUDGET, torch.Generator().manual_seed(0))
    return [finding.check for finding in (*view_findings(harness, threat), *tally.findings)]
