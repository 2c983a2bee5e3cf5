"""A factory's certifier around a dictated base: which views a patch changes, and what is then claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from evaluate.audit.certifier import AuditedCertifier, Raised, Refused, told
from evaluate.audit.dictated_base import Answers, DictatedBase, Key
from evaluate.audit.finding import Finding
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.threats.rectangle import PatchThreat

Factory = Callable[[nn.Module, int, tuple[int, int, int]], Any]  # base, classes, (C,H,W) -> certifier


@dataclass(frozen=True, eq=False)
class Site:
    """A place of the patch: the image changed there in every pixel, and the clean views that it no longer shows."""

    corners: Int[Tensor, "count 2"]
    x_adv: Float[Tensor, "1 C H W"]
    touched: set[Key]
    weight: int


class Harness:
    """One image of noise, and the certifier that `factory` makes around a `DictatedBase` for images of its shape.

    Raises `InvalidInput` where the factory makes no certifier, or one that never asks its base.
    """

    def __init__(
        self,
        factory: Factory,
        classes: int,
        shape: tuple[int, int, int],
        seed: int = 0,
        x: Float[Tensor, "1 C H W"] | None = None,
        alerts: bool | int = False,
    ) -> None:
        self.factory, self.classes, self.shape, self.alerts = factory, classes, shape, alerts
        self.x = noise(1, shape, torch.Generator().manual_seed(seed)) if x is None else x
        self.remembers = False  # whether the certifier keeps answers, so that other votes need a new one
        self.renew()
        self._extra: dict[Patches, list[Key]] = {}
        self._varies: dict[Patches, bool] = {}
        self.chance = False  # whether the views are known to differ from call to call
        self.shown = self.views(self.x)
        if not self.shown:
            raise InvalidInput("factory's certifier predicts without asking its base; give it the base it was handed")
        often = gcd(*self.shown.values())  # a certifier that asks about everything twice does not count it twice
        self.shown = Counter({key: number // often for key, number in self.shown.items()})
        self.total = sum(self.shown.values())
        self.remembers = not self.views(self.x)

    def renew(self, answers: Answers | None = None) -> None:
        """Make a new certifier, which keeps nothing of earlier answers, around a new base."""
        self.base = DictatedBase(self.classes).eval()
        try:
            target = self.factory(self.base, self.classes, self.shape)
        except Exception as error:  # foreign code
            raise Raised(
                f"factory makes no certifier of {self.classes} classes for images {self.shape} ({told(error)})"
            ) from error
        self.subject = AuditedCertifier.of(target, self.classes, self.x, self.alerts)
        if answers is not None:
            self.base.dictate(answers)

    def dictate(self, answers: Answers) -> None:
        """Let the base answer so from now on; a certifier that remembers earlier answers is made anew."""
        if self.remembers:
            self.renew()
        self.base.dictate(answers)

    def views(self, x: Float[Tensor, "1 C H W"], threat: Patches | None = None) -> Counter[Key]:
        """The views that the base is shown by `predict`, or by `certify` against a threat."""
        with self.base.recording() as shown:
            if threat is None:
                self.subject.predict(x)
            else:
                self.subject.certify(x, threat)
        return shown

    def extra(self, threat: Patches) -> list[Key]:
        """The views that `certify` shows its base and `predict` does not."""
        if threat not in self._extra:
            first = self.views(self.x, threat)
            self._extra[threat] = [key for key in first if key not in self.shown]
            if first and not self.views(self.x, threat):
                self.remembers = True
        return self._extra[threat]

    def varies(self, threat: Patches, calls: int = 3) -> bool:
        """Tells whether the views of one image, answered alike, differ from call to call: a later call shows one that
        no earlier one did. Of what `certify` shows, only views that `predict` shows too count: it may look at others.
        Once seen, it is believed of all patches: draws with few outcomes may come out alike for a while.
        """
        if not self.chance and threat not in self._varies:
            calls = calls if self._varies else 3 * calls
            for asked in (None, threat):
                known: set[Key] = set(self.shown) if asked is None else set()
                for _ in range(calls):
                    try:
                        shown = set(self.views(self.x, asked))
                    except Refused:
                        break
                    shown = shown if asked is None else shown & set(self.shown)
                    self.chance |= bool(known and shown - known)
                    known |= shown
            self._varies[threat] = self.chance
        return self.chance

    @cached_property
    def reach(self) -> int:
        """Counts the views that show the middle pixel."""
        middle = torch.tensor([[self.shape[1] // 2, self.shape[2] // 2]])
        return self.site(PatchThreat(1, 1), middle).weight

    def site(self, threat: Patches, corners: Int[Tensor, "count 2"]) -> Site:
        """The image with every pixel there changed, and the views that this changes."""
        x_adv = repainted(self.x, threat.footprint(corners[None], *self.shape[1:]))
        left = self.views(x_adv)
        touched = {key for key in self.shown if key not in left}
        return Site(corners, x_adv, touched, sum(self.shown[key] for key in touched))

    def sites(self, threat: Patches, most: int, generator: torch.Generator) -> list[Site]:
        """All places of the patch, or `most` of them: the corners of the image, its middle, and random others."""
        places = threat.placements(*self.shape[1:])
        columns, last = self.shape[2] - threat.width + 1, len(places) - 1
        named = [0, columns - 1, last - columns + 1, last, (len(places) // columns // 2) * columns + columns // 2]
        order = list(dict.fromkeys([*named, *torch.randperm(len(places), generator=generator).tolist()]))[:most]
        if threat.count == 1:
            return [self.site(threat, places[n][None]) for n in order]
        partners = torch.randint(len(places), (len(order), threat.count - 1), generator=generator)
        return [
            self.site(threat, torch.cat([places[n][None], places[others]]))
            for n, others in zip(order, partners, strict=True)
        ]


def noise(number: int, shape: tuple[int, int, int], generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Images of steps of 1/64 from 9/64 to 55/64: no pixel is black, white, or what `repainted` makes of it."""
    return torch.randint(9, 56, (number, *shape), generator=generator).float() / 64


