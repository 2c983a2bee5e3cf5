"""One batch of images -> records, counterexamples and exhibits: certify, attack, judge. No file is touched."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attacks.base import Outcome, PatchAttack, Proposal, judge, judge_of, judged_patches
from attacks.criterion import Changed, Criterion, OutOfTopK, counts_for
from attacks.ensemble import counts_itself, is_control
from attacks.occlusion import CONTROLS
from attacks.propose import propose
from attacks.surfaces.clean_votes import known_votes
from attacks.votes import worst_votes
from evaluate.model.batch_independence import check_alone, check_clean, fresh_copy
from evaluate.results.vote_damage import damage
from evaluate.runs.counterexample import Counterexample, check_stands
from evaluate.runs.gallery import Exhibit, Furthest, exhibit
from evaluate.runs.records import AttackRecord, Record
from robustpatch.certificates.exact import Certificate, Evidence
from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.asking import certify, certify_paper, certify_top_k, predict
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.voting.votes import Scored, Votes


@dataclass(frozen=True)
class Settings:
    """What decides the records besides model, images and attacks.

    `num_images` are taken from index 0 on. `certified_budget`: evaluations of each attack on each certified image, None
    for no limit. `gallery`: images of each outcome kept to look at, about, spread over the batches; 0 for none.
    `top_k` > 1: certified and attacked is whether the label stays among so many classes of most votes.
    """

    num_images: int
    batch_size: int = 50
    certified_budget: int | None = 5_000
    seed: int = 0
    device: str = "cpu"
    gallery: int = 8
    top_k: int = 1

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "top_k"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.gallery < 0:
            raise InvalidInput(f"gallery is {self.gallery}; give a number of images, or 0 for none")

    @property
    def quota(self) -> int:
        """Images of each outcome that a batch keeps: twice its part of the gallery, rounded up, since the outcomes are
        unevenly spread."""
        batches = -(-self.num_images // self.batch_size)
        return -(-2 * self.gallery // batches)


@torch.no_grad()
def _certify(classifier: Classifier, x: Tensor, threat: Threat) -> tuple[Certificate | None, Certificate | None]:
    """The classifier's certificate (exact for ours), and the paper's for a smoothed classifier; None without one."""
    if not isinstance(classifier, CertifiedClassifier):
        checks.evaluation_mode(classifier.given)
        checks.image_values(x)
        return None, None
    certificate = certify(classifier, x, threat)
    paper = certify_paper(classifier, x, threat, certificate)
    if paper is None:
        return certificate, None
    other = (~certificate.certified & paper.certified & (certificate.prediction != paper.prediction)).nonzero()[:1, 0]
    for i in other.tolist():
        raise InvalidInput(
            f"certify of {type(classifier).__name__} certifies image {i} of a batch for class "
            f'{int(paper.prediction[i])} by the method "margin", but predicts class {int(certificate.prediction[i])}; '
            "mend certify"
        )
    apart = (certificate.certified & paper.certified & (certificate.prediction != paper.prediction)).nonzero()[:1, 0]
    for i in apart.tolist():
        raise InvalidInput(
            f"certify of {type(classifier).__name__} certifies image {i} of a batch for class "
            f'{int(certificate.prediction[i])} by the method "exact" and for class {int(paper.prediction[i])} by '
            '"margin"; one of the two is wrong: mend certify'
        )
    return certificate, paper


@torch.no_grad()
def _certify_top_k(
    classifier: Classifier, x: Tensor, y: Tensor, predicted: Tensor, threat: Threat, k: int
) -> Certificate:
    """Whether the labels are certified to stay among the k classes of most votes, as a certificate of them: where one
    is not among them on the clean image, of the prediction, which is not certified.
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


@dataclass(frozen=True)
class Batch:
    """What was found of the images of one batch; `counterexamples` are to certificates, `exhibits` for a gallery."""

    records: list[Record]
    counterexamples: list[Counterexample]
    exhibits: list[Exhibit]


