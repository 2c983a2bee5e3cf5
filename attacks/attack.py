"""The base class of attacks: the call, and the parameters that bound it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import Proposal, require
from attacks.criterion import Criterion
from attacks.gradient import NotDifferentiable
from attacks.image_by_image import image_by_image
from attacks.search import Search
from robustpatch.threats.base import Patches
from robustpatch.threats.parse import as_patches

A = TypeVar("A", bound="Attack")


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search for adversarial patches; see `PatchAttack` for what it promises.

    Args:
        budget: evaluations an image; None for no limit. No new step of an image is begun beyond it.
        touched_only: score only the ablations that the patch touches, of a `SmoothedClassifier` or one behind
            PatchGuard, and heed the certificate where the attack can. Of PatchCleanser, look at the clean images for a
            quarter of the budget at most, and climb a few views alone.
        batch: attacked images scored at once; memory follows it, and so do rounding errors and what an image pays for
            the climbs under way when it breaks or its budget ends.
    """

    needs_gradient: ClassVar[bool] = False  # whether it climbs gradients of the model, and cannot do without
    budget: int | None = None
    touched_only: bool = True
    batch: int = 512

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "at least 1")
        require(self.budget is None or self.budget >= 1, "budget", self.budget, "at least 1, or None for no limit")

    @property
    @abstractmethod
    def name(self) -> str: ...

    def check(self, threat: Patches) -> None:  # noqa: B027  no duty to refuse any
        """Raise `InvalidInput` where the attack cannot search this threat; most search every one."""

    def unpruned(self: A, budget: int | None) -> A:
        """The same, leaning on nothing that a certificate says, within another budget."""
        return replace(self, touched_only=False, budget=budget)

    def __call__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"] | Criterion,
        threat: Patches | str,
        *,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Search a patch for each image that meets the criterion; for labels y: that changes the prediction. The threat
        may be a text, "5x5". Chance is the `generator`'s alone; None: one of seed 0. Raises `InvalidInput`.
        """
        generator = generator or torch.Generator().manual_seed(0)
        threat = as_patches(threat, x.shape[2:])
        self.check(threat)
        if threat.varies:
            return image_by_image(self, model, x, y, threat, generator)
        search = Search(model, x, y, threat, touched_only=self.touched_only, budget=self.budget, generator=generator)
        try:
            self._run(search)
        except NotDifferentiable as error:
            error.evaluations = search.evaluations
            raise
        return search.proposal()

    @abstractmethod
    def _run(self, search: Search) -> None:
        """Spend evaluations, and offer `search` what was found."""
