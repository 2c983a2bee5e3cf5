"""--attacks white:50: white patches at 50 random placements, until one changes the prediction."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from robustpatch.attacks.base import Proposal


@dataclass(frozen=True)
class White:
    """Proposes, for each image, the first white patch that changes the prediction, or else the last one tried."""

    tries: int = 50
    budget: int | None = None
    name: ClassVar[str] = "white"
    number: ClassVar[str] = "tries"  # what the number in white:50 is
    touched_only: ClassVar[bool] = False  # it scores the whole image at every try

    def unpruned(self, budget):
        return self

    def check(self, threat):
        """Takes any threat."""

    def __call__(self, model, x, y, threat, *, generator):
        placements = threat.placements(*x.shape[2:])
        x_adv, at = x.clone(), placements[:1].repeat(len(x), 1)
        spent, open_ = torch.zeros(len(x)).long(), torch.ones(len(x)).bool()
        for _ in range(self.tries if self.budget is None else min(self.tries, self.budget)):
            at[open_] = placements[torch.randint(len(placements), (int(open_.sum()),), generator=generator)]
            covered = threat.footprint(at[:, None], *x.shape[2:])[:, None]
            x_adv[open_], spent = torch.where(covered, 1.0, x)[open_], spent + open_
            open_ = open_ & (model.predict(x_adv) == y)
        return Proposal(x_adv, at[:, None], spent, torch.ones(len(x)), broken=~open_)
