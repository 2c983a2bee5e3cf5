"""PatchCleanser's inference and certificate, from the predictions under masks alone: no network, each asked once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.classifiers import checks
from robustpatch.defenses.masking import MaskSet
from robustpatch.voting.rules import first_argmax
from robustpatch.voting.silence import names_class

Score = Callable[[Tensor, Tensor], Tensor]  # image [P], union [P] -> logits [P,K]
SILENT = -2  # the label of a look that names no class
_UNASKED = -1
_FIRST = 2  # unions asked at first where one answer may settle it; then twice as many each time


class MaskedPredictions:
    """A classifier's predictions for B images under the unions of a mask set, each computed when first asked for.

    Attributes:
        prediction: Int[B,U], the class under each union; -1 where nobody has asked, `SILENT` where no class has the
            largest logit (see `silence.names_class`), as where a patch made the network overflow.
        gap: Float[B,U], by how much its logit exceeds every other's; 0 where silent, inf where nobody has asked.
        finite: whether every logit seen is a number.
    """

    def __init__(self, masks: MaskSet, images: int, score: Score, device: torch.device | str = "cpu") -> None:
        self.masks, self._score = masks, score
        self.views, self.pair = len(masks.views), masks.pair.to(device)
        self.prediction = torch.full((images, len(masks.unions)), -1, dtype=torch.int32, device=device)
        self.gap = torch.full(self.prediction.shape, torch.inf, device=device)
        self.finite = True

    @property
    def evaluations(self) -> Int[Tensor, " B"]:
        """Counts the unions of each image that were scored."""
        return (self.prediction != _UNASKED).sum(dim=1)

    def learn(self, image: Int[Tensor, " P"], union: Int[Tensor, " P"], logits: Float[Tensor, "P K"]) -> None:
        """Note what the classifier says."""
        self.finite &= bool(torch.isfinite(logits).all())
        label, gap = named(logits)
        self.prediction[image, union] = label.int()
        self.gap[image, union] = gap

    def check_finite(self) -> None:
        """Raise `InvalidInput` where a logit seen is no number: of clean images, nothing can be certified."""
        if not self.finite:
            raise checks.not_finite()

    def ask(self, image: Int[Tensor, "..."], union: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The predictions of these images under these unions."""
        number = self.prediction.shape[1]
        new = torch.unique((image * number + union).flatten())
        i, u = new // number, new % number
        unknown = self.prediction[i, u] == _UNASKED
        i, u = i[unknown], u[unknown]
        if len(i):
            self.learn(i, u, self._score(i, u))
        return self.prediction[image, union]

    def first(self) -> Int[Tensor, "B V"]:
        """The predictions of all images under every view: the first round."""
        image = torch.arange(len(self.prediction), device=self.prediction.device)
        view = torch.arange(self.views, device=image.device)
        return self.ask(*torch.broadcast_tensors(image[:, None], view))


def infer(looks: MaskedPredictions) -> Int[Tensor, " B"]:
    """Double masking: the class that all views name; else that of a dissenting view under which nothing more that is
    hidden changes the answer; else the majority's, the lowest of equals.

    Two dissenters that stand name the same class, that of the union of both, so their order does not matter. (Xiang et
    al. 2022, Algorithm 1.)

    A silent view names no class: it has no part in the majority, does not stand, and shakes what it is the second of.
    -1 where all views are silent.
    """
    labels = looks.first()
    found = majority(labels)
    image, view = ((labels != found[:, None]) & (labels != SILENT)).nonzero(as_tuple=True)
    order = looks.gap[:, : looks.views].argsort(dim=1)
    for columns in _growing(looks.views):
        union = looks.pair[view[:, None], order[image, columns]]
        stands = (looks.ask(image[:, None].expand_as(union), union) == labels[image, view][:, None]).all(dim=1)
        image, view = image[stands], view[stands]
    found[image] = labels[image, view]
    return torch.where(found == SILENT, -1, found).long()


