"""What an attack returns, and the judge who decides whether it counts."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from attacks.criterion import Criterion, as_criterion, counts_for, is_broken
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.isolation import predict
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches


@dataclass(frozen=True)
class Proposal:
    """Images that an attack believes to be adversarial, and where it put the patch.

    Attributes:
        x_adv: the attacked images. corners: the top-left corners (row, column) of the `count` rectangles.
        evaluations: work spent on each image. One evaluation is one ablation (or, for an undefended model, one image)
            scored forward; a backward pass counts as one more.
        visited: share of the placements open to the attacker that were tried, 0 to 1.
        by: of an ensemble, the name of the member that proposed each image.
        patches: of an `Ensemble`, the distinct patched images, by hash, that its judge was asked about for each image,
            those of controls left out. From any other attack it is ignored: what was judged is counted by the judge.
        broken: the images of which a search saw the model's own answer break the criterion; None where that is not
            known. The judge decides all the same, but where the two disagree neither is believed.
    """

    x_adv: Float[Tensor, "B C H W"]
    corners: Int[Tensor, "B count 2"]
    evaluations: Int[Tensor, " B"]
    visited: Float[Tensor, " B"]
    by: list[str] | None = None
    patches: list[frozenset[str]] | None = None
    broken: Bool[Tensor, " B"] | None = None


@dataclass(frozen=True)
class Outcome:
    """The judge's finding on each image: `broken` iff `contained`, `in_range` and the criterion is met. `counts` [B,K]:
    votes or scores of the attacked images, where the criterion needs them.
    """

    broken: Bool[Tensor, " B"]
    contained: Bool[Tensor, " B"]
    in_range: Bool[Tensor, " B"]
    prediction: Int[Tensor, " B"]
    counts: Num[Tensor, "B K"] | None = None


@runtime_checkable
class PatchAttack(Protocol):
    """Searches, for each image, a patch within the threat that breaks the criterion.

    `y` are labels, from which the prediction is to move away, or an `attacks.criterion.Criterion`. `model` is whatever
    the caller has; `as_classifier(model)` makes a `Classifier` of it.

    Deterministic under `generator` (a CPU generator), batched, and never writes to its inputs (the evaluator gives it
    copies all the same). What it proposes is the best patch that it tried, never the clean image where it tried any:
    an image of which no patch is judged counts as not tested. `touched_only` says
    that it re-scores only the ablations which the patch touches, or skips placements that the certificate closes:
    such an attack must not be used to test that certificate; `unpruned(budget)` is the same attack without both, and
    with that many evaluations an image (None: no limit). One that asks `judge` itself, as an ensemble does of its
    members' proposals, says by an attribute `judged` of how many of them for an image: of each a referee may err. One
    that cannot do without gradients says so by an attribute `needs_gradient`, True; it is refused, or in an ensemble
    left out, where the model has none.
    """

    @property
    def name(self) -> str: ...

    @property
    def touched_only(self) -> bool: ...

    def unpruned(self, budget: int | None) -> PatchAttack: ...

    def check(self, threat: Patches) -> None:
        """Raise `InvalidInput` where the attack cannot search this threat: before any work is done."""
        ...

    def __call__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"] | Criterion,
        threat: Patches,
        *,
        generator: torch.Generator,
    ) -> Proposal: ...


def judge_of(classifier: Classifier) -> Classifier:
    """The classifier whose `predict` decides whether an attack on this one succeeded: the `referee()` of a randomized
    one, or itself.
    """
    return as_classifier(classifier.referee()) if classifier.randomized else classifier


def judge(
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"] | Criterion,
    threat: Patches,
    proposal: Proposal,
    *,
    proof: bool = False,
) -> Outcome:
    """Decide from the images alone: the changed pixels lie in those very rectangles, all values in [0, 1], and the
    answer to the whole attacked image breaks the criterion (labels `y`: the prediction is no longer y; see `is_broken`
    for abstentions). Of a randomized classifier the answer is its `referee`'s: an attack that fitted to the samples it
    saw must not be judged by them. `proof`: a certificate without a confidence is at stake. It is about the model's own
    `predict`, and no referee's.
    """
    classifier, criterion = as_classifier(model), as_criterion(y)
    corners, x_adv = proposal.corners, proposal.x_adv
    if x_adv.shape != x.shape or corners.shape != (len(x), threat.count, 2):
        raise InvalidInput(
            f"the proposal has images {tuple(x_adv.shape)} and corners {tuple(corners.shape)}; "
            f"{tuple(x.shape)} and {(len(x), threat.count, 2)} are needed"
        )
    contained = threat.contains((x_adv != x).any(dim=1), corners)  # NaN differs from everything, itself included
    in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    valid = contained & in_range
    shown = torch.where(valid[:, None, None, None], x_adv, x)
    answering = classifier if proof else judge_of(classifier)
    prediction = predict(answering, shown)
    counts = counts_for(answering, criterion, shown)
    broken = is_broken(classifier, criterion, prediction, counts)
    return Outcome(valid & broken, contained, in_range, prediction, counts)


def content_hash(tensor: Tensor) -> str:
    """What tells tensors apart where their text abbreviates them."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # numpy has no bfloat16
    return sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + values.tobytes()).hexdigest()[:16]
