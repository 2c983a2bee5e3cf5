"""The cost of a run, estimated from a few of its images or, where those would cost too much, of their ablations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import PatchAttack
from evaluate.runs.batch import Settings, evaluate_batch
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.isolation import predict_with_cost
from robustpatch.classifiers.smoothed import guarded_classifier
from robustpatch.data.images import ImageSet
from robustpatch.threats.base import Threat

PILOTS = 2  # images of each kind that are attacked
CHEAP = 10.0  # seconds that an estimate may take in any case
_SHARE = 10  # else it takes so small a part of the run to certify some images, and so few of each kind are attacked
_CHECKS = 1_200  # ablations that the tests of a base score once
_PASSES = 2  # over all ablations of an image: of certify and of predict
_GRADIENT = 2  # times the seconds of scoring an ablation, with its gradient
_BUDGET = 5_000  # evaluations of an attack that says of no limit
_FEW = 8  # ablations that are timed
_TOGETHER = 64  # images that are timed at once
_SHORT = 1_000_000  # evaluations, of which nobody needs to be told beforehand

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Estimate:
    """Seconds and evaluations of a whole run, extrapolated: `certifying` from some of its first images, the attacks
    from `attacked` images of those. Images cost very different amounts, so within a factor of about two.

    Of runs of which that would be more than a tenth, it is what a few ablations took, times those to be scored, and
    the budgets of the attacks are taken to be used up: `certified` and `open` are None where no image was certified,
    `attacked` is 0 where none was attacked.
    """

    images: int
    certified: float | None
    open: float | None
    certifying: float
    attacking: float
    evaluations: int
    attacked: int

    @property
    def seconds(self) -> float:
        return self.certifying + self.attacking


@dataclass(frozen=True)
class _Cost:
    """The cost of scoring: `seconds` of an ablation, or of a pass of the network where there are none; `ablations`, or
    passes, an image.
    """

    seconds: float
    ablations: int

    @property
    def certifying(self) -> float:
        """Seconds an image."""
        return _PASSES * self.ablations * self.seconds

    def attacking(self, evaluations: int) -> float:
        return _GRADIENT * self.seconds * evaluations


def estimate(
    model: torch.nn.Module,
    images: ImageSet,
    threat: Threat,
    attacks: Sequence[PatchAttack],
    settings: Settings,
    *,
    on_progress: Progress = lambda *_: None,
) -> Estimate:
    """Certify some images, attack a few of them, and extrapolate: at most a tenth of the run, or a few seconds. `open`,
    like `certified`, is a share of images: classified correctly and not certified.
    """
    classifier = as_classifier(model)
    total = min(settings.num_images, len(images))
    on_progress(0, "timing one image")
    x, y = (tensor.to(settings.device) for tensor in images.batch(range(min(settings.batch_size, total))))
    cost = _cost(classifier, x[:1])
    pilots, budget = PILOTS, _budget(attacks, settings)
    once = cost.certifying + _CHECKS * cost.seconds  # for the first image
    if once + len(x) * cost.certifying + 2 * PILOTS * cost.attacking(budget) > CHEAP:
        some = min(len(x), int(total / _SHARE - once / cost.certifying))
        if some < 1:
            return Estimate(
                total, None, None, total * cost.certifying, total * cost.attacking(budget), total * budget, 0
            )
        x, y, pilots = x[:some], y[:some], 0
    on_progress(0, f"certifying {len(x)} images, about {once + len(x) * cost.certifying:,.0f} s")
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
        number = len(found) / len(x) * total
        few = found[: pilots or min(PILOTS, int(number / (2 * _SHARE)))] if attacks else []
        if not few:
            seconds += number * cost.attacking(budget)
            evaluations += number * budget
            continue
        on_progress(0, f"attacking {len(few)} {kind} images")
        started = time.monotonic()
        done = evaluate_batch(model, x[few], y[few], 0, threat, attacks, settings).records
        share = number / len(few)
        seconds += share * (time.monotonic() - started)
        evaluations += share * sum(attack.evaluations for record in done for attack in record.attacks)
        attacked += len(few)
    return Estimate(
        images=total,
        certified=len(kinds["certified"]) / len(x),
        open=len(kinds["open"]) / len(x),
        certifying=certifying,
        attacking=seconds,
        evaluations=round(evaluations),
        attacked=attacked,
    )


def at_most(model: torch.nn.Module, images: ImageSet, attacks: Sequence[PatchAttack], settings: Settings) -> float:
    """Seconds of a run whose attacks use up their budgets on every image, from a look at some of them; real runs take
    less, as most images are broken earlier or need no attack. 0 of a run of few evaluations, for which none is timed.
    """
    total, budget = min(settings.num_images, len(images)), _budget(attacks, settings)
    if total * budget < _SHORT:
        return 0.0
    classifier = as_classifier(model)
    cost = _cost(classifier, images.batch(range(1))[0].to(settings.device))
    several = min(_TOGETHER, total, int(CHEAP / 2 / (cost.seconds * cost.ablations)))
    if several > 1:  # one by one small images cost many times as much
        cost = _cost(classifier, images.batch(range(several))[0].to(settings.device))
    return total * (cost.certifying + cost.attacking(budget))


def _budget(attacks: Sequence[PatchAttack], settings: Settings) -> int:
    """Evaluations an image of all attacks together, of one without a limit by assumption."""
    return sum(getattr(attack, "budget", None) or settings.certified_budget or _BUDGET for attack in attacks)


@torch.no_grad()
def _cost(model: Classifier, x: Tensor) -> _Cost:
    """The faster of two measurements on images [B,C,H,W]: the first may pay for what is done once."""
    smoothed = guarded_classifier(model)
    ablations = 0 if smoothed is None else smoothed.ablation.count(*x.shape[2:])
    few = torch.arange(min(_FEW, ablations), device=x.device)
    scored = ablations if smoothed is None or smoothed.one_pass else len(few)
    taken = []
    for _ in range(2):
        started = time.monotonic(), time.process_time()
        if smoothed is None:
            done, spent = predict_with_cost(model, x)
            ablations = scored = max(1, int(spent.max()))  # as many passes of the network, which are its evaluations
        else:
            done = smoothed.logits(x.clone(), None if smoothed.one_pass else few)
        done.sum().item()  # waits for the device
        passed, busy = time.monotonic() - started[0], time.process_time() - started[1]
        taken.append(
            min(passed, busy) / (scored * len(x))
        )  # on a busy machine threads wait for each other, at times long
    return _Cost(max(min(taken), 1e-9), ablations)
