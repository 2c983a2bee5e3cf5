"""What a run will cost, from a few of its images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attacks.base import PatchAttack
from evaluate.batch import Settings, evaluate_batch
from robustpatch.data import ImageSet
from robustpatch.threat import Threat

PILOTS = 2  # images of each kind that are attacked


@dataclass(frozen=True)
class Estimate:
    """Seconds and evaluations of a whole run, extrapolated: `certifying` from the first batch of images, the attacks
    from `attacked` images of it. Images cost very different amounts, so within a factor of about two.
    """

    images: int
    certified: float
    open: float
    certifying: float
    attacking: float
    evaluations: int
    attacked: int

    @property
    def seconds(self) -> float:
        return self.certifying + self.attacking


def estimate(
    model: torch.nn.Module,
    images: ImageSet,
    threat: Threat,
    attacks: Sequence[PatchAttack],
    settings: Settings,
    *,
    on_progress: Callable[[int, str], None] = lambda *_: None,
) -> Estimate:
    """Certify one batch, attack a few of its images, and extrapolate. `open`, like `certified`, is a share of images:
    classified correctly and not certified.
    """
    total = min(settings.num_images, len(images))
    on_progress(0, "certifying")
    x, y = (tensor.to(settings.device) for tensor in images.batch(range(min(settings.batch_size, total))))
    evaluate_batch(model, x[:1], y[:1], 0, threat, (), settings)  # what is done once, is not extrapolated
    started = time.monotonic()
    batch = evaluate_batch(model, x, y, 0, threat, (), settings)
    certifying = (time.monotonic() - started) * total / len(x)
    kinds = {
        "certified": [i for i, record in enumerate(batch.records) if record.certified],
        "open": [i for i, record in enumerate(batch.records) if record.correct and not record.certified],
    }
    seconds = evaluations = 0.0
    attacked = 0
    for kind, found in kinds.items():
        pilots = found[:PILOTS] if attacks else []
        if not pilots:
            continue
        on_progress(0, f"attacking {len(pilots)} {kind} images")
        started = time.monotonic()
        done = evaluate_batch(model, x[pilots], y[pilots], 0, threat, attacks, settings).records
        share = len(found) / len(x) * total / len(pilots)
        seconds += share * (time.monotonic() - started)
        evaluations += share * sum(attack.evaluations for record in done for attack in record.attacks)
        attacked += len(pilots)
    return Estimate(
        images=total,
        certified=len(kinds["certified"]) / len(x),
        open=len(kinds["open"]) / len(x),
        certifying=certifying,
        attacking=seconds,
        evaluations=round(evaluations),
        attacked=attacked,
    )
