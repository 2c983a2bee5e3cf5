"""The audit: what can be tested of a certifier is tested, and what cannot is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evaluate.audit.attack import attack_certified
from evaluate.audit.consistency import CHECKS
from evaluate.audit.factory import Tested, steps, try_factory
from evaluate.audit.finding import Audit, Finding, gather, is_named
from evaluate.audit.harness import Factory
from evaluate.audit.images import seams, structured
from evaluate.audit.interface import AuditedCertifier, Refused, check_methods
from evaluate.audit.limit import Limit, Steps, Stopped, in_short
from evaluate.audit.reproduce import clear, save
from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store, local_folder
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.rectangle import PatchThreat

Progress = Callable[[str], None]


def audit(
    target: Any = None,
    *,
    factory: Factory | None = None,
    threat: Threat | None = None,
    x: Float[Tensor, "B C H W"] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    alerts: bool | int = False,
    images: int = 32,
    budget: int = 2_000,
    seed: int = 0,
    output: str | Path | Store | None = None,
    asked: dict[str, Any] | None = None,
    limit: int | float | Limit | None = None,
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
        threat: what the attacker may do; 5x5 if not given. Of an `AnyOf` each alternative is tried.
        x: images to ask about; else the packaged MNIST sample where it has the target's `image_shape`, (1, 28, 28) if
            not given, and structured images of that shape, which are always added. `images`: how many of either kind.
            The factory is tried on `image_shape`, (1, 40, 40) if not given, and on images that are not square.
        alerts: whether the certifier may answer "attack" instead of a class, which then breaks no certificate: True
            for the answer that its attribute `alert` names, or -1; a whole number that is no class for that answer. One
            that declares `randomized = True` breaks none by -1 either, and may show its base other views at each call.
        budget: evaluations of each attack on a certified image; a factory's bases see some 50 times as many views, a
            shape and threat.
        output: folder of the reproducers, held for this audit alone; None writes none. What an earlier audit wrote
            there is replaced at the end, so that one that is refused loses nothing. `asked`: how the command line was
            told of the certifier.
        limit: seconds after which it ends with what it has found by then, or a `Limit`, which can also be told to
            `stop`. Then nothing is "held", and `untested` lists the steps that were not finished.
        on_progress: is told of each step: its name, its number, and an estimate of how long the rest takes.

    Raises `InvalidInput` for what cannot be audited at all.
    """
    started = time.monotonic()
    threat = threat or PatchThreat(5, 5)
    for name, value in (("images", images), ("budget", budget)):
        if value < 1:
            raise InvalidInput(f"{name} is {value}; it must be at least 1")
    if target is None and factory is None:
        raise InvalidInput("target and factory are both None; give a certifier, or a factory that makes one, or both")
    with _held(output) as store:
        return _audit(
            target,
            factory,
            threat,
            x,
            image_shape,
            num_classes,
            alerts,
            images,
            budget,
            seed,
            store,
            asked,
            limit,
            on_progress,
            started,
        )


@contextmanager
def _held(output: str | Path | Store | None) -> Iterator[Store | None]:
    """The output for this audit alone, found to be writable before any work; None for none."""
    if output is None:
        yield None
        return
    store = output if isinstance(output, Store) else Store(local_folder(output))
    with store.held(alone=True):
        store.check_writable()
        yield store