def evaluate_batch(
    model: torch.nn.Module,
    x: Tensor,
    y: Tensor,
    first: int,
    threat: Threat,
    attacks: Sequence[PatchAttack],
    settings: Settings,
    *,
    configuration: dict[str, Any] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Batch:
    """Certify and attack the images `first`, `first` + 1, …, as `evaluate.evaluate` says. What was done before, or
    elsewhere, has no part in the result; a counterexample carries `configuration`.
    """
    classifier = as_classifier(model)
    fresh = fresh_copy(classifier) if attacks and classifier.certifies and not classifier.randomized else None
    predicted = predict(classifier, x)
    if settings.top_k == 1:
        exact, paper = _certify(classifier, x, threat)
    else:
        exact, paper = _certify_top_k(classifier, x, y, predicted, threat, settings.top_k), None
    prediction = predicted if exact is None else exact.prediction
    claims = [claim.certified for claim in (exact, paper) if claim is not None]
    certified = torch.stack([torch.zeros_like(y, dtype=torch.bool), *claims]).any(dim=0)
    criterion = Changed(prediction) if settings.top_k == 1 else OutOfTopK(prediction, settings.top_k)
    consistent = ~criterion.broken(predicted, counts_for(classifier, criterion, x))
    error, answers = None, None
    if (
        exact is not None and exact.confidence is not None
    ):  # neither abstaining nor the class of an image that it leaves
        prediction = torch.where(exact.certified, exact.prediction, predicted)
        criterion = Changed(prediction)
        answers = torch.stack([predicted, predict(judge_of(classifier), x)])
        forgiven = (answers < 0) & classifier.randomized
        consistent = ((answers == prediction) | forgiven | ~exact.certified).all(dim=0)
        judged = sum(getattr(attack, "judged", 1) for attack in attacks)
        error = _error(classifier, exact.confidence, judged * len(threat.threats))
    correct = prediction == y
    found: list[list[AttackRecord]] = [[] for _ in y]
    counterexamples: list[Counterexample] = []
    furthest = Furthest(none=settings.quota == 0)

    def keep(i: int, x_adv: Tensor, corners: list[int], attack: str, one: Patches) -> None:
        where = torch.tensor(corners or [0, 0] * one.count).reshape(one.count, 2)
        claim = (first + i, int(prediction[i]), attack, one, configuration or {}, settings.top_k)
        found = Counterexample(x[i].cpu(), x_adv.cpu(), where, *claim)
        if exact is None or exact.confidence is None:
            check_stands(found, classifier, x.device)
        counterexamples.append(found)

    if exact is None or exact.confidence is not None:
        fresh = None  # nothing is proved that must hold for every question
    if exact is not None and fresh is not None and settings.top_k == 1:
        check_clean(classifier, x, threat, exact, first)

    known = _known_votes(classifier, exact)
    for i in (certified & ~consistent).nonzero()[:, 0].tolist():
        keep(i, x[i], [], "predict", threat.threats[0])
    for attack in attacks:
        for one in threat.threats:
            for unpruned, chosen in ((False, correct & ~certified), (True, certified & (prediction >= 0))):
                rows = chosen.nonzero()[:, 0]
                if len(rows) == 0:
                    continue
                on_progress(f"{attack.name}{' unpruned' if unpruned else ''} on {len(rows)} images")
                run = attack.unpruned(settings.certified_budget) if unpruned else attack
                if is_control(run) and attack.name not in CONTROLS:
                    raise InvalidInput(
                        f"{attack.name} with {settings.certified_budget} evaluations an image holds controls alone, "
                        "which test no certificate; raise certified_budget"
                    )
                scored_whole = unpruned and not run.touched_only
                proof = exact is not None and exact.confidence is None
                asked = _Again(fresh, [first + i for i in rows.tolist()]) if unpruned and fresh is not None else None
                votes = None if known is None or unpruned else known.of(rows)
                with known_votes(classifier, x[rows], votes):
                    records = _attack(
                        classifier, x[rows], criterion.of(rows), one, run, scored_whole, settings, proof, asked
                    )
                for i, (record, x_adv) in zip(rows.tolist(), records, strict=True):
                    found[i].append(record)
                    furthest.offer(i, record, x_adv)
                    if unpruned and record.broken:
                        keep(i, x_adv, record.corners, attack.name, one)
    nothing = [None] * len(y)
    evidence = None if exact is None else exact.evidence
    margin = nothing if exact is None or exact.margin is None else (exact.margin.double() / exact.unit).tolist()
    paper_margin = nothing if paper is None or paper.margin is None else (paper.margin.double() / paper.unit).tolist()
    largest = nothing if exact is None or evidence is None else exact.largest_certified().tolist()
    votes = evidence.votes.cast[0].numel() if evidence is not None and isinstance(evidence.votes, Votes) else 0
    refuted = nothing if evidence is None else _refuted(evidence, threat)
    records = [
        Record(
            index=first + i,
            label=int(y[i]),
            prediction=int(prediction[i]),
            consistent=None if exact is None else bool(consistent[i]),
            certified_exact=None if exact is None else bool(exact.certified[i]),
            margin_exact=margin[i],
            certified_margin=None if paper is None else bool(paper.certified[i]),
            margin_margin=paper_margin[i],
            largest_certified=largest[i],
            close_votes=0 if exact is None else int(exact.close[i]),
            votes=votes,
            refuted=refuted[i],
            confidence=None if exact is None else exact.confidence,
            error=error,
            predicted=None if answers is None else int(answers[0, i]),
            refereed=None if answers is None else int(answers[1, i]),
            attacks=found[i],
        )
        for i in range(len(y))
    ]
    shown = exact if settings.top_k == 1 else None
    return Batch(records, counterexamples, exhibit(classifier, x, records, shown, threat, furthest, settings.quota))


def _known_votes(classifier: Classifier, exact: Certificate | None) -> Votes | Scored | None:
    """The votes of the clean images that the certificate is made of; None of a `certify` of the user's own, whose
    evidence is a claim.
    """
    voting = voting_classifier(classifier)
    ours = voting is not None and voting is classifier and type(voting).certify is SmoothedClassifier.certify
    return exact.evidence.votes if ours and exact is not None and exact.evidence is not None else None


def _error(classifier: Classifier, confidence: float, judged: int) -> float:
    """At most the chance that an image is certified and found changed though all is right: that its certificate is
    wrong, or its `predict`, or that the referee's, asked about the clean image and `judged` attacked ones.
    """
    own, referee = classifier.errors()
    return min(1.0, 1 - confidence + own + referee * (1 + judged))


class _Again(NamedTuple):
    """Who is asked once more about images that held, and their numbers."""

    model: Classifier
    first: list[int]


def _attack(
    classifier: Classifier,
    x: Tensor,
    criterion: Criterion,
    threat: Patches,
    attack: PatchAttack,
    unpruned: bool,
    settings: Settings,
    proof: bool,
    again: _Again | None,
) -> list[tuple[AttackRecord, Tensor]]:
    """Run and judge one attack on images of one batch, by one criterion for all. `proof`: the model
    certifies without a confidence, so that its own `predict` judges, and an abstention is no longer the prediction.
    `again`: of certified images, who is asked about some of those that held (see `alone.check_alone`).
    """
    # The same seed for every attack: each draws for each image on its own, and an ensemble does what its members would.
    generator = torch.Generator().manual_seed(_seed(settings.seed, str(threat), unpruned))
    started = time.monotonic()
    labels = criterion.y if isinstance(criterion, Changed) else criterion  # which attacks of others know too
    proposal = propose(attack, classifier, x, labels, threat, generator=generator)
    outcome = judge(classifier, x, criterion, threat, proposal, proof=proof)
    if again is not None:
        check_alone(again.model, proposal.x_adv, criterion, outcome, proposal.broken, again.first, attack.name)
    judged = judged_patches(x, proposal, outcome)
    if counts_itself(attack) and proposal.patches is not None:  # of any other it would be a mere claim
        judged = proposal.patches
    broken = outcome.contained & outcome.in_range & criterion.broken(outcome.prediction, outcome.counts)
    sure = proof or not classifier.randomized or not classifier.certifies
    broken &= sure | (outcome.prediction >= 0)
    seconds = (time.monotonic() - started) / len(x)
    done: list[dict[str, int]] = [{}] * len(x)
    voting = voting_classifier(classifier)
    if voting is not None and voting is classifier and criterion.rank == 1:
        done = [{} if i is None else i for i in _damage(voting, x, criterion.y, threat, proposal, outcome)]
    return [
        (
            AttackRecord(
                attack=attack.name,
                threat=str(threat),
                unpruned=unpruned,
                broken=bool(broken[i]),
                contained=bool(outcome.contained[i]),
                in_range=bool(outcome.in_range[i]),
                prediction=int(outcome.prediction[i]),
                corners=proposal.corners[i].flatten().tolist(),
                evaluations=int(proposal.evaluations[i]),
                visited=float(proposal.visited[i]),
                seconds=seconds,
                by=None if proposal.by is None else proposal.by[i],
                patches=len(judged[i]),
                **done[i],
            ),
            proposal.x_adv[i],
        )
        for i in range(len(x))
    ]


def _damage(
    model: SmoothedClassifier, x: Tensor, prediction: Tensor, threat: Patches, proposal: Proposal, outcome: Outcome
) -> list[dict[str, int] | None]:
    """What each patch within the threat did to the votes; None of the others."""
    valid = outcome.contained & outcome.in_range
    x_adv, corners = torch.where(valid[:, None, None, None], proposal.x_adv, x), proposal.corners.clone()
    corners[~valid] = 0
    found = damage(model, x_adv, prediction, threat, corners)
    parts = {name: getattr(found, name).tolist() for name in ("touched", "turned", "lead")}
    return [{name: parts[name][i] for name in parts} if valid[i] else None for i in range(len(x))]


def _refuted(evidence: Evidence, threat: Threat) -> list[bool]:
    """Whether the vote-level adversary changes each prediction by some patch of the threat."""
    cast = evidence.votes.cast
    each = [worst_votes(cast, evidence.ablation, one, evidence.image_size).refuted for one in threat.threats]
    return torch.stack(each).any(dim=0).tolist()


def _seed(*parts: object) -> int:
    """The seed of an attack: what was done before, or elsewhere, has no part in it."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
