"""PatchCleanser: hide the patch by masks, wherever it is, and believe what the rest of the image says (Xiang 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustpatch.certificates.each_image import certify_each
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.defenses.double_masking import certify, infer, leads
from robustpatch.defenses.masked_network import GUARD_REDUCED, MaskedNetwork, MaskingDefense
from robustpatch.defenses.masking import Boxes, MaskSet, Outlines
from robustpatch.defenses.soft_masking import soft_inference, worst_unions
from robustpatch.encoding import Encoding, Fill, encoding_named
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.parse import as_threat, parse_threat

__all__ = ["GUARD_REDUCED", "DoubleMasking", "PatchCleanser"]


@dataclass(frozen=True)
class DoubleMasking(MaskingDefense):
    """Certified for every threat whose placements each lie inside one of the masks, which are made for `patch`.

    Args:
        masks: how many along each axis, "6", or down and across, "6x4".
        patch: what the masks are made to hide, "5x5" or, for two patches, "2*5x5".
        tight: whether masks have the outline of what `patch` covers, moved over the places that one mask is for,
            without the corners of the rectangle around it (see `masking.Outlines`); `patch` may then be alternatives.
        hidden: what hidden pixels show: "mask" (0, and one more channel that says so), "complement" (0 in 2C
            channels), or a number in [0, 1] in every channel, for a network that takes images as they are.
        guard: the change of a logit by rounding that certificates allow for; 200 times the largest measured (5e-6, over
            batch sizes, companions and threads, with logits up to 19). In less than float32 at least 0.5.
        worst: of training, how many masks are tried to find the first of the pair that is worst for an image, and then
            the second; 0: pairs are drawn at random.
    """

    name: ClassVar[str] = "patchcleanser"
    masks: str = "6"
    patch: str = "5x5"
    hidden: str = "0.5"
    guard: float = 1e-3
    worst: int = 0
    tight: bool = False

    def __post_init__(self) -> None:
        _ = self.per_axis, self.shown
        if not (isfinite(self.guard) and self.guard >= 0):
            raise InvalidInput(f"guard is {self.guard}; it must be a number of at least 0")
        if self.worst < 0:
            raise InvalidInput(f"worst is {self.worst}; give a number of masks to try, or 0 for random pairs")

    @property
    def per_axis(self) -> tuple[int, int]:
        """The number of masks down and across."""
        parts = str(self.masks).lower().split("x")
        if len(parts) > 2 or not all(part.strip().isdecimal() and len(part) <= 9 and int(part) >= 1 for part in parts):
            raise InvalidInput(f'masks is {self.masks!r}; use "6", or "6x4" for 6 down and 4 across')
        return int(parts[0]), int(parts[-1])

    @property
    def shown(self) -> Encoding:
        """The encoding by which an image under masks is shown to the network."""
        try:
            value = float(self.hidden)
        except ValueError:
            return encoding_named(self.hidden)
        if not 0 <= value <= 1:
            raise InvalidInput(f'hidden is {self.hidden}; a fill value must lie in [0, 1]; or use "mask"')
        return Fill(value)

    @property
    def encoding(self) -> Encoding | None:
        return None if isinstance(self.shown, Fill) else self.shown

    def mask_set(self, height: int, width: int) -> MaskSet:
        """The masks for images of that size. Raises `InvalidInput`."""
        return _mask_set(self.patch, self.tight, self.per_axis, (height, width))

    def wrap(self, network: nn.Module, *, num_classes: int) -> MaskedNetwork:
        return PatchCleanser(network, self, num_classes=num_classes)


@lru_cache(maxsize=32)
def _mask_set(patch: str, tight: bool, masks: tuple[int, int], image_size: tuple[int, int]) -> MaskSet:
    threat = parse_threat(patch, image_size, files=False)
    if tight:
        return Outlines.for_threat(threat, masks, image_size)
    one, *others = threat.threats
    if others:
        raise InvalidInput(
            f"patch is {patch!r}, which are several; the masks are made for one: name the largest of them, or say "
            "tight=true for masks that hide each"
        )
    return Boxes.for_patch(one, masks, image_size)


class PatchCleanser(MaskedNetwork, CertifiedClassifier):
    """A classifier of images under masks, whose certified predictions no patch within the threat changes.

    `predict` is double masking: the class named under every mask; where they differ, that of a dissenting mask under
    which no second mask changes the answer; else the majority's. `certify` finds the images of which, wherever the
    patch is, some mask hides it under which no second mask changes the class, by more than 2·guard in logits; for these
    `predict` of the attacked image is the same: the proof is at `double_masking.certify`. With the patch that the masks
    are made for, that takes all pairs of masks; smaller ones are hidden by several. It takes one thing for granted: an
    image under masks that hide the patch gets the logits of the clean image under them, up to `guard`. Hidden pixels
    are selected away, so the network is shown the same numbers; every call that certifies tests that it answers alike
    alone and beside others (`check_network`), the first one most thoroughly.

        model = PatchCleanser(network, DoubleMasking(patch="32x32"), num_classes=1000).eval()
        certificate = model.certify(x, PatchThreat(32, 32))

    Args:
        network: maps images as `defense.hidden` shows them [M,E,H,W] to logits [M,K]; none that counts votes or has a
            defense of its own: where a vote turns by rounding, its outputs move by more than any guard of logits.
        chunk: masked images scored at once; None chooses by image size and free memory.
        check: when the network is tested in full: "once", and again whenever it has changed, or at "every call".
    """

    certified_in_training: ClassVar[int] = 100
    predicted_in_training: ClassVar[int | None] = 500

    def __init__(
        self,
        network: nn.Module,
        defense: DoubleMasking | None = None,
        *,
        num_classes: int,
        chunk: int | None = None,
        check: str = "once",
    ) -> None:
        super().__init__(network, defense or DoubleMasking(), num_classes=num_classes, chunk=chunk, check=check)

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """Masked images that the network scores of one image, at most: for `forward`, and for `predict`."""
        masks, each = self.defense.mask_set(height, width), self.each(height, width)
        return 2 * len(masks.views) * each, len(masks.unions) * each

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """Double masking's answer (see `double_masking.infer`). A view whose logits name no class, as where a patch
        made the network overflow, is not heard; -1 where all are such, which no patch does to a certified image.
        """
        return self.predict_with_cost(x)[0]

    @torch.no_grad()
    def predict_with_cost(self, x: Float[Tensor, "B C H W"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Returns `predict`'s answer, and the evaluations it took of each image: 36 of 36 masks where these agree."""
        checks.inputs(self, x)
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        found, spent = [none], [none]
        for looks in self.looks(x):
            found.append(infer(looks))
            spent.append(looks.evaluations * self.each(*x.shape[2:]))
        return torch.cat(found), torch.cat(spent)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """Prove, for each image, that no patch within `threat` changes `predict`.

        `close` counts the unions that were seen to name the class by no more than 2·guard. Raises `InvalidInput` where
        some placement lies inside no mask, and for a network whose logits differ alone and beside others.
        """
        checks.inputs(self, x)
        threat = as_threat(threat, x.shape[2:])
        threat.check_fits(x.shape[2], x.shape[3])
        if threat.varies:
            return certify_each(self.certify, x, threat)
        masks = self.defense.mask_set(*x.shape[2:])
        self.check_covered(masks, threat)
        self.check_network(x)
        guard = self.guard_on(x.device)
        hiding = masks.hiding(threat)
        prediction, certified, close = [], [], []
        for looks in self.looks(x):
            found, holds = certify(looks, guard, hiding)
            prediction.append(found)
            certified.append(holds)
            close.append((looks.gap <= 2 * guard).sum(dim=1))
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        return Certificate(
            prediction=torch.cat([none, *prediction]),
            certified=torch.cat([none.bool(), *certified]),
            margin=None,
            placement_margin=None,
            threat=threat,
            method="exact",
            guard=guard,
            close=torch.cat([none, *close]),
        )

    @torch.no_grad()
    def named_under_unions(
        self, x: Float[Tensor, "B C H W"], asked: Bool[Tensor, " B"]
    ) -> tuple[Int[Tensor, "B U"], Float[Tensor, "B U"]]:
        """The evidence behind `certify`: the class under every union of masks, and its lead over the others in logits,
        of the images `asked`; -1 and 0 for all others.
        """
        masks = self.defense.mask_set(*x.shape[2:])
        named = torch.full((len(x), len(masks.unions)), -1, dtype=torch.int32, device=x.device)
        lead, first = torch.zeros(named.shape, device=x.device), 0
        unions, rows = torch.arange(named.shape[1], device=x.device), asked.nonzero()[:, 0]
        for looks in self.looks(x[rows]):
            own = rows[first : first + len(looks.prediction)]
            looks.ask(torch.arange(len(own), device=x.device)[:, None].expand(-1, len(unions)), unions)
            named[own], lead[own] = looks.prediction, looks.gap.float()
            first += len(own)
        return named, lead

    @torch.no_grad()
    def placement_margins(self, x: Float[Tensor, "B C H W"], threat: Patches) -> Float[Tensor, "B L"]:
        """The vulnerability map of one patch: above 0 at each placement, in row-major order, where no content of it
        changes `predict`.

        It is the logits by which the prediction leads under some view that hides the patch and any second view, the
        best such view and the worst second one, less 2·guard. Asks all unions. Raises `InvalidInput`.
        """
        checks.inputs(self, x)
        threat.check_fits(x.shape[2], x.shape[3])
        if threat.count > 1:
            raise InvalidInput(f"patch is {threat}; only one patch has a map of its placements")
        masks = self.defense.mask_set(*x.shape[2:])
        self.check_covered(masks, threat)
        self.check_network(x)
        guard = self.guard_on(x.device)
        hides, unions = masks.hiding_at(threat).to(x.device), torch.arange(len(masks.unions), device=x.device)
        found = [x.new_zeros(0, len(hides), dtype=torch.float32)]
        for looks in self.looks(x):
            looks.ask(torch.arange(len(looks.prediction), device=x.device)[:, None].expand(-1, len(unions)), unions)
            lead = leads(looks, infer(looks), guard)[0]
            looks.check_finite()
            found += [torch.where(hides, own, -torch.inf).amax(dim=1)[None] for own in lead]
        return torch.cat(found)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Returns scores for attacks to climb. Their argmax is `predict`, unless the surest dissenting view falls and
        another stands: to know that takes what `predict` may take, all unions, and this asks no more than two rounds of
        views (see `soft_masking.soft_inference`).
        """
        masks = self.defense.mask_set(*x.shape[2:])
        return soft_inference(self.scoring(x), masks, torch.arange(len(x), device=x.device))

    def training_loss(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat, generator: torch.Generator, done: float
    ) -> Float[Tensor, ""]:
        """Cross-entropy of each image under a pair of views drawn for it, or, with `defense.worst`, the worst found
        among so many (see `soft_masking.worst_unions`). Raises `InvalidInput` where the masks do not cover the threat.
        """
        masks = self.defense.mask_set(*x.shape[2:])
        self.check_covered(masks, threat)
        views, tried = len(masks.views), min(self.defense.worst or 1, len(masks.views))
        drawn = [torch.rand(len(x), views, generator=generator).argsort(dim=1)[:, :tried] for _ in range(2)]
        first, second = (some.to(x.device) for some in drawn)
        union = masks.pair.to(x.device)[first, second][:, 0]
        if self.defense.worst:
            training = self.network.training
            self.network.eval()
            try:
                union = worst_unions(self.scoring(x), masks, y, first, second)
            finally:
                self.network.train(training)
        return nn.functional.cross_entropy(self.logits(x, torch.arange(len(x), device=x.device), union), y)
