"""SmoothedClassifier: a base classifier, an ablation and a vote, as one `nn.Module` with certificates."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch import precision
from robustpatch.ablations.base import Ablation
from robustpatch.certificates.each_image import check_same_places
from robustpatch.certificates.exact import Certificate, Method, certify_votes, largest_certified
from robustpatch.certificates.top_k import TopKCertificate, certify_top_k, check_asked
from robustpatch.classifiers import base_check, checks, isolation
from robustpatch.classifiers.ablation_logits import AblationLogits
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.base_check import PassedChecks, check_when, scoring_state
from robustpatch.encoding import ComplementChannels, Encoding
from robustpatch.errors import InvalidInput
from robustpatch.gradients import StraightThrough
from robustpatch.threats.base import Threat
from robustpatch.threats.growing import Growing, squares
from robustpatch.threats.parse import as_threat
from robustpatch.voting.rules import GUARD_FLOAT32, GUARD_REDUCED, Scored, Threshold, Votes, Voting, first_argmax
from robustpatch.voting.silence import answered, has_score


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
        self.check, self.passed = check, PassedChecks()

    @classmethod
    def from_pretrained(cls, name: str | Path) -> SmoothedClassifier:
        """The checkpoint shipped under that name ("mnist-columns2"), or the one in that file, in evaluation mode.

        Raises `InvalidInput` where there is none, and for an undefended one.
        """
        from robustpatch.checkpoints import load_checkpoint

        return load_checkpoint(name).smoothed

    def options(self) -> dict[str, Any]:
        """The arguments that another classifier around the same base, or with the same votes, shares with this one."""
        return {"num_classes": self.num_classes, "encoding": self.encoding, "chunk": self.chunk, "check": self.check}

    def count_outputs(self, x: Float[Tensor, "B C H W"]) -> int:
        return self.num_classes

    def counts(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, "B K"]:
        return self.votes(x.clone()).counts

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """N for each: every ablation is scored."""
        n = self.ablation.count(height, width)
        return n, n

    def weights_module(self) -> nn.Module:
        return self.base

    def set_guard(self, guard: float) -> None:
        self.voting = self.voting.with_guard(guard)

    def check_overridden(self) -> None:
        if changed := self.overridden(SmoothedClassifier, "scores", "votes"):
            raise InvalidInput(
                f"{type(self).__name__} overrides {' and '.join(changed)} of SmoothedClassifier, but attacks read its "
                "logits and its voting; override logits, or pass a Voting of your own"
            )

    def describe(self) -> dict[str, Any]:
        names = {"ablation": str(self.ablation), "voting": str(self.voting)}
        return {**names, "guard": self.guard, "encoding": self.encoding.name}

    def in_words(self) -> str:
        return f"{self.ablation}, {self.voting}"

    @property
    def one_pass(self) -> bool:
        return self._scorer.one_pass

    @property
    def by_pairs(self) -> bool:
        return self._scorer.by_pairs

    @property
    def guard(self) -> float:
        """The change of a score that certificates allow for: the voting's, or the default for this precision."""
        return self.guard_on(None)

    def guard_on(self, device: torch.device | str | None) -> float:
        """The same for images on that device; None: where the weights are, or without any on a GPU if there is one."""
        if self.voting.guard is not None:
            return self.voting.guard
        return GUARD_REDUCED if precision.is_reduced_anywhere(self, device) else GUARD_FLOAT32

    def logits(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """The base's logits in float32, of all ablations or of those in `index`: [n] for all images alike, or [B,n].

        Differentiable. More than one chunk is checkpointed chunk by chunk. A one-pass base is given whole images, as
        many as make up a chunk; in training mode all of them at once, since batch statistics are of the whole batch.
        """
        return self._scorer(x, index)

    @property
    def _scorer(self) -> AblationLogits:
        return AblationLogits(self.base, self.ablation, self.encoding, self.num_classes, self.chunk)

    def scores(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        """The scores in [0, 1], float32, that `voting` makes of the logits: the softmax, unless it says otherwise."""
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

    def _certifiable(self, x: Tensor, threat: Threat | None = None) -> tuple[Votes | Scored, float]:
        """The votes after every test that `certify` makes, and their guard."""
        checks.image_values(x)
        if threat is not None:
            threat.check_fits(x.shape[2], x.shape[3])
        guard = self.guard_on(x.device)
        return self.voting.votes(self.certifiable_scores(x), guard), guard

    def _scores(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        checks.inputs(self, x)
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
        shares = self.voting.votes(self.voting.scores(logits.detach()), self.guard_on(x.device)).shares
        if not logits.requires_grad:
            return shares
        return StraightThrough.apply(self._soft(logits), shares)  # type: ignore[no-any-return]

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class with the most votes, the lowest index winning ties.

        An ablation with a score that is no number, as where a patch made the base overflow, votes for no class: the
        proofs allow for that on all that a patch touches. -1 where not one ablation of the image has a score: then none
        was certified.
        """
        scores = self._scores(x)
        return answered(first_argmax(self.voting.votes(scores, self.guard_on(x.device)).counts), scores)

    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str, method: Method = "exact") -> Certificate:
        """Prove, for each image, that no patch within `threat` changes the prediction; see `Certificate`.

        Raises `InvalidInput` where a score of any ablation is no number: on clean images that is no patch's doing.

        The first call also tests the proof's assumptions, on the first image and on a black, a white and a noisy one,
        64 ablations each, all different where there are as many: the same scores alone, beside others and twice, and,
        for a one-pass base, with everything outside the band replaced by black, white and noise. So does every call
        after a change of the classifier that `robustpatch.classifiers.state_digest` sees: of weights, attributes,
        methods, hooks, precision or image shape. Every other call scores 1 in 64 of the ablations, of one image, going
        on where the last one stopped: alone, or with everything outside the band replaced. So each of the N ablations
        has been tested after 64 calls for images of one size, and all of up to 256 after the first. These tests find
        gross violations; they do not prove that there are none.
        """
        threat = as_threat(threat, x.shape[2:])
        votes, guard = self._certifiable(x, threat)
        size, images = (x.shape[2], x.shape[3]), x if threat.varies else None
        return certify_votes(votes, self.ablation, threat, size, method=method, guard=guard, x=images)

    def certify_paper(self, x: Float[Tensor, "B C H W"], threat: Threat, exact: Certificate) -> Certificate:
        """The certificate by the method "margin": without scoring again, unless `certify` is not this class's own."""
        if self.overridden(SmoothedClassifier, "certify"):
            return isolation.certify(self, x, threat, "margin")
        return exact.by("margin")

    def certify_top_k(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat | str, k: int
    ) -> TopKCertificate:
        """Prove, for each image, that no patch within `threat` drives class y out of the k most voted; 1 ≤ k < K.

        The assumptions are tested as `certify` tests them.
        """
        check_asked(y, k, len(x), self.num_classes)
        threat = as_threat(threat, x.shape[2:])
        check_same_places(threat, "the top k")
        votes, guard = self._certifiable(x, threat)
        size, capacity = (x.shape[2], x.shape[3]), self.voting.capacity(self.num_classes)
        return certify_top_k(votes, y, k, self.ablation, threat, size, capacity=capacity, guard=guard)

    def largest_certified(self, x: Float[Tensor, "B C H W"], growing: Growing = squares) -> Int[Tensor, " B"]:
        """The side of the largest square patch against which each image is certified; 0 where there is none.

        With `growing`, the size up to which all of its threats are certified: `discs`, `Scaled(mask)` or any function.
        """
        return largest_certified(self._certifiable(x)[0], self.ablation, (x.shape[2], x.shape[3]), growing=growing)

    def check_base(self, x: Float[Tensor, "B C H W"], scores: Float[Tensor, "B N K"] | None = None) -> None:
        """Test what the proofs assume of the base on a few images, and a few ablations of these. Raises `InvalidInput`.

        `certify` says what is tested, and how often. `scores` are those of x, where they are known.
        """
        check_when(self.check)
        if not len(x):
            return
        state = scoring_state(self, x, self.guard_on(x.device))
        again = self.check == "once" and state in self.passed
        n, one = self.ablation.count(*x.shape[2:]), self.passed.calls % len(x)  # each call another image of the batch
        first = self.passed.turn(n, base_check.few(n) if again else base_check.ABLATIONS)
        self.passed.calls += 1
        known = scores[one : one + 1] if again and scores is not None else None
        base_check.base_is_sound(self, x[one : one + 1] if again else x, first=first, again=again, scores=known)
        self.passed.add(state)


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