def certify(
    looks: MaskedPredictions, guard: float, hiding: Bool[Tensor, "S V"] | None = None
) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """Returns `infer`'s class c, and the images for which no patch that the views hide changes it: those where for
    every choice of placements some view that hides them is steady. None: each view hides some placements that no other
    does.

    Proof. Let v be that view; no union with v shows any patch, so all name c as in the clean image, after logits have
    moved by `guard` each. If the views agree, they agree with v, on c. If the majority is for another class, v
    dissents; under it nothing more that is hidden changes the answer c, so a dissenter for c stands. And no
    dissenter for another class stands, since together with v it names c. So c is returned in every case. (Theorem 1 of
    the paper asks this of all views, which masks made for the very patch need: each is alone in hiding some placement.)
    Where the patch shows, a look may as well be silent. If the majority of the others is for c, c is returned, as no
    dissenter for another class stands; if it is for another class, v dissents and stands as before.

    Unions are asked until that fails, those first whose views are the least sure. Raises `InvalidInput` for logits that
    are no numbers: the patch is still to come.
    """
    found = infer(looks)
    hiding = torch.eye(looks.views, dtype=torch.bool) if hiding is None else hiding
    certified = closed(steady(looks, found, guard), hiding).all(dim=1)
    alive = certified.nonzero()[:, 0]
    order = by_doubt(looks, alive)
    for columns in _growing(order.shape[1]):
        union = order[:, columns]
        looks.ask(alive[:, None].expand_as(union), union)
        holds = closed(steady(looks, found, guard, alive), hiding).all(dim=1)
        certified[alive] = holds
        alive, order = alive[holds], order[holds]
    looks.check_finite()
    return found, certified


def steady(
    looks: MaskedPredictions, found: Int[Tensor, " B"], guard: float, image: Int[Tensor, " P"] | None = None
) -> Bool[Tensor, "P V"]:
    """Under which views of these images (None: all) no second view that was asked names another class than `found`, or
    this one by no more than 2·`guard`.
    """
    image = torch.arange(len(found), device=found.device) if image is None else image
    label, gap = looks.prediction[image], looks.gap[image]
    shaken = (label != _UNASKED) & ((label != found[image, None]) | (gap <= 2 * guard))
    return ~shaken[:, looks.pair].any(dim=2)


def leads(
    looks: MaskedPredictions, found: Int[Tensor, " B"], guard: float
) -> tuple[Float[Tensor, "B V"], Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Returns the lead of `found` under each view and the second view that makes it least, less 2·`guard`; that second
    view; and whether all were asked: where both hold, lead > 0 and all asked, the view is steady.
    """
    lead = torch.where(looks.prediction == found[:, None], looks.gap, -looks.gap) - 2 * guard
    asked = looks.prediction != _UNASKED
    least, weakest = lead.masked_fill(~asked, torch.inf)[:, looks.pair].min(dim=2)
    return least, weakest, asked[:, looks.pair].all(dim=2)


def closed(steady: Bool[Tensor, "P V"], hiding: Bool[Tensor, "S V"]) -> Bool[Tensor, "P S"]:
    """Marks choices of placements that some steady view hides: with all unions asked, no patch there changes the
    answer.
    """
    return steady.float() @ hiding.to(steady.device).float().T > 0


def by_doubt(looks: MaskedPredictions, image: Int[Tensor, " P"]) -> Int[Tensor, "P R"]:
    """The unions that are no views, by the sum of the gaps of the two views (of several patches: the least such)."""
    gap = looks.gap[image, : looks.views]
    doubt = torch.full((len(image), looks.gap.shape[1]), torch.inf, device=gap.device)
    for view in range(looks.views):
        union = looks.pair[view].expand(len(image), -1)
        doubt.scatter_reduce_(1, union, gap + gap[:, view, None], "amin")
    return looks.views + doubt[:, looks.views :].argsort(dim=1)


def majority(labels: Int[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """The class that most views name, the lowest of equals; `SILENT` where all are."""
    heard = labels != SILENT
    votes = torch.nn.functional.one_hot(labels.long().clamp(min=0)) * heard[..., None]
    return torch.where(heard.any(dim=1), first_argmax(votes.sum(dim=1)), SILENT).to(labels.dtype)


def named(logits: Float[Tensor, "*any K"]) -> tuple[Int[Tensor, "*any"], Float[Tensor, "*any"]]:
    """The class of the largest logit and by how much it exceeds the others, a number; `SILENT` and 0 without one."""
    known = names_class(logits)
    logits = torch.where(known[..., None], logits, 0)
    first, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    gap = (first - second).clamp(max=torch.finfo(logits.dtype).max)
    return torch.where(known, first_argmax(logits), SILENT), gap


def _growing(length: int) -> Iterator[slice]:
    start, size = 0, _FIRST
    while start < length:
        yield slice(start, start + size)
        start, size = start + size, 2 * size
