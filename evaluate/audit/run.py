"""The audit: what can be tested of a certifier is tested, and what cannot is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evaluate.audit.attack import attack_certified
from evaluate.audit.consistency import CHECKS
from evaluate.audit.factory import Tested, try_factory
from evaluate.audit.finding import Audit, Finding, gather
from evaluate.audit.images import seams, structured
from evaluate.audit.interface import Refused, Subject
from evaluate.audit.reproduce import save
from evaluate.audit.stand import Factory
from robustpatch import checks
from robustpatch.data import load_images
from robustpatch.errors import InvalidInput
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.threat import PatchThreat

Progress = Callable[[str], None]


def audit(
    target: Any = None,
    *,
    factory: Factory | None = None,
    threat: PatchThreat | None = None,
    x: Float[Tensor, "B C H W"] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    alerts: bool | int = False,
    images: int = 32,
    budget: int = 2_000,
    seed: int = 0,
    output: str | Path | None = None,
    asked: dict[str, Any] | None = None,
    on_progress: Progress = lambda _: None,
) -> Audit:
    """Try to break the certificates of `target`, and of what `factory` makes; every finding comes with what shows it.

    An audit that finds nothing proves nothing, but each "broken certificate" is a certified prediction that was seen
    to change, or that `predict` contradicts.

    Args:
        target: anything with `predict(x)` and `certify(x, threat)`, whose result has `.prediction` and `.certified`.
            Its images are attacked, and its answers held against each other.
        factory: `factory(base, num_classes, image_shape)` makes such a certifier around a base that the audit chooses:
            counts, ties, strides and sides are tested through it. A target's own `with_base`, if it has one, and a
            `SmoothedClassifier`'s ablation and voting are used where none is given.
        threat: one patch size; 5x5 if not given.
        x: images to ask about; else the packaged MNIST sample where it has the target's `image_shape`, (1, 28, 28) if
            not given, and structured images of that shape, which are always added. `images`: how many of either kind.
            The factory is tried on `image_shape`, (1, 40, 40) if not given, and on images that are not square.
        alerts: whether the certifier may answer "attack" instead of a class, which then breaks no certificate: True
            for the answer that its attribute `alert` names, or -1; a whole number that is no class for that answer. One
            that says of itself that it is randomized (an attribute `prediction_error`, a `referee`, or a true
            `randomized`) breaks none by -1 either, and may show its base other views at each call.
        budget: evaluations of each attack on a certified image; a factory's bases see some 50 times as many views, a
            shape and threat.
        output: folder of the reproducers; None writes none. `asked`: how the command line was told of the certifier.

    Raises `InvalidInput` for what cannot be audited at all.
    """
    started = time.monotonic()
    threat = threat or PatchThreat(5, 5)
    for name, value in (("images", images), ("budget", budget)):
        if value < 1:
            raise InvalidInput(f"{name} is {value}; it must be at least 1")
    if target is None and factory is None:
        raise InvalidInput("target and factory are both None; give a certifier, or a factory that makes one, or both")
    generator = torch.Generator().manual_seed(seed)
    findings: list[Finding] = []
    untested: list[tuple[str, str]] = []
    made = _classes(target, num_classes)
    asked_images = certified = attacked = spent = 0
    if target is not None:
        pool = _pool(x, image_shape, images, generator)
        threat.check_fits(*pool.shape[2:])
        subject = Subject.of(target, made, pool[:1], alerts)
        _evaluating(target)
        found, asked_images, certified, spent = _try_target(
            subject, pool, threat, images, budget, generator, untested, on_progress
        )
        attacked = certified
        findings += [replace(one, note={**one.note, "classes": made, "alerts": alerts}) for one in found]
    else:
        untested.append(("images", "no certifier was given, only a factory"))
    factory = factory or own_factory(target)
    tested = Tested()
    if factory is not None:
        classes = num_classes or getattr(target, "num_classes", 4)
        shape = image_shape or (1, 40, 40)
        tested = try_factory(factory, classes, shape, threat, 50 * budget, seed, on_progress, alerts)
        findings += tested.findings
        untested += tested.untested
    else:
        why = "no factory: the base cannot be replaced by one whose votes are dictated"
        untested.append(("affected counts, ties, wraps, strides, swapped sides, views", why))
    untested.append(("other devices, other precisions", "outside of this audit"))
    found = gather(findings)
    if output is not None:
        named = {"threat": [threat.height, threat.width, threat.count], **(asked or {})}
        named = {key: value for key, value in named.items() if value is not None}
        found = [save(replace(one, note={**named, **one.note}), Path(output), n, {}) for n, one in enumerate(found)]
    name = (
        (asked or {}).get("target")
        or (asked or {}).get("factory")
        or type(factory if target is None else target).__name__
    )
    return Audit(
        name=str(name),
        threat=str(threat),
        findings=tuple(found),
        untested=tuple(untested),
        views=tuple(tested.views),
        images=asked_images,
        certified=certified + tested.certified,
        attacked=attacked + tested.certified,
        ballots=tested.ballots,
        evaluations=spent,
        seconds=time.monotonic() - started,
    )


def _try_target(
    subject: Subject,
    pool: Float[Tensor, "M C H W"],
    threat: PatchThreat,
    images: int,
    budget: int,
    generator: torch.Generator,
    untested: list[tuple[str, str]],
    on_progress: Progress,
) -> tuple[list[Finding], int, int, int]:
    """Findings, images asked about, images certified and attacked, evaluations."""
    try:
        claim = subject.certify(pool, threat)
    except Refused as refusal:
        raise InvalidInput(
            f"certifier does not certify {tuple(pool.shape[1:])} images against {threat}: {refusal}"
        ) from refusal
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        on_progress(f"consistency: {name}")
        try:
            findings += check(subject, pool, threat, claim)
        except Refused as refusal:
            untested.append((name, str(refusal)))
    if not isinstance(subject.target, nn.Module):
        untested.append(("training mode", f"a {type(subject.target).__name__} is no nn.Module"))
    on_progress("looking for votes about to turn")
    composed = seams(subject, pool, threat, 4 * images, images, generator)
    every = torch.cat([pool, composed])
    claim = subject.certify(every, threat)
    consistent = claim.certified & (subject.predict(every) == claim.prediction)
    chosen = (consistent & (claim.prediction >= 0)).nonzero()[:, 0]
    if len(chosen) < int(consistent.sum()):
        untested.append(("certified abstentions", f"{int(consistent.sum()) - len(chosen)} images: no class to attack"))
    if not len(chosen):
        untested.append(("certificates of images", f"none of {len(every)} images was certified against {threat}"))
    elif not subject.white_box(every):
        untested.append(("gradients", "the certifier has no scores with a gradient: attacked as a black box"))
    on_progress(f"attacking {len(chosen)} certified images")
    found, spent = attack_certified(subject, every[chosen], claim.prediction[chosen], pool, threat, budget, generator)
    return findings + found, len(every), len(chosen), spent


def _pool(
    x: Tensor | None, image_shape: tuple[int, int, int] | None, images: int, generator: torch.Generator
) -> Float[Tensor, "M C H W"]:
    """The images asked about: those given or of the sample, and structured ones."""
    if x is not None:
        checks.image_values(x)
        x = x[:images].detach().cpu().float()
        if image_shape is not None and tuple(x.shape[1:]) != tuple(image_shape):
            raise InvalidInput(f"image_shape is {image_shape}, but x has {tuple(x.shape[1:])}; leave one out")
        channels, height, width = x.shape[1:]
        return torch.cat([x, structured((channels, height, width), images, generator)])
    sample = load_images("mnist-sample")
    shape = image_shape or sample.image_shape
    drawn = structured(shape, images, generator)
    return (
        torch.cat([sample.batch(range(min(images, len(sample))))[0], drawn]) if shape == sample.image_shape else drawn
    )


def _classes(target: Any, num_classes: int | None) -> int:
    found = (
        num_classes if num_classes is not None else getattr(target, "num_classes", None if target is not None else 4)
    )
    if isinstance(found, bool) or not isinstance(found, int) or found < 2:
        raise InvalidInput(f"num_classes is {found!r}; name the number of classes, at least two")
    return found


def _evaluating(target: Any) -> None:
    if isinstance(target, nn.Module):
        checks.evaluation_mode(target)


def own_factory(target: Any) -> Factory | None:
    """The target's `with_base`; a smoothed classifier's ablation and voting around another base."""
    if callable(getattr(target, "with_base", None)):
        return target.with_base
    if not isinstance(target, SmoothedClassifier):
        return None

    def make(base: nn.Module, classes: int, shape: tuple[int, int, int]) -> SmoothedClassifier:
        options = {"voting": target.voting, "encoding": target.encoding}
        return type(target)(base, target.ablation, num_classes=classes, **options).eval()

    return make
