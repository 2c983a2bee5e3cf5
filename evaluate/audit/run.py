"""The audit: every test that can be made of a certifier, and a list of those that cannot."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evaluate.audit.certifier import AuditedCertifier, check_methods
from evaluate.audit.factory import steps, try_factory
from evaluate.audit.finding import Audit, Tally, gather
from evaluate.audit.harness import Factory
from evaluate.audit.images import structured
from evaluate.audit.reproducer import clear, save
from evaluate.audit.stopping import Limit, Steps, Stopped, in_short
from evaluate.audit.target import STEPS, try_target
from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store, local_folder
from robustpatch.threats.base import Threat
from robustpatch.threats.rectangle import AreaShare, PatchThreat


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
    on_progress: Callable[[str], None] = lambda _: None,
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
    started, generator = time.monotonic(), torch.Generator().manual_seed(seed)
    for name, value in (("images", images), ("budget", budget)):
        if value < 1:
            raise InvalidInput(f"{name} is {value}; it must be at least 1")
    if target is None and factory is None:
        raise InvalidInput("target and factory are both None; give a certifier, or a factory that makes one, or both")
    threat = threat or PatchThreat(5, 5)
    others = [str(one) for one in threat.threats if not isinstance(one, PatchThreat | AreaShare)]
    if others:
        raise InvalidInput(f"threat is {', '.join(others)}, but the audit tries rectangles; give some, such as 5x5")
    with ExitStack() as held:
        store = None
        if output is not None:
            store = output if isinstance(output, Store) else Store(local_folder(output))
            held.enter_context(store.held(alone=True))
            store.check_writable()
        if target is not None:
            check_methods(target)
        classes = _classes(target, num_classes)
        factory = factory or own_factory(target)
        shape, pool = image_shape or (1, 40, 40), None
        names = [
            step
            for one in threat.threats
            for step in [*(STEPS if target is not None else ()), *(steps(shape, one) if factory else ())]
        ]
        step, of_target, of_factory, stopped = Steps(names, on_progress), Tally(), Tally(), None
        limit = limit if isinstance(limit, Limit) else Limit(limit)
        with limit.running():
            try:
                if target is not None:
                    pool = _pool(x, image_shape, images, generator)
                    threat.check_fits(*pool.shape[2:])
                for one in threat.threats:
                    if pool is not None:
                        subject = AuditedCertifier.of(target, classes, pool[:1], alerts)
                        if isinstance(target, nn.Module):
                            checks.evaluation_mode(target)
                        try_target(subject, pool, one, images, budget, generator, of_target, step)
                    if factory is not None:
                        try_factory(factory, classes, shape, one, 50 * budget, seed, step, alerts, of_factory)
                if limit.why is not None:  # what was asked last noticed it, and had something to report
                    raise Stopped(limit.why)
            except Stopped as stop:
                stopped = str(stop)
        untested = [*of_target.not_tested, *of_factory.not_tested]
        if stopped is not None:
            untested.append((in_short(step.unfinished), f"stopped by {stopped}"))
        if target is None:
            untested.append(("images", "no certifier was given, only a factory"))
        if factory is None:
            why = "no factory: the base cannot be replaced by one whose votes are dictated"
            untested.append(("affected counts, ties, wraps, strides, swapped sides, views", why))
        untested.append(("other devices, other precisions", "outside of this audit"))
        told = {name: value for name, value in (asked or {}).items() if value is not None}
        note = {"threat": threat.threats[0].to_dict(), **told}
        findings = [replace(one, note={**one.note, "classes": classes, "alerts": alerts}) for one in of_target.findings]
        findings = [replace(one, note={**note, **one.note}) for one in [*findings, *of_factory.findings]]
        threats, tried = set(map(str, threat.threats)), shape if pool is None else tuple(pool.shape[1:])
        shapes = {"x".join(map(str, own)) for own in (tried, shape)}
        found = gather(findings, threats, shapes)
        if store is not None:
            clear(store)
            found = [save(one, store, n) for n, one in enumerate(found)]
    return Audit(
        name=str(told.get("target") or told.get("factory") or type(factory if target is None else target).__name__),
        threat=str(threat),
        findings=tuple(found),
        untested=tuple(untested),
        views=tuple(of_factory.views),
        images=of_target.images,
        certified=of_target.certified + of_factory.certified,
        attacked=of_target.attacked + of_factory.attacked,
        ballots=of_factory.ballots,
        evaluations=of_target.evaluations,
        seconds=time.monotonic() - started,
        shape="x".join(map(str, tried)),
        named=any(one.is_of(threats, shapes) for one in findings if one.severity == "broken certificate"),
        stopped=stopped,
    )


def _pool(
    x: Tensor | None, image_shape: tuple[int, int, int] | None, images: int, generator: torch.Generator
) -> Float[Tensor, "M C H W"]:
    """The images asked about: those given or of the sample, and structured ones."""
    if x is None:
        sample = load_images("mnist-sample")
        shape = image_shape or sample.image_shape
        x = sample.batch(range(min(images, len(sample))))[0] if shape == sample.image_shape else torch.zeros(0, *shape)
    else:
        checks.image_values(x)
        if image_shape is not None and tuple(x.shape[1:]) != tuple(image_shape):
            raise InvalidInput(f"image_shape is {image_shape}, but x has {tuple(x.shape[1:])}; leave one out")
    channels, height, width = x.shape[1:]
    return torch.cat([x[:images].detach().cpu().float(), structured((channels, height, width), images, generator)])


def _classes(target: Any, num_classes: int | None) -> int:
    found = num_classes
    if found is None:
        found = 4 if target is None else getattr(target, "num_classes", None)
    if isinstance(found, bool) or not isinstance(found, int) or found < 2:
        raise InvalidInput(f"num_classes is {found!r}; name the number of classes, at least two")
    return found


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
