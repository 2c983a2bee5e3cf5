"""SmoothedClassifier: a base classifier, an ablation and a vote, as one `nn.Module` with certificates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustpatch import memory, precision
from robustpatch.ablations.base import Ablation
from robustpatch.certificates.exact import Certificate, Method, certify_votes, largest_certified
from robustpatch.certificates.top_k import TopKCertificate, certify_top_k, check_asked
from robustpatch.classifiers import asking, checks
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.passed import Passed, check_when, told
from robustpatch.encoding import ComplementChannels, Encoding
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import GUARD_FLOAT32, GUARD_REDUCED, Scored, Threshold, Votes, Voting, first_argmax
from robustpatch.voting.silence import answered, has_score, numbers_backward


class SmoothedClassifier(CertifiedClassifier):
    """Predicts the class with the most votes among N ablated views of the image, and proves when no patch changes it.

    Each ablation hides all but a small part of the image, the base classifier scores what is left, and `voting` turns
    scores into votes. A patch can touch few of the ablations, so it can move few of the votes: when the lead of the
    winning class is larger, the prediction is certified (Levine & Feizi 2020).

    Args:
        base: any `nn.Module` that maps encoded images [M,E,H,W] to logits [M,K]; or a one-pass base with an attribute
            `ablation`, equal to the one given here, and `score_all(x, index=None)`, logits [B,n,K] of the raw image.
            One with `score_pairs(x, image, index)`, logits [M,K] of ablation index[m] of image[m], is given chunks.
            The proofs assume that the logits of an ablation depend on its kept pixels and its number alone.
        ablation: which pixels each view keeps. num_classes: K ≥ 2.
        voting: `Threshold(0.3)`, `TopOne()`, or a rule of `robustpatch.voting.scored`. encoding: how hidden pixels are
            shown to a plain base.
        chunk: ablated images scored at once; None chooses by image size and free memory. It bounds memory, with
            gradients too.
        check: when the base is tested in full: "once", and again whenever it has changed (see `certify`), or at
            "every call" that certifies.

    `votes`, `predict` and `certify` need evaluation mode; `scores`, `soft` and `forward` allow training mode.
    """

    def __init__(
        self,
        base: nn.Module,
        ablation: Ablation,
        *,
        num_classes: int,
        voting: Voting = Threshold(0.3),
        encoding: Encoding = ComplementChannels(),
        chunk: int | None = None,
        check: str = "once",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InvalidInput(f"num_classes is {num_classes}; a classifier needs at least two")
        if chunk is not None and chunk < 1:
            raise InvalidInput(f"chunk is {chunk}; it must be at least 1, or None to choose by image size and memory")
        if hasattr(base, "score_all") and getattr(base, "ablation", None) != ablation:
            raise InvalidInput(
                f"the base was built for ablation {getattr(base, 'ablation', None)}, but ablation is {ablation}; one "
                "that scores all ablations in one pass serves that one alone, so build it for the ablation wanted"
            )
        self.base, self.ablation, self.voting, self.encoding = base, ablation, voting, encoding
        self.num_classes, self.chunk = num_classes, chunk
        check_when(check)
        self.check = check
        self.passed = Passed()

    @classmethod
    def from_pretrained(cls, name: str | Path) -> SmoothedClassifier:
        """The checkpoint shipped under that name ("mnist-columns2"), or the one in that file, in evaluation mode.

        Raises `InvalidInput` where there is none, and for an undefended one.
        """
        from robustpatch.checkpoints import load_checkpoint

        return load_checkpoint(name).smoothed

    def count_outputs(self, x: Float[Tensor, "B C H W"]) -> int:
        """K; outputs of another number are refused."""
        return self.num_classes

    def counts(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, "B K"]:
        return self.votes(lent(x)).counts

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """N for each: every ablation is scored."""
        n = self.ablation.count(height, width)
        return n, n

    def weights_module(self) -> nn.Module:
        return self.base

    def set_guard(self, guard: float) -> None:
        """Allow, from now on, for that change of a score."""
        self.voting = self.voting.with_guard(guard)

    def describe(self) -> dict[str, Any]:
        return {
            "ablation": str(self.ablation),
            "voting": str(self.voting),
            "guard": self.guard,
            "encoding": self.encoding.name,
        }

    def in_words(self) -> str:
        return f"{self.ablation}, {self.voting}"

    @property
    def one_pass(self) -> bool:
        """Whether the base scores all ablations of an image at once."""
        return hasattr(self.base, "score_all")

    @property
    def by_pairs(self) -> bool:
        """Whether the base scores any pairs of image and ablation, by one computation for all of them or some."""
        return hasattr(self.base, "score_pairs")

    @property
    def guard(self) -> float:
        """The change of a score that certificates allow for: the voting's, or the default for this precision."""
        return self.guard_on(None)

    def guard_on(self, device: torch.device | str | None) -> float:
        """The same for images on that device; None: where the weights are, and of a base without any on the GPU if
        there is one, where precision may be the least. Certificates are of the images' device.
        """
        if self.voting.guard is not None:
            return self.voting.guard
        return GUARD_REDUCED if precision.is_reduced_anywhere(self, device) else GUARD_FLOAT32

    def logits(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """The base's logits in float32, of all ablations or of those in `index`: [n] for all images alike, or [B,n].

        Differentiable. More than one chunk is checkpointed chunk by chunk. A one-pass base is given whole images, as
        many as make up a chunk; in training mode all of them at once, since batch statistics are of the whole batch.
        """
        checks.shape_and_type(x)
        n = self.ablation.count(*x.shape[2:])
        asked = n if index is None else index.shape[-1]
        if asked == 0 or (self.by_pairs and not len(x)):  # a patch between the bands of a wide stride touches none
            return torch.zeros(len(x), asked, self.num_classes, device=x.device)
        if self.one_pass and not self.by_pairs:
            size = len(x) if self.base.training else self._chunk(x) // asked
            images = torch.arange(len(x), device=x.device).split(max(1, size))
            each = [(x[i], index[i] if index is not None and index.ndim == 2 else index) for i in images]
            return self._check_logits(self._run(self._score_all, each, x), (len(x), asked))
        index = torch.arange(n, device=x.device) if index is None else index
        index = index.expand(len(x), -1) if index.ndim == 1 else index
        image = torch.arange(len(x), device=x.device)[:, None].expand_as(index)
        size = self._chunk(x)
        pairs = zip(*(ids.flatten().split(size) for ids in (image, index)), strict=True)
        score = self._score_pairs if self.by_pairs else self._score_chunk
        logits = self._run(score, [(x, *some) for some in pairs], x)
        return self._check_logits(logits.unflatten(0, index.shape), tuple(index.shape))

    def _chunk(self, x: Tensor) -> int:
        values = self.encoding.channels(x.shape[1]) * x.shape[2] * x.shape[3]
        shown = getattr(self.base, "pair_values", values)  # of a base that leaves out what is hidden
        return self.chunk or memory.chunk(int(shown), x.device, torch.is_grad_enabled())

    def _score_all(self, x: Tensor, index: Tensor | None) -> Tensor:
        index = None if index is None else lent(index)
        return self.base.score_all(lent(numbers_backward(self._match(x))), index)  # type: ignore[operator]

    def _score_pairs(self, x: Tensor, image: Tensor, index: Tensor) -> Tensor:
        shown = lent(numbers_backward(self._match(x)))
        return self.base.score_pairs(shown, lent(image), lent(index))  # type: ignore[operator]

    def _score_chunk(self, x: Tensor, image: Tensor, index: Tensor) -> Tensor:
        kept = self.ablation.masks(x.shape[2], x.shape[3], index)
        return self.base(numbers_backward(self._match(self.encoding(x[image], kept))))

    def _run(self, function: Callable[..., Tensor], chunks: Sequence[tuple[Any, ...]], x: Tensor) -> Tensor:
        """The chunks' logits one after the other; with gradients, computed again in the backward pass."""
        if not chunks:
            return torch.zeros(0, self.num_classes, device=x.device)
        if torch.is_grad_enabled() and len(chunks) > 1:
            return torch.cat([checkpoint(function, *chunk, use_reentrant=False).float() for chunk in chunks])
        return torch.cat([function(*chunk).float() for chunk in chunks])

    def _match(self, x: Tensor) -> Tensor:
        """The image in the precision of the base."""
        tensor = next(self.base.parameters(), None)
        return x if tensor is None or torch.is_autocast_enabled(x.device.type) else x.to(tensor.dtype)

    def _check_logits(self, logits: Tensor, leading: tuple[int, ...]) -> Tensor:
        if logits.shape != (*leading, self.num_classes):
            raise InvalidInput(
                f"the base returned logits of shape {tuple(logits.shape)}, not {(*leading, self.num_classes)}; "
                f"num_classes is {self.num_classes}: make both agree"
            )
        return logits

    def scores(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """What `voting` makes of the base's logits, in [0, 1]: the softmax, unless it says otherwise; float32."""
        return self.voting.scores(self.logits(x, index))

    @torch.no_grad()
    def votes(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Votes | Scored:
        """The votes of each ablation, and which of them are too close to call. Raises `InvalidInput`.

        One with a score that is no number votes for no class, and counts as close: a patch may have overflown it.
        """
        return self.voting.votes(self._scores(x, index), self.guard_on(x.device))

    @torch.no_grad()
    def certifiable_scores(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The scores of all ablations, after every test that `certify` makes: one scoring serves any number of rules.

        For each rule that makes the same scores of the logits, `certify_votes(voting.votes(scores, model.guard), …)` is
        what `certify` returns with it.
        """
        scores = self.finite_scores(x)
        self.check_base(x, scores)
        return scores

    @torch.no_grad()
    def finite_scores(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The scores of all ablations. Raises `InvalidInput` where one is no number, as `certify` does."""
        scores = self._scores(x)
        checks.finite_scores(scores)
        return scores

    def _scores(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        checks.evaluation_mode(self)
        checks.image_values(x)
        return self.scores(x, index)

    def soft(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The mean over ablations of the voting's differentiable votes: what attacks climb. Of an ablation whose scores
        are no numbers, which votes for no class, 0.
        """
        return self._soft(self.logits(x))

    def _soft(self, logits: Float[Tensor, "B N K"]) -> Float[Tensor, "B K"]:
        known = has_score(self.voting.scores(logits.detach()))
        return torch.where(known, self.voting.soft(torch.where(known, logits, 0)), 0).mean(dim=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The share of votes of each class, or the mean of summed scores, float32; its argmax is `predict`, ties
        included, unless that is -1; its gradient `soft`'s.
        """
        logits = self.logits(x)
        shares = _shares(self.voting.votes(self.voting.scores(logits.detach()), self.guard_on(x.device)))
        if not logits.requires_grad:
            return shares
        return _StraightThrough.apply(self._soft(logits), shares)  # type: ignore[no-any-return]

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class with the most votes, the lowest index winning ties.

        An ablation with a score that is no number, as where a patch made the base overflow, votes for no class: the
        proofs allow for that on all that a patch touches. -1 where not one ablation of the image has a score: then none
        was certified.
        """
        scores = self._scores(x)
        return answered(first_argmax(self.voting.votes(scores, self.guard_on(x.device)).counts), scores)

    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat, method: Method = "exact") -> Certificate:
        """Prove, for each image, that no patch within `threat` changes the prediction; see `Certificate`.

        Raises `InvalidInput` where a score of any ablation is no number: on clean images that is no patch's doing.

        The first call also tests the proof's assumptions, on the first image and on a black, a white and a noisy one,
        64 ablations each, all different where there are as many: the same scores alone, in company and twice, and, for
        a one-pass base, with everything outside the band replaced by black, white and noise. So does every call after a
        change of the classifier that can be told: of weights, attributes, methods, hooks, precision or image shape (see
        `robustpatch.classifiers.content`). Every other call asks 1 in 64 of the ablations, of one of the images, going
        on where the last one stopped: alone, or with everything outside the band replaced. So each of the N ablations
        has been asked after 64 calls for images of one size, and all of up to 256 after the first. These tests find
        gross violations; they do not prove that there are none.
        """
        checks.image_values(x)
        size, guard = (x.shape[2], x.shape[3]), self.guard_on(x.device)
        threat.check_fits(*size)
        votes = self.voting.votes(self.certifiable_scores(x), guard)
        return certify_votes(votes, self.ablation, threat, size, method=method, guard=guard)

    def certify_paper(self, x: Float[Tensor, "B C H W"], threat: Threat, exact: Certificate) -> Certificate:
        """The certificate by the method "margin": without scoring again, unless a subclass certifies in its own way."""
        if type(self).certify is SmoothedClassifier.certify:
            return exact.by("margin")
        return asking.certify(self, x, threat, "margin")

    def certify_top_k(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat, k: int
    ) -> TopKCertificate:
        """Prove, for each image, that no patch within `threat` drives class y out of the k most voted; 1 ≤ k < K.

        The assumptions are tested as `certify` tests them.
        """
        check_asked(y, k, len(x), self.num_classes)
        checks.image_values(x)
        size, guard = (x.shape[2], x.shape[3]), self.guard_on(x.device)
        threat.check_fits(*size)
        votes, capacity = self.voting.votes(self.certifiable_scores(x), guard), self.voting.capacity(self.num_classes)
        return certify_top_k(votes, y, k, self.ablation, threat, size, capacity=capacity, guard=guard)

    def largest_certified(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The side of the largest square patch against which each image is certified; 0 where there is none."""
        votes = self.voting.votes(self.certifiable_scores(x), self.guard_on(x.device))
        return largest_certified(votes, self.ablation, (x.shape[2], x.shape[3]))

    def check_base(self, x: Float[Tensor, "B C H W"], scores: Float[Tensor, "B N K"] | None = None) -> None:
        """Test what the proofs assume of the base on a few images, and a few ablations of these. Raises `InvalidInput`.

        What is tested, and how often, says `certify`. `scores` are those of x, where they are known.
        """
        check_when(self.check)
        if not len(x):
            return
        now = told(self, x, self.guard_on(x.device))
        again = self.check == "once" and self.passed.holds(now)
        n = self.ablation.count(*x.shape[2:])
        first = self.passed.turn(n, checks.few(n) if again else checks.ABLATIONS)
        one = self.passed.calls % len(x)  # another image of the batch at each call
        self.passed.calls += 1
        images = x[one : one + 1] if again else x
        some = None if scores is None or not again else scores[one : one + 1]
        checks.base_is_sound(self, images, first=first, again=again, scores=some)
        if not again:
            self.passed.note(now)


@singledispatch
def voting_classifier(classifier: Classifier) -> SmoothedClassifier | None:
    """The smoothed classifier whose ablations' votes decide the prediction; None where there are no votes."""
    return None


@voting_classifier.register
def _(classifier: SmoothedClassifier) -> SmoothedClassifier:
    return classifier


@singledispatch
def guarded_classifier(classifier: Classifier) -> SmoothedClassifier | None:
    """The smoothed classifier whose scores the guard of the certificates is about; None where the guard, if there is
    one, is about something else.
    """
    return voting_classifier(classifier)


def _shares(votes: Votes | Scored) -> Float[Tensor, "B K"]:
    """counts / N in float32; of units, which it may round together, those below the most stay below it."""
    counts, n = votes.counts, votes.cast.shape[1]
    if isinstance(votes, Votes):
        return counts.to(torch.float32) / n
    shares = (counts.double() / (n * votes.unit)).to(torch.float32)
    most = shares.amax(dim=1, keepdim=True)
    beaten = counts < counts.amax(dim=1, keepdim=True)
    return torch.where(beaten, shares.minimum(torch.nextafter(most, torch.zeros_like(most))), shares)


class _StraightThrough(torch.autograd.Function):
    """The second argument, exactly, with the gradient of the first. (soft + (hard - soft) would round ties apart.)"""

    @staticmethod
    def forward(ctx, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None
