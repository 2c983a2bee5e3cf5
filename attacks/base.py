"""The protocol of attacks: what one is asked, what it returns, and the judge that decides whether it counts."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from attacks.criterion import Criterion, as_criterion, counts_for, is_broken
from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.isolation import predict
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.threats.parse import as_patches

LEVEL = 1 / 510  # half a grey level of 8 bits: a change below it is no change of the picture


def require(holds: bool, name: str, value: object, remedy: str) -> None:
    """Raise `InvalidInput` for an attack's parameter out of range."""
    if not holds:
        raise InvalidInput(f"attack {name} is {value}; it must be {remedy}")


def check_call(classifier: Classifier, x: Tensor, y: Tensor, threat: Patches) -> None:
    """Raise `InvalidInput` for what no attack can be asked, before any work is done."""
    checks.evaluation_mode(classifier.given)
    checks.image_values(x)
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.shape != x.shape[:1] or not whole or y.device != x.device:
        raise InvalidInput(
            f"labels have shape {tuple(y.shape)}, dtype {y.dtype} and device {y.device}; one whole number for each "
            f"of the {len(x)} images is needed, on {x.device}"
        )
    classes = classifier.num_classes
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or (classes and high >= classes):
        most = classes - 1 if classes else "the number of classes less 1"
        raise InvalidInput(f"labels range from {low} to {high}; they must lie in 0 to {most}")
    threat.check_fits(x.shape[2], x.shape[3])


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

    Deterministic under `generator` (a CPU generator), batched, and never writes to its inputs. It proposes the best
    patch that it tried, never the clean image where it tried any: an image of which no patch is judged counts as not
    tested. `touched_only`: it re-scores only the ablations which the patch touches, or skips placements that the
    certificate closes; such an attack must not be used to test that certificate. `unpruned(budget)` is the same attack
    without both, with that many evaluations an image (None: no limit). An attribute `judged` says how many proposals of
    an image it has judged itself, as an ensemble has; of each a referee may err. An attribute `needs_gradient`, True,
    says that it cannot do without: it is refused, or in an ensemble left out, where the model has none.
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
    threat: Patches | str,
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
    classifier, criterion, threat = as_classifier(model), as_criterion(y), as_patches(threat, x.shape[2:])
    corners, x_adv = proposal.corners, proposal.x_adv
    if x_adv.shape != x.shape or corners.shape != (len(x), threat.count, 2):
        raise InvalidInput(
            f"the proposal has images {tuple(x_adv.shape)} and corners {tuple(corners.shape)}; "
            f"{tuple(x.shape)} and {(len(x), threat.count, 2)} are needed"
        )
    contained = _contained(x, (x_adv != x).any(dim=1), threat, corners)  # NaN differs from everything, itself included
    in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    valid = contained & in_range
    shown = torch.where(valid[:, None, None, None], x_adv, x)
    answering = classifier if proof else judge_of(classifier)
    prediction = predict(answering, shown)
    counts = counts_for(answering, criterion, shown)
    broken = is_broken(classifier, criterion, prediction, counts)
    return Outcome(valid & broken, contained, in_range, prediction, counts)


def _contained(
    x: Float[Tensor, "B C H W"], changed: Bool[Tensor, "B H W"], threat: Patches, corners: Int[Tensor, "B count 2"]
) -> Bool[Tensor, " B"]:
    """Tell whether the changed pixels of each image lie under patches at these corners, where it has such places."""
    if not threat.varies:
        return threat.contains(changed, corners)
    found = ~changed.flatten(1).any(dim=1)  # of an image without a place: nothing is changed
    for i, image in enumerate(x):
        own = threat.of_image(image)
        if own is not None:
            found[i] = own.contains(changed[i : i + 1], corners[i : i + 1])[0]
    return found


def visible(x: Float[Tensor, "B C H W"], x_adv: Float[Tensor, "B C H W"]) -> Bool[Tensor, " B"]:
    """Tell whether some value of an image is another by half a grey level of 8 bits or more: less is no patch."""
    return ((x_adv.float() - x.float()).abs() >= LEVEL).flatten(1).any(dim=1)


def judged_patches(x: Float[Tensor, "B C H W"], proposal: Proposal, outcome: Outcome) -> list[frozenset[str]]:
    """The patched images, by hash, that `judge` was asked about: of each image the proposal, where it lies inside the
    threat and in range and shows a patch at all (`visible`); an empty set where it does not.
    """
    real = outcome.contained & outcome.in_range & visible(x, proposal.x_adv)
    return [frozenset([content_hash(proposal.x_adv[i])] if real[i] else []) for i in range(len(x))]


def content_hash(tensor: Tensor) -> str:
    """A hash of dtype, shape and values."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # numpy has no bfloat16
    return sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + values.tobytes()).hexdigest()[:16]
