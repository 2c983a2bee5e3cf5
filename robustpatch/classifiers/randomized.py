"""RandomizedClassifier: a base classifier under random ablations, certified with a chosen confidence."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.sparse import Draws, SparseAblation
from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.randomized import (
    Draw,
    Sampling,
    Tally,
    certify_draws,
    from_votes,
    predict_draws,
    stream_seed,
    touched_chance,
)
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.base_check import PassedChecks
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.encoding import ComplementChannels, Encoding
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import as_threat
from robustpatch.voting.rules import TopOne, Voting
from robustpatch.voting.votes import Votes

_CELLS = 2**22  # pixels of the masks drawn at once
_PREDICTING = ("predict", "guard", "guard_on", "enumerated", "referee", "_over", "_draw")


class RandomizedClassifier(CertifiedClassifier):
    """Predicts the class that most of all ablations vote for, and certifies it with confidence 1 - α, from samples.

    For each image, with probability at least 1 - alpha over the samples: if it is certified, then no patch within the
    threat changes what the ideal smoothed classifier (see above) predicts, and that is `prediction`. The samples of
    an image are pseudorandom, fixed by the seed and the image's values; two equal images have equal ones.

    Args:
        base: as for `SmoothedClassifier`. ablation: an `Ablation`, each of whose N views is as likely as any other, or
            a `SparseAblation`. num_classes: K ≥ 2. encoding, chunk, check: as for `SmoothedClassifier`.
        sampling: samples, errors allowed, seed. voting: top-1, with its guard; a close vote counts for no class.
        views: sampled ablations behind `forward` where they cannot be enumerated; the same for every image.

    Where all ablations can be enumerated they are scored once, and the samples drawn from their votes: for one-pass
    bases too. `predict` and `certify` need evaluation mode.
    """

    randomized = True
    """`predict` depends on chance: it may abstain under a patch, and `referee` judges attacks."""

    def __init__(
        self,
        base: nn.Module,
        ablation: Ablation | SparseAblation,
        *,
        num_classes: int,
        sampling: Sampling = Sampling(),
        voting: Voting = TopOne(),
        encoding: Encoding = ComplementChannels(),
        views: int = 256,
        chunk: int | None = None,
        check: str = "once",
    ) -> None:
        super().__init__()
        if views < 1:
            raise InvalidInput(f"views is {views}; it must be at least 1")
        if not isinstance(voting, TopOne):
            raise InvalidInput(f"voting is {voting}; a randomized certificate is of top-1 votes, so use TopOne()")
        self.base, self.ablation, self.sampling, self.encoding = base, ablation, sampling, encoding
        self.num_classes, self.views, self.chunk = num_classes, views, chunk
        self.voting: Voting = voting
        self.check = check
        self.passed = PassedChecks()
        self.enumerated()  # refuses what a SmoothedClassifier refuses

    @property
    def guard(self) -> float:
        """The change of a score that certificates allow for."""
        return self.guard_on(None)

    def guard_on(self, device: torch.device | str | None) -> float:
        """The same for images on that device, as `SmoothedClassifier.guard_on`."""
        return self.enumerated().guard_on(device)

    @classmethod
    def of(cls, classifier: Classifier, sampling: Sampling = Sampling()) -> RandomizedClassifier:
        """The base and ablations of a smoothed classifier under top-1 votes, sampled; of a randomized one, itself with
        these samples. Raises `InvalidInput` for a classifier without votes.
        """
        if isinstance(classifier, RandomizedClassifier):
            classifier.sampling = sampling
            return classifier
        model = voting_classifier(classifier)
        if model is None:
            raise InvalidInput(
                f"model is a {type(classifier).__name__}, which casts no votes; pass a SmoothedClassifier"
            )
        voting = TopOne(model.voting.guard)
        other = cls(model.base, model.ablation, sampling=sampling, voting=voting, **model.options())
        other.training = model.training
        return other

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """Ablations of one image that `forward` scores, and `predict`."""
        n = self.enumerated().ablation.count(height, width)
        return n, n if isinstance(self.ablation, Ablation) else self.sampling.prediction

    @property
    def prediction_error(self) -> float:
        """The chance that `predict`, where it does not abstain, is not the ideal classifier's."""
        return self.sampling.alpha_prediction

    @property
    def judge_error(self) -> float:
        """The chance that a prediction of the `referee` is not the ideal classifier's: 0 where it enumerates."""
        return 0.0 if isinstance(self.ablation, Ablation) else self.sampling.alpha_prediction

    @property
    def repeats(self) -> bool:
        """Always: the samples of an image are fixed by the seed and its values."""
        return True

    def weights_module(self) -> nn.Module:
        return self.base

    def set_guard(self, guard: float) -> None:
        self.voting = self.voting.with_guard(guard)

    def describe(self) -> dict[str, Any]:
        note = {"ablation": str(self.ablation), "sampling": asdict(self.sampling)}
        return {**self.enumerated().describe(), **note}

    def in_words(self) -> str:
        return f"{self.ablation}, {self.voting}, {self.sampling.estimation:,} samples"

    def enumerated(self) -> SmoothedClassifier:
        """The vote over all ablations: the ideal smoothed classifier. Of a sparse one, over `views` that are sampled
        once for all images: what attacks climb.
        """
        if isinstance(self.ablation, Ablation):
            return self._over(self.ablation)
        return self._over(Draws(self.ablation, self.views, stream_seed(self.sampling.seed, "views")))

    def referee(self) -> nn.Module:
        """The classifier that says whether an attack succeeded. Whoever searched against samples has fitted to them.

        Where all ablations can be enumerated, the ideal classifier, of which the certificate speaks; else this one with
        samples of its own, independent of all that `forward`, `predict` and `certify` draw. Raises `InvalidInput` for a
        subclass that predicts in its own way and leaves `referee` as it is: it would judge another classifier.
        """
        overridden, kind = self._overridden(), type(self).__name__
        if overridden:
            raise InvalidInput(
                f"{kind} overrides {', '.join(overridden)} of RandomizedClassifier, but not referee, which knows "
                f"nothing of that; define referee() too: a {kind} with another seed for its samples, say"
            )
        if isinstance(self.ablation, Ablation):
            return self.enumerated()
        own = self.sampling
        prediction = max(own.prediction, own.estimation)
        sampling = replace(own, seed=stream_seed(own.seed, "referee"), prediction=prediction)
        options = {"voting": self.voting, "views": self.views, **self.enumerated().options()}
        other = RandomizedClassifier(self.base, self.ablation, sampling=sampling, **options)
        other.training = self.training
        return other

    def _overridden(self) -> list[str]:
        """The methods that decide what is predicted, where this object has others than these; none where it has a
        `referee` of its own, which is to predict in the same way.
        """
        found = self.overridden(RandomizedClassifier, *_PREDICTING)
        return [] if "referee" in found else found

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The share of the votes of each class over `enumerated`'s ablations; its gradient is the mean softmax's."""
        return self.enumerated()(x)

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The most voted class of the sample, or -1 where its lead over the next could be chance (it abstains).

        With probability at least 1 - alpha_prediction it abstains or agrees with the ideal classifier: a two-sided
        binomial test of the two largest counts (Cohen et al. 2019, Section 3.2.1). An ablation with a score that is no
        number, as where a patch made the base overflow, votes for no class.
        """
        return predict_draws(self._draw(x, finite=False), self.sampling)

    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """Prove with confidence 1 - alpha that no patch within `threat` changes the ideal prediction.

        See `certify_randomized`. The base is tested as `SmoothedClassifier.certify` tests it.
        """
        checks.image_values(x)
        height, width = x.shape[2:]
        threat = as_threat(threat, (height, width))
        threat.check_fits(height, width)
        # A patch in a region of an image's own touches at most what it can anywhere.
        draw, chance = self._draw(x, finite=True), touched_chance(self.ablation, threat.everywhere, height, width)
        self.enumerated().check_base(x)
        return certify_draws(draw, chance, threat, self.sampling, self.guard_on(x.device))

    def tally(self, x: Float[Tensor, "B C H W"], purpose: str, number: int) -> Tally:
        """The votes of the ablations that `certify` draws for a purpose, "selection" or "estimation": its evidence."""
        return self._draw(x, finite=True)(purpose, number)

    def sampled_logits(
        self, x: Float[Tensor, "B C H W"], number: int, generator: torch.Generator
    ) -> Float[Tensor, "B number K"]:
        """The base's logits of so many ablations of each image, drawn anew with a CPU generator: what training uses."""
        height, width = x.shape[2:]
        rows = x.repeat_interleave(number, dim=0)
        if isinstance(self.ablation, SparseAblation):
            kept = self.ablation.sample(len(rows), height, width, generator)
        else:
            n = self.ablation.count(height, width)
            kept = self.ablation.masks(height, width, torch.randint(n, (len(rows),), generator=generator))
        return self.base(self.encoding(rows, kept.to(x.device))).unflatten(0, (len(x), number))

    def _over(self, ablation: Ablation) -> SmoothedClassifier:
        view = SmoothedClassifier(
            self.base,
            ablation,
            num_classes=self.num_classes,
            voting=self.voting,
            encoding=self.encoding,
            chunk=self.chunk,
            check=self.check,
        )
        view.training, view.passed = self.training, self.passed
        return view

    def _draw(self, x: Tensor, *, finite: bool) -> Draw:
        """Random ablations of each image; `finite` refuses scores that are no numbers."""
        keys = image_keys(x)
        if isinstance(self.ablation, Ablation):
            return from_votes(_votes(self.enumerated(), x, finite), keys, self.sampling.seed)
        checks.inputs(self, x)
        source, size = self.ablation, max(1, _CELLS // (x.shape[2] * x.shape[3]))

        def draw(purpose: str, number: int) -> Tally:
            cast = torch.zeros(len(x), self.num_classes, dtype=torch.long, device=x.device)
            lower, close = torch.zeros_like(cast), torch.zeros_like(cast[:, 0])
            for i, key in enumerate(keys):
                for first in range(0, number, size):
                    seed = stream_seed(self.sampling.seed, purpose, key, first)
                    votes = _votes(self._over(Draws(source, min(size, number - first), seed)), x[i : i + 1], finite)
                    cast[i] += votes.cast[0].sum(dim=0)
                    lower[i] += (votes.cast[0] & ~votes.close[0]).sum(dim=0)
                    close[i] += votes.close.sum()
            return Tally(cast, lower, close)

        return draw


@voting_classifier.register
def _(classifier: RandomizedClassifier) -> SmoothedClassifier:
    return classifier.enumerated()


def image_keys(x: Float[Tensor, "B C H W"]) -> list[bytes]:
    """A digest of each image's values, by which its samples are drawn."""
    checks.shape_and_type(x)
    return [hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).digest() for image in x]


def _votes(model: SmoothedClassifier, x: Tensor, finite: bool) -> Votes:
    votes = model.votes(x) if not finite else model.voting.votes(model.finite_scores(x), model.guard_on(x.device))
    assert isinstance(votes, Votes)  # of TopOne
    return votes