def _audit(
    target: Any,
    factory: Factory | None,
    threat: Threat,
    x: Float[Tensor, "B C H W"] | None,
    image_shape: tuple[int, int, int] | None,
    num_classes: int | None,
    alerts: bool | int,
    images: int,
    budget: int,
    seed: int,
    store: Store | None,
    asked: dict[str, Any] | None,
    limit: int | float | Limit | None,
    on_progress: Progress,
    started: float,
) -> Audit:
    """`audit` in an output that is held, or in none."""
    generator = torch.Generator().manual_seed(seed)
    findings: list[Finding] = []
    untested: list[tuple[str, str]] = []
    if target is not None:
        check_methods(target)
    made = _classes(target, num_classes)
    factory = factory or own_factory(target)
    shape = image_shape or (1, 40, 40)
    names = []
    for one in threat.threats:
        names += (_STEPS if target is not None else []) + (steps(shape, one) if factory else [])
    step = Steps(names, on_progress)
    limit = limit if isinstance(limit, Limit) else Limit(limit)
    asked_of, tested, stopped = _Asked(), Tested(), None
    with limit.running():
        try:
            pool = torch.zeros(0)
            if target is not None:
                pool = _pool(x, image_shape, images, generator)
                threat.check_fits(*pool.shape[2:])
            for one in threat.threats:
                if target is not None:
                    subject = AuditedCertifier.of(target, made, pool[:1], alerts)
                    _evaluating(target)
                    _try_target(subject, pool, one, images, budget, generator, untested, step, asked_of)
                if factory is not None:
                    classes = num_classes or getattr(target, "num_classes", 4)
                    try_factory(factory, classes, shape, one, 50 * budget, seed, step, alerts, tested)
            if limit.why is not None:  # what was asked last noticed it, and had something to report
                raise Stopped(limit.why)
        except Stopped as stop:
            stopped = str(stop)
    findings += [replace(one, note={**one.note, "classes": made, "alerts": alerts}) for one in asked_of.findings]
    findings += tested.findings
    untested += tested.not_tested
    if stopped is not None:
        untested.append((in_short(step.unfinished), f"stopped by {stopped}"))
    if target is None:
        untested.append(("images", "no certifier was given, only a factory"))
    if factory is None:
        why = "no factory: the base cannot be replaced by one whose votes are dictated"
        untested.append(("affected counts, ties, wraps, strides, swapped sides, views", why))
    untested.append(("other devices, other precisions", "outside of this audit"))
    note = {"threat": threat.threats[0].to_dict(), **(asked or {})}
    note = {key: value for key, value in note.items() if value is not None}
    findings = [replace(one, note={**note, **one.note}) for one in findings]
    shapes = {"x".join(map(str, own)) for own in (asked_of.shape, shape) if own is not None}
    threats = set(map(str, threat.threats))
    named = any(is_named(one, threats, shapes) for one in findings if one.severity == "broken certificate")
    found = gather(findings, threats, shapes)
    if store is not None:
        clear(store)
        found = [save(one, store, n, {}) for n, one in enumerate(found)]
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
        images=asked_of.images,
        certified=asked_of.certified + tested.certified,
        attacked=asked_of.attacked + tested.certified,
        ballots=tested.ballots,
        evaluations=asked_of.spent,
        seconds=time.monotonic() - started,
        shape="x".join(map(str, asked_of.shape or shape)),
        named=named,
        stopped=stopped,
    )


_STEPS = [f"consistency: {name}" for name in CHECKS] + ["looking for votes about to turn", "attacking certified images"]


@dataclass
class _Asked:
    """The result of testing a target: findings, images asked about, numbers certified and attacked, evaluations."""

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    certified: int = 0
    attacked: int = 0
    spent: int = 0
    shape: tuple[int, ...] | None = None


def _try_target(
    subject: AuditedCertifier,
    pool: Float[Tensor, "M C H W"],
    threat: Patches,
    images: int,
    budget: int,
    generator: torch.Generator,
    untested: list[tuple[str, str]],
    on_progress: Progress,
    asked: _Asked,
) -> None:
    """Adds what it finds to `asked` at once, so that nothing is lost when the audit is stopped."""
    asked.shape, asked.images = tuple(pool.shape[1:]), max(asked.images, len(pool))
    try:
        claim = subject.certify(pool, threat)
    except Refused as refusal:
        raise InvalidInput(
            f"certifier does not certify {tuple(pool.shape[1:])} images against {threat}: {refusal}"
        ) from refusal
    for name, check in CHECKS.items():
        on_progress(f"consistency: {name}")
        try:
            for one in check(subject, pool, threat, claim):
                asked.findings.append(replace(one, note={"threat": threat.to_dict(), **one.note}))
        except Refused as refusal:
            untested.append((name, str(refusal)))
    if not isinstance(subject.target, nn.Module):
        untested.append(("training mode", f"a {type(subject.target).__name__} is no nn.Module"))
    try:
        _try_attacks(subject, pool, threat, images, budget, generator, untested, on_progress, asked)
    except Refused as refusal:
        untested.append((_STEPS[-1], str(refusal)))


def _try_attacks(
    subject: AuditedCertifier,
    pool: Float[Tensor, "M C H W"],
    threat: Patches,
    images: int,
    budget: int,
    generator: torch.Generator,
    untested: list[tuple[str, str]],
    on_progress: Progress,
    asked: _Asked,
) -> None:
    """Attack what is certified. Raises `Refused` where the certifier raises an error instead of answering."""
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
    on_progress(_STEPS[-1])
    asked.images = max(asked.images, len(every))
    asked.certified += len(chosen)
    asked.spent += attack_certified(
        subject, every[chosen], claim.prediction[chosen], pool, threat, budget, generator, asked.findings
    )
    asked.attacked += len(chosen)


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
    if target is None or voting_classifier(as_classifier(target)) is not target:
        return None

    def make(base: nn.Module, classes: int, shape: tuple[int, int, int]) -> SmoothedClassifier:
        options = {"voting": target.voting, "encoding": target.encoding}
        return type(target)(base, target.ablation, num_classes=classes, **options).eval()

    return make
