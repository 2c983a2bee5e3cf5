"""A network's answers for images under masks: its logits, how far they may move, and whether it couples images."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch import memory, precision
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.base_check import PassedChecks, check_when, scoring_state
from robustpatch.defenses.base import Defended, Defense
from robustpatch.defenses.double_masking import MaskedPredictions, Score
from robustpatch.defenses.masking import MaskSet
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.gradients import in_chunks, numbers_backward
from robustpatch.threats.base import Threat

GUARD_REDUCED = 0.5  # of a logit, in bfloat16, float16 or TF32
_CACHED = 2**19  # values of network input that a CPU's cache holds all layers of
_CELLS = 2**23  # predictions kept at once: images times unions


class MaskingDefense(Defense):
    """A defense that shows its network images under masks."""

    guard: float
    patch: str
    worst: int

    @property
    @abstractmethod
    def shown(self) -> Encoding:
        """The encoding of an image under masks for the network."""

    @abstractmethod
    def mask_set(self, height: int, width: int) -> MaskSet:
        """The masks for images of that size. Raises `InvalidInput`."""


class MaskedNetwork(Defended):
    """A network asked about images under unions of the masks of `defense`, chunk by chunk.

    Hidden pixels are selected away, so that under masks that hide a patch it is shown the same numbers whatever the
    patch. Raises `InvalidInput` for a network that counts votes or has a defense of its own, a chunk below 1, and a
    `check` other than "once" and "every call" (see `check_network`).
    """

    defense: MaskingDefense

    def __init__(
        self,
        network: nn.Module,
        defense: MaskingDefense,
        *,
        num_classes: int,
        chunk: int | None = None,
        check: str = "once",
    ) -> None:
        super().__init__(network, defense, num_classes=num_classes)
        if isinstance(network, Classifier):
            raise InvalidInput(
                f"network is a {type(network).__name__}, whose outputs jump where rounding turns a vote over; the "
                "guard is of logits, so put PatchCleanser around a network without a defense"
            )
        if chunk is not None and chunk < 1:
            raise InvalidInput(f"chunk is {chunk}; it must be at least 1, or None to choose by image size and memory")
        self.chunk = chunk
        self._shown = self.defense.shown
        check_when(check)
        self.check = check
        self.passed = PassedChecks()

    @property
    def guard(self) -> float:
        """The change of a logit that certificates allow for: the defense's, at least 0.5 in less than float32."""
        return self.guard_on(None)

    def guard_on(self, device: torch.device | str | None) -> float:
        """The same for images on that device, as `SmoothedClassifier.guard_on`."""
        reduced = precision.is_reduced_anywhere(self, device)
        return max(self.defense.guard, GUARD_REDUCED) if reduced else self.defense.guard

    def each(self, height: int, width: int) -> int:
        """The evaluations of one image under one union of masks."""
        return super().cost(height, width)[1]

    def logits(
        self, x: Float[Tensor, "B C H W"], image: Int[Tensor, " P"], union: Int[Tensor, " P"]
    ) -> Float[Tensor, "P K"]:
        """The network's float32 logits of image[p] under the masks of union[p]. Differentiable, chunk by chunk."""
        if not len(image):  # a network is never called with no image
            return torch.zeros(0, self.num_classes, device=x.device)
        masks = self.defense.mask_set(*x.shape[2:])
        hidden, members = masks.hidden().to(x.device), masks.unions.to(x.device)

        def score(i: Tensor, u: Tensor) -> Tensor:
            kept = ~hidden[members[u]].any(dim=1)
            return self._network(numbers_backward(self._shown(x[i], kept)))

        values = self._shown.channels(x.shape[1]) * x.shape[2] * x.shape[3]
        chunk = self.chunk or memory.chunk(values, x.device, torch.is_grad_enabled())
        if self.chunk is None and x.device.type == "cpu" and not torch.is_grad_enabled():
            chunk = min(chunk, max(1, _CACHED // values))
        return in_chunks(score, list(zip(image.split(chunk), union.split(chunk), strict=True)))

    def _network(self, shown: Tensor) -> Float[Tensor, "M K"]:
        logits = self.network(precision.matching(self.network, shown))
        if logits.shape != (len(shown), self.num_classes):
            raise InvalidInput(
                f"the network returned logits of shape {tuple(logits.shape)}, not {(len(shown), self.num_classes)}; "
                f"num_classes is {self.num_classes}: make both agree"
            )
        return logits.float()

    def looks(self, x: Float[Tensor, "B C H W"]) -> list[MaskedPredictions]:
        """Returns the network's predictions for the images under masks, computed when asked for; so many images at a
        time.
        """
        masks = self.defense.mask_set(*x.shape[2:])
        size = max(1, _CELLS // len(masks.unions))
        return [
            MaskedPredictions(masks, len(some), self.scoring(some), x.device) for some in x.split(size) if len(some)
        ]

    def scoring(self, x: Float[Tensor, "B C H W"]) -> Score:
        return lambda image, union: self.logits(x, image, union)

    def check_covered(self, masks: MaskSet, threat: Threat) -> None:
        """Raise `InvalidInput` where some placement lies inside no mask."""
        if not masks.covers(threat):
            raise InvalidInput(
                f"patch is {threat}, but the masks are made for {self.defense.patch} and do not hide it everywhere; "
                "defend with patch= the largest that is to be certified"
            )

    @torch.no_grad()
    def check_network(self, x: Float[Tensor, "B C H W"]) -> None:
        """Refuse logits that depend on other images or on chance: the first image alone, beside others and twice.

        Once the network has passed, and unless `robustpatch.classifiers.state_digest` sees a change since or `check` is
        "every call": another image, under the next union of masks, alone and beside others. Raises `InvalidInput`.
        """
        check_when(self.check)
        if not len(x):
            return
        guard = self.guard_on(x.device)
        now = scoring_state(self, x, guard)
        if self.check == "once" and now in self.passed:
            masks, one = self.defense.mask_set(*x.shape[2:]), self.passed.calls % len(x)
            members = masks.unions[self.passed.turn(len(masks.unions), 1)]
            kept = ~masks.hidden()[members].any(dim=0, keepdim=True).to(x.device)
            shown = self._shown(x[one : one + 1], kept)
            others = [self._network(torch.cat([1 - shown, shown]))[1:]]
        else:
            shown = self._shown(x[:1], torch.ones_like(x[:1, 0], dtype=torch.bool))
            batch = torch.cat([1 - shown, shown, torch.ones_like(shown), shown.flip(2, 3)])
            others = [self._network(shown.clone()), self._network(batch)[1:2]]
        self.passed.calls += 1
        alone = self._network(shown.clone())
        checks.finite_scores(alone)
        deviation = float(torch.stack([(alone - again).abs().max() for again in others]).max())
        if not deviation <= guard:
            raise InvalidInput(
                f"logits differ by {deviation:.2g} for the same image alone, beside others and twice; the guard is "
                f"{guard:g}: the network couples images or is random; mend it, or choose a larger guard"
            )
        self.passed.add(now)
