"""A factory's certifier around a base that answers by heart: which views a patch changes, and what is then claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evaluate.audit.finding import Finding
from evaluate.audit.interface import AuditedCertifier, Raised, Refused, told
from evaluate.audit.tables import Key, Row, TableBase
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


class Stand:
    """One image of noise, and the certifier that `factory` makes around a `TableBase` for images of its shape.

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
        # Steps of 1/64 from 9/64 to 55/64: no pixel is black, white, or what it becomes under a patch.
        levels = torch.randint(9, 56, (1, *shape), generator=torch.Generator().manual_seed(seed))
        self.x = levels.float() / 64 if x is None else x
        self.remembers = False  # whether the certifier keeps answers, so that other votes need a new one
        self.subject, self.base = self.made()
        self._extra: dict[Patches, list[Key]] = {}
        self._varies: dict[Patches, bool] = {}
        self.chance = False  # whether the views are known to differ from call to call
        self.shown = self.views(self.x)
        if not self.shown:
            raise InvalidInput("factory's certifier predicts without asking its base; give it the base it was handed")
        often = gcd(*self.shown.values())  # a certifier that asks about everything twice does not count it twice
        self.shown = Counter({key: number // often for key, number in self.shown.items()})
        self.remembers = not self.views(self.x)

    def made(self) -> tuple[AuditedCertifier, TableBase]:
        """A new certifier around a new base."""
        base = TableBase(self.classes).eval()
        try:
            target = self.factory(base, self.classes, self.shape)
        except Exception as error:  # foreign code
            raise Raised(
                f"factory makes no certifier of {self.classes} classes for images {self.shape} ({told(error)})"
            ) from error
        return AuditedCertifier.of(target, self.classes, self.x, self.alerts), base

    def say(self, answers: Mapping[Key, Row], others: Row) -> None:
        """Let the base answer so, from now on; a certifier that remembers what was answered before is made anew."""
        if self.remembers:
            self.subject, self.base = self.made()
        self.base.say(answers, others)

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
        Once seen, it is believed of all patches: lots with few outcomes may fall alike for a while.
        """
        if self.chance:
            return True
        if threat not in self._varies:
            found, calls = False, calls if self._varies else 3 * calls
            for asked in (None, threat):
                known: set[Key] = set(self.shown) if asked is None else set()
                for _ in range(calls):
                    try:
                        shown = set(self.views(self.x, asked))
                    except Refused:
                        break
                    shown = shown if asked is None else shown & set(self.shown)
                    found |= bool(known and shown - known)
                    known |= shown
            self._varies[threat] = self.chance = found
        return self._varies[threat]

    @cached_property
    def reach(self) -> int:
        """Counts the views that show the middle pixel."""
        middle = torch.tensor([[self.shape[1] // 2, self.shape[2] // 2]])
        return self.site(PatchThreat(1, 1), middle).weight

    def site(self, threat: Patches, corners: Int[Tensor, "count 2"]) -> Site:
        """The image with every pixel there moved by 1/2 (up or down, as there is room), and what that changes."""
        inside = threat.footprint(corners[None], *self.shape[1:])[:, None]
        x_adv = torch.where(inside, self.x + torch.where(self.x < 0.5, 0.5, -0.5) * 0.75, self.x)
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


def view_findings(stand: Stand, threat: Patches) -> list[Finding]:
    """Checks that `predict` shows its base the same views every time, that `certify` shows it those too, and that
    neither writes to the caller's image.
    """
    note = {"kind": "views", "threat": threat.to_dict(), "classes": stand.classes}
    tensors, findings = {"x": stand.x[0]}, []
    if stand.varies(threat) and not stand.subject.random:
        sentence = (
            "the certifier asks its base about different views from call to call: asked again about one image, "
            "it showed views that it had not shown before"
        )
        return [Finding("views", "inconsistent", sentence, tensors, note)]
    for name, more in (("predict", ()), ("certify", (threat,))):
        try:
            left = stand.subject.watched(name, stand.x, *more)
        except Refused:
            continue
        if not torch.equal(left, stand.x):
            findings.append(Finding("inputs", "inconsistent", f"{name} writes to the caller's images", tensors, note))
    try:
        certified = stand.views(stand.x, threat)
    except Refused:
        return findings
    missing = [key for key in stand.shown if key not in certified]
    if certified and missing and not stand.subject.random:
        sentence = (
            f"certify never shows its base {len(missing)} of the {len(stand.shown)} views of the image that predict "
            "votes by, so it speaks of other votes"
        )
        findings.append(Finding("views", "inconsistent", sentence, tensors, note))
    return findings
