"""An attack that ignores the defense: how much a defense hides from those who do not know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attacks.base import PatchAttack, Proposal, outputs
from attacks.border import propose
from attacks.gradient import climbs
from robustpatch.defenses import Defended
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches


@dataclass(frozen=True)
class Undefended:
    """`attack` on the network inside a defense, its proposals judged, like all others, by the defended classifier.

    The search climbs the bare network and is never told of a success, of the network or of the defense: it spends all
    its steps, and proposes for each image the patch about which the network errs most confidently. What stands under it
    and falls under `attack` itself was hidden, not defended: no number of this attack says that a defense works, and as
    it tries no placement on the defended classifier (`visited` is 0), it tests no certificate either.
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
        if not isinstance(model, Defended):
            raise InvalidInput(
                f"attack {self.name} ignores the defense, but there is none around a {type(model).__name__}; put one "
                f"there with --defense, or use {self.attack.name} itself"
            )

    def bare(self, model: nn.Module) -> Bare:
        """The network that is searched."""
        self.check_model(model)
        assert isinstance(model, Defended)
        return Bare(model.network, model.defense, num_classes=model.num_classes).eval()

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"],
        threat: Patches,
        *,
        generator: torch.Generator,
    ) -> Proposal:
        found = propose(self.attack, self.bare(model), x, y, threat, generator=generator)
        return replace(found, visited=torch.zeros_like(found.visited))


class Bare(Defended):
    """The network without the defense, shown whole images, whose `predict` always abstains and says that this is chance
    (see `attacks.base.is_adversarial`): no search learns whether it has succeeded.
    """

    randomized = True

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        encoding = self.defense.encoding
        if encoding is not None:
            x = encoding(x, torch.ones_like(x[:, 0], dtype=torch.bool))
        return outputs(self.network, x)

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        return torch.full((len(x),), -1, device=x.device)

    def evaluations(self, height: int, width: int) -> tuple[int, int]:
        """A forward pass costs what the network does, `predict` nothing."""
        return super().evaluations(height, width)[0], 0
