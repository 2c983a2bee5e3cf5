"""What an attack returns, and the judge who decides whether it counts."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.chance import is_randomized
from robustpatch.classifiers import checks
from robustpatch.classifiers.lending import classes_of, lent
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.voting.rules import first_argmax


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
        broken: the images of which a search saw the model's own `predict` change; None where that is not known. The
            judge decides all the same, but where the two disagree neither is believed.
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
    """The judge's finding on each image: `broken` iff `contained`, `in_range` and the prediction differs from y."""

    broken: Bool[Tensor, " B"]
    contained: Bool[Tensor, " B"]
    in_range: Bool[Tensor, " B"]
    prediction: Int[Tensor, " B"]


@runtime_checkable
class PatchAttack(Protocol):
    """Searches, for each image, a patch within the threat that moves the prediction away from y.

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
        y: Int[Tensor, " B"],
        threat: Patches,
        *,
        generator: torch.Generator,
    ) -> Proposal: ...


@torch.no_grad()
def predict(model: torch.nn.Module, x: Tensor) -> Int[Tensor, " B"]:
    """The model's own `predict`, or the argmax of its output in evaluation mode; -1 where it abstains. Without
    gradients, as `lending.certify`: a model may compute something else where gradients are wanted.

    Raises `InvalidInput` for outputs of which none is the largest number (see `votes.first_argmax`): an attack that
    meets them stops, since they are neither the prediction nor another.
    """
    if hasattr(model, "predict"):
        found = model.predict(lent(x))  # type: ignore[operator]
        return classes_of(found, x, f"predict of {type(model).__name__}")
    checks.evaluation_mode(model)
    return first_argmax(outputs(model, x))


@torch.no_grad()
def answer(model: torch.nn.Module, x: Tensor) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """What `predict` returns, and the evaluations it took of each image: as the model's own `predict_counted(x)` says,
    where it has one, or the most that they can be.
    """
    if hasattr(model, "predict_counted"):
        prediction, spent = model.predict_counted(lent(x))  # type: ignore[operator]
        return classes_of(prediction, x, f"predict_counted of {type(model).__name__}"), lent(spent)
    prediction = predict(model, x)
    return prediction, torch.full_like(prediction, evaluations(model, x)[1])


def referee(model: torch.nn.Module) -> torch.nn.Module:
    """Who says what the model predicts: its own `referee()`, where it declares to be randomized and has one (as
    `RandomizedClassifier`), or itself.
    """
    return model.referee() if is_randomized(model) and hasattr(model, "referee") else model  # type: ignore[operator]


def evaluations(model: torch.nn.Module, x: Float[Tensor, "B C H W"]) -> tuple[int, int]:
    """Evaluations of one image by a forward pass, and by `predict`: the ablations scored, or one without ablations; or
    what the model's own `evaluations(height, width)` says, at most so many.
    """
    if hasattr(model, "evaluations"):
        return model.evaluations(x.shape[2], x.shape[3])  # type: ignore[operator]
    each = model.ablation.count(*x.shape[2:]) if isinstance(model, SmoothedClassifier) else 1
    return each, each


def outputs(model: torch.nn.Module, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
    """What a classifier that is not smoothed returns for a copy of images, these in the precision of its weights.

    Floats; of a model that returns whole numbers or booleans, these in float64. Raises `InvalidInput` for a model that
    has no `forward` or returns anything but [B,K].
    """
    if getattr(model.forward, "__func__", None) is torch.nn.Module.forward:
        raise InvalidInput(
            f"{type(model).__name__} has no forward(x), and attacks read the scores [B,K] that it returns; add one "
            "(one_hot(predict(x), K) where there are no scores)"
        )
    tensor = next(model.parameters(), None)
    found = model(lent(x if tensor is None or not tensor.is_floating_point() else x.to(tensor.dtype)))
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
        what = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InvalidInput(
            f"the model returned {what} for {len(x)} images; one score for each class, [{len(x)}, K], is needed"
        )
    found = found.clone() if found.is_inference() else found  # else nothing could be computed with it that is climbed
    return found if found.is_floating_point() else found.to(torch.float64)


def is_adversarial(
    model: torch.nn.Module, prediction: Int[Tensor, "..."], y: Int[Tensor, "..."] | int
) -> Bool[Tensor, "..."]:
    """Where the model no longer answers y. An abstention (-1) is no longer y either, but of a model that declares that
    it answers by chance (see `attacks.chance.is_randomized`): there it says nothing.
    """
    return (prediction != y) & ((prediction >= 0) | (not is_randomized(model)))


def judge(
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"],
    threat: Patches,
    proposal: Proposal,
    *,
    proof: bool = False,
) -> Outcome:
    """Decide from the images alone: the changed pixels lie in those very rectangles, all values in [0, 1], and the
    model's `predict` on the whole attacked image is no longer `y` (see `is_adversarial` for abstentions). Of a model
    with a `referee`, it is that one's `predict`: an attack that fitted to the samples it saw must not be judged by
    them. `proof`: a certificate without a confidence is at stake. It is about the model's own `predict`, and no
    referee's.
    """
    corners, x_adv = proposal.corners, proposal.x_adv
    if x_adv.shape != x.shape or corners.shape != (len(x), threat.count, 2):
        raise InvalidInput(
            f"the proposal has images {tuple(x_adv.shape)} and corners {tuple(corners.shape)}; "
            f"{tuple(x.shape)} and {(len(x), threat.count, 2)} are needed"
        )
    contained = threat.contains((x_adv != x).any(dim=1), corners)  # NaN differs from everything, itself included
    in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    valid = contained & in_range
    prediction = predict(model if proof else referee(model), torch.where(valid[:, None, None, None], x_adv, x))
    return Outcome(valid & is_adversarial(model, prediction, y), contained, in_range, prediction)


def content_hash(tensor: Tensor) -> str:
    """What tells tensors apart where their text abbreviates them."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # numpy has no bfloat16
    return sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + values.tobytes()).hexdigest()[:16]
