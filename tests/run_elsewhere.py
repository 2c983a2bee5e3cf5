"""Everything that runs on a GPU, on the device of `tests.elsewhere`: a line for each case that fails, or differs."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from attacks import parse_attacks
from evaluate.runs.batch import Settings, evaluate_batch
from evaluate.runs.records import Record
from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.classifiers.calibration import calibrate
from robustpatch.threats.parse import parse_threat
from robustpatch.voting.rules import TopOne
from robustpatch.voting.scored import ClippedTanh
from tests import toys
from tests.elsewhere import elsewhere
from tests.evaluate.bundle.cases import THREAT, classifier, images

ATTACKS = "pgd:1,exhaustive,lavan,sparse-rs,grey"
KINDS = ("votes", "sums", "masks", "draws")  # IBP refuses tensors with operators of their own


def models() -> dict[str, tuple[torch.nn.Module, Tensor, str]]:
    """A classifier of each kind, images, and a threat."""
    found = {kind: (classifier(kind), images()[2:6], THREAT) for kind in KINDS}
    x = toys.images(3)
    found["one pass"] = (toys.smoothed(toys.strip()), x, "1x2")
    found["blocks, scores"] = (toys.smoothed(ablation=Blocks(2), voting=ClippedTanh(0.05, 1.0)), x, "2x1,1x2")
    found["shapes"] = (toys.smoothed(ablation=Columns(1), voting=TopOne()), x, "cross:3/1")
    found["several"] = (toys.smoothed(ablation=Columns(1), voting=TopOne()), x, "2*1x1")
    found["undefended"] = (toys.linear(channels=1), x, "2x2")
    return found


def records(model: torch.nn.Module, x: Tensor, threat: str, device: str) -> list[Record]:
    """Certificates and attacks, as a run makes them."""
    against = parse_threat(threat, (x.shape[2], x.shape[3]))
    y = torch.tensor([0, 1] * len(x))[: len(x)].to(device)
    attacks = parse_attacks(ATTACKS, steps=2, budget=40)
    settings = Settings(len(x), len(x), 60, device=device, gallery=1)
    made = copy.deepcopy(model).to(device)
    return evaluate_batch(made, x.to(device), y, 0, against, attacks, settings).records


def same(model: torch.nn.Module, x: Tensor, threat: str, device: str) -> None:
    """What is certified there is what is certified here."""
    ours, theirs = (records(model, x, threat, one) for one in ("cpu", device))
    for own, other in zip(ours, theirs, strict=True):
        for name in ("prediction", "certified_exact", "margin_exact", "certified_margin", "largest_certified"):
            if getattr(own, name) != getattr(other, name):
                raise AssertionError(f"{name} of image {own.index} is {getattr(other, name)}, not {getattr(own, name)}")


def wrong(device: str) -> None:
    """A mask that is made here, for votes that are there."""
    votes = torch.ones(2, 3, 4, device=device)
    mask = torch.zeros(2, 3, 1, dtype=torch.bool)
    try:
        votes.masked_fill(mask, 0)
    except RuntimeError:
        return
    raise AssertionError("a tensor on the wrong device was not noticed")


def main() -> int:
    failed = 0
    with elsewhere() as device:
        cases: dict[str, Callable[[], object]] = {"wrong": lambda: wrong(device)}
        for name, (model, x, threat) in models().items():
            cases[name] = lambda model=model, x=x, threat=threat: same(model, x, threat, device)
        cases["calibrate"] = lambda: calibrate(toys.smoothed(toys.strip()).to(device), toys.images(3).to(device))
        for name, case in cases.items():
            try:
                case()
            except Exception as error:
                failed += 1
                own = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
                where = [f"  {one.filename.rpartition('/')[2]}:{one.lineno} {one.line}\n" for one in own[-6:]]
                sys.stdout.write(f"{name}: {type(error).__name__} {str(error)[:300]}\n{''.join(where)}")
    sys.stdout.write(f"{len(cases) - failed} of {len(cases)} cases are right\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
