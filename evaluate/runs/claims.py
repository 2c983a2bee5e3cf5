"""The claims of a classifier about the clean images of a batch: what it predicts and certifies of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import judge_of
from attacks.criterion import Changed, Criterion, NoAlert, OutOfTopK, counts_for
from attacks.votes import worst_votes
from robustpatch.certificates.certificate import Certificate, Evidence
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.isolation import certify, certify_paper, certify_top_k, predict
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.voting.votes import Scored, Votes

SAMPLED = 16  # of so many images of a batch, one


@dataclass(frozen=True)
class Claims:
    """The prediction that an attack has to change on each of B images, and the certificates that none can.

    Attributes:
        exact, paper: the classifier's certificate (exact for ours), and the paper's beside it; None without one.
        certified: by either. prediction: the certificate's, of one with a confidence where it certifies the image.
        criterion: what breaks them. consistent: `predict`, where it was asked, does not contradict the certificate.
        answers: of certificates with a confidence, int [2,B] of `predict` and of the referee.
    """

    exact: Certificate | None
    paper: Certificate | None
    certified: Tensor
    prediction: Tensor
    criterion: Criterion
    consistent: Tensor
    answers: Tensor | None = None

    @property
    def proof(self) -> bool:
        """The certificates hold without a confidence."""
        return self.exact is not None and self.exact.confidence is None

    def margins(self, *, paper: bool = False) -> list[float | None]:
        """The worst-case margins of the images in whole votes; None without."""
        found = self.paper if paper else self.exact
        if found is None or found.margin is None:
            return [None] * len(self.certified)
        return (found.margin.double() / found.unit).tolist()

    def refuted(self, threat: Threat, x: Tensor) -> list[bool | None]:
        """Tell where the vote-level adversary changes the prediction of the images x by a patch of the threat; None
        without votes.
        """
        if self.exact is None or self.exact.evidence is None:
            return [None] * len(self.certified)
        of = self.exact.evidence
        each = [_refuted(of, one, x) for one in threat.threats]
        return torch.stack(each).any(dim=0).tolist()

    def known_votes(self, classifier: Classifier) -> Votes | Scored | None:
        """The votes of the clean images that the certificate is made of; None of a `certify` of the user's own, whose
        evidence is a claim.
        """
        voting = voting_classifier(classifier)
        ours = voting is not None and voting is classifier and type(voting).certify is SmoothedClassifier.certify
        return self.exact.evidence.votes if ours and self.exact is not None and self.exact.evidence else None


def criterion_of(classifier: Classifier, prediction: Tensor, top_k: int) -> Criterion:
    """Return what breaks certificates of these predictions: another one, and of a classifier that `alerts` no alert
    either; or that the class is not among so many.
    """
    if top_k > 1:
        return OutOfTopK(prediction, top_k)
    return NoAlert(prediction) if classifier.alerts else Changed(prediction)


@torch.no_grad()
def claims_of(
    classifier: Classifier, x: Tensor, y: Tensor, threat: Threat, top_k: int, *, tested: bool = True
) -> Claims:
    """Ask the classifier about images [B,C,H,W] of labels y; `top_k` > 1: whether the label stays among so many.

    `predict` is asked about every image beside the certificate; where no attack is to test it (not `tested`) and both
    are of `SmoothedClassifier` itself, which score an image alike, about one image in `SAMPLED`. Raises `InvalidInput`
    for claims that contradict each other.
    """
    if top_k == 1 and not tested and _scores_alike(classifier):
        exact, paper = _certified(classifier, x, threat)
        assert exact is not None
        predicted = exact.prediction.clone()
        predicted[::SAMPLED] = predict(classifier, x[::SAMPLED])
    elif top_k > 1:
        predicted = predict(classifier, x)
        exact, paper = _certified_top_k(classifier, x, y, predicted, threat, top_k), None
    else:
        predicted = predict(classifier, x)
        exact, paper = _certified(classifier, x, threat)
    prediction = predicted if exact is None else exact.prediction
    certified = torch.zeros_like(y, dtype=torch.bool)
    for claim in (exact, paper):
        certified = certified if claim is None else certified | claim.certified
    if exact is not None and exact.confidence is not None:  # an image that it leaves has neither its class nor -1
        prediction = torch.where(exact.certified, exact.prediction, predicted)
        answers = torch.stack([predicted, predict(judge_of(classifier), x)])
        forgiven = (answers < 0) & classifier.randomized
        consistent = ((answers == prediction) | forgiven | ~exact.certified).all(dim=0)
        return Claims(exact, paper, certified, prediction, Changed(prediction), consistent, answers)
    criterion = criterion_of(classifier, prediction, top_k)
    consistent = ~criterion.broken(predicted, counts_for(classifier, criterion, x))
    return Claims(exact, paper, certified, prediction, criterion, consistent)


def _scores_alike(classifier: Classifier) -> bool:
    """Tell whether `predict` and `certify` make their answers of the same scores in the package's own way."""
    voting = voting_classifier(classifier)
    return (
        voting is not None
        and voting is classifier
        and not voting.overridden(SmoothedClassifier, "predict", "certify", "certifiable_scores", "finite_scores")
    )


def _refuted(of: Evidence, threat: Patches, x: Tensor) -> Tensor:
    if not threat.varies:
        return worst_votes(of.votes.cast, of.ablation, threat, of.image_size).refuted
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for i, image in enumerate(x):
        own = threat.of_image(image)
        if own is not None:
            found[i] = worst_votes(of.votes.cast[i : i + 1], of.ablation, own, of.image_size).refuted[0]
    return found


def _certified(classifier: Classifier, x: Tensor, threat: Threat) -> tuple[Certificate | None, Certificate | None]:
    if not isinstance(classifier, CertifiedClassifier):
        checks.evaluation_mode(classifier.given)
        checks.image_values(x)
        return None, None
    exact = certify(classifier, x, threat)
    paper = certify_paper(classifier, x, threat, exact)
    if paper is None:
        return exact, None
    for i in (paper.certified & (exact.prediction != paper.prediction)).nonzero()[:, 0].tolist():
        claim, other = (
            f"certify of {type(classifier).__name__} certifies image {i} of a batch",
            int(exact.prediction[i]),
        )
        if exact.certified[i]:
            raise InvalidInput(
                f'{claim} for class {other} by the method "exact" and for class {int(paper.prediction[i])} by '
                '"margin"; one of the two is wrong: mend certify'
            )
        raise InvalidInput(
            f'{claim} for class {int(paper.prediction[i])} by the method "margin", but predicts class {other}; mend '
            "certify"
        )
    return exact, paper


def _certified_top_k(
    classifier: Classifier, x: Tensor, y: Tensor, predicted: Tensor, threat: Threat, k: int
) -> Certificate:
    """Certify that the labels stay among the k classes of most votes, as a certificate of them: where one is not among
    them on the clean image, of the prediction, which is not certified.
    """
    if not isinstance(classifier, CertifiedClassifier):
        raise InvalidInput(f"top_k is {k}, but a {type(classifier.given).__name__} certifies nothing; use top_k 1")
    found = certify_top_k(classifier, x, y, threat, k)
    return Certificate(
        prediction=torch.where(found.clean, y, predicted),
        certified=found.certified & found.clean,
        margin=found.margin,
        placement_margin=None,
        threat=threat,
        method="exact",
        guard=found.guard,
        close=torch.zeros_like(y),
        unit=found.unit,
    )
