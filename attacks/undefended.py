"""An attack that ignores the defense: how much a defense hides from those who do not know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attacks.base import PatchAttack, Proposal
from attacks.criterion import Criterion
from attacks.gradient import climbs
from attacks.propose import propose
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.threats.parse import as_patches


@dataclass(frozen=True)
class Undefended:
    """`attack` on the network inside a defense, its proposals judged, like all others, by the defended classifier.

    The search climbs the bare network and is never told of a success, of the network or of the defense: it spends all
    its steps, and proposes for each image the patch about which the network errs most confidently. An image that it
    does not break, and `attack` itself does, was hidden and not defended: this attack says of no defense that it works,
    and as it tries no placement on the defended classifier (`visited` is 0), it tests no certificate either.
    """

    attack: PatchAttack

    def __post_init__(self) -> None:
        if isinstance(self.attack, Undefended):
            raise InvalidInput(f"attack {self.name} ignores the defense twice; once is all there is")

    @property
    def name(self) -> str:
        return f"undefended-{self.attack.name}"

    @property
    def touched_only(self) -> bool:
        """Never: what is climbed shows neither ablations nor a certificate."""
        return False

    @property
    def needs_gradient(self) -> bool:
        return climbs(self.attack)

    def unpruned(self, budget: int | None) -> Undefended:
        return Undefended(self.attack.unpruned(budget))

    def check(self, threat: Patches) -> None:
        self.attack.check(threat)

    def check_model(self, model: nn.Module) -> None:
        """Raise `InvalidInput` for a classifier without a defense to ignore."""
        self.bare(model)

    def bare(self, model: nn.Module) -> Classifier:
        """The network that is searched."""
        found = as_classifier(model).undefended()
        if found is None:
            raise InvalidInput(
                f"attack {self.name} ignores the defense, but there is none around a {type(model).__name__}; put one "
                f"there with --defense, or use {self.attack.name} itself"
            )
        return found

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"] | Criterion,
        threat: Patches | str,
        *,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        generator = generator or torch.Generator().manual_seed(0)
        threat = as_patches(threat, x.shape[2:])
        found = propose(self.attack, self.bare(model), x, y, threat, generator=generator)
        return replace(found, visited=torch.zeros_like(found.visited))