def repainted(x: Float[Tensor, "B C H W"], inside: Bool[Tensor, "B H W"]) -> Float[Tensor, "B C H W"]:
    """The images with every pixel inside moved by 3/8, up or down, as there is room."""
    return torch.where(inside[:, None], x + torch.where(x < 0.5, 0.375, -0.375), x)


def view_findings(harness: Harness, threat: Patches) -> list[Finding]:
    """Checks that `predict` shows its base the same views every time, that `certify` shows it those too, and that
    neither writes to the caller's image.
    """
    note = {"kind": "views", "threat": threat.to_dict(), "classes": harness.classes}

    def finding(check: str, sentence: str) -> Finding:
        return Finding(check, "inconsistent", sentence, {"x": harness.x[0]}, note)

    if harness.varies(threat) and not harness.subject.random:
        sentence = (
            "the certifier asks its base about different views from call to call: asked again about one image, "
            "it showed views that it had not shown before"
        )
        return [finding("views", sentence)]
    findings: list[Finding] = []
    for name, more in (("predict", ()), ("certify", (threat,))):
        try:
            left = harness.subject.watched(name, harness.x, *more)
        except Refused:
            continue
        if not torch.equal(left, harness.x):
            findings.append(finding("inputs", f"{name} writes to the caller's images"))
    try:
        certified = harness.views(harness.x, threat)
    except Refused:
        return findings
    missing = [key for key in harness.shown if key not in certified]
    if certified and missing and not harness.subject.random:
        sentence = (
            f"certify never shows its base {len(missing)} of the {len(harness.shown)} views of the image that predict "
            "votes by, so it speaks of other votes"
        )
        findings.append(finding("views", sentence))
    return findings
