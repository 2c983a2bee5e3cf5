"""One batch of images -> records, counterexamples and exhibits: claims, attacks, records. No file is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.base import PatchAttack
from attacks.ensemble import is_control
from attacks.occlusion import CONTROLS
from attacks.surfaces.clean_votes import known_votes
from evaluate.model.batch_independence import check_clean, fresh_copy
from evaluate.runs.attacking import Group, attack_group
from evaluate.runs.claims import Claims, claims_of
from evaluate.runs.counterexample import Counterexample, check_stands
from evaluate.runs.gallery import Exhibit, Furthest, exhibit
from evaluate.runs.records import AttackRecord, Record
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.growing import Growing, parse_growing
from robustpatch.voting.votes import Votes


@dataclass(frozen=True)
class Settings:
    """The settings that decide the records besides model, images and attacks.

    `num_images` are taken from index 0 on. `certified_budget`: evaluations of each attack on each certified image, None
    for no limit. `gallery`: images of each outcome kept to look at, about, spread over the batches; 0 for none.
    `top_k` > 1: certified and attacked is whether the label stays among so many classes of most votes. `growing`: the
    family of which the largest certified size is recorded (`robustpatch.threats.growing.growing_text`).
    """

    num_images: int
    batch_size: int = 50
    certified_budget: int | None = 5_000
    seed: int = 0
    device: str = "cpu"
    gallery: int = 8
    top_k: int = 1
    growing: str = "square"

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "top_k"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.gallery < 0:
            raise InvalidInput(f"gallery is {self.gallery}; give a number of images, or 0 for none")
        parse_growing(self.growing)

    @property
    def quota(self) -> int:
        """Images of each outcome that a batch keeps: twice its part of the gallery, rounded up, since the outcomes are
        unevenly spread."""
        batches = -(-self.num_images // self.batch_size)
        return -(-2 * self.gallery // batches)


@dataclass(frozen=True)
class Batch:
    """The findings on the images of one batch; `counterexamples` are to certificates, `exhibits` for a gallery."""

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
    claims = claims_of(classifier, x, y, threat, settings.top_k, tested=bool(attacks))
    fresh = fresh if claims.proof else None  # else nothing is proved that must hold for every question
    if fresh is not None and claims.exact is not None and settings.top_k == 1:
        check_clean(classifier, x, threat, claims.exact, first)
    tried: list[list[AttackRecord]] = [[] for _ in y]
    furthest = Furthest(none=settings.quota == 0)
    counterexamples: list[Counterexample] = []

    def keep(i: int, x_adv: Tensor, corners: list[int], attack: str, one: Patches) -> None:
        where = torch.tensor(corners or [0, 0] * one.count).reshape(one.count, 2)
        claim = (first + i, int(claims.prediction[i]), attack, one, configuration or {}, settings.top_k)
        found = Counterexample(x[i].cpu(), x_adv.cpu(), where, *claim)
        if claims.answers is None:
            check_stands(found, classifier, x.device)
        counterexamples.append(found)

    for i in (claims.certified & ~claims.consistent).nonzero()[:, 0].tolist():
        keep(i, x[i], [], "predict", threat.threats[0])
    known = claims.known_votes(classifier)
    open_ = (claims.prediction == y) & ~claims.certified
    groups = [
        (kind, rows.nonzero()[:, 0])
        for kind, rows in ((False, open_), (True, claims.certified & (claims.prediction >= 0)))
    ]
    for attack in attacks:
        for one in threat.threats:
            for certified, rows in groups:
                if len(rows) == 0:
                    continue
                on_progress(f"{attack.name}{' unpruned' if certified else ''} on {len(rows)} images")
                run = _unpruned(attack, settings.certified_budget) if certified else attack
                numbers = [first + i for i in rows.tolist()]
                asked = fresh if certified else None
                group = Group(x[rows], claims.criterion.of(rows), numbers, certified, claims.proof, asked)
                with known_votes(classifier, group.x, None if known is None or certified else known.of(rows)):
                    records = attack_group(classifier, group, run, one, settings.seed)
                for i, (record, x_adv) in zip(rows.tolist(), records, strict=True):
                    tried[i].append(record)
                    furthest.offer(i, record, x_adv)
                    if certified and record.broken:
                        keep(i, x_adv, record.corners, attack.name, one.of_image(x[i]) or one)
    judged = sum(getattr(attack, "judged", 1) for attack in attacks) * len(threat.threats)
    records = _records(classifier, claims, x, y, first, threat, tried, judged, parse_growing(settings.growing))
    shown = claims.exact if settings.top_k == 1 else None
    return Batch(records, counterexamples, exhibit(classifier, x, records, shown, threat, furthest, settings.quota))


def _unpruned(attack: PatchAttack, budget: int | None) -> PatchAttack:
    run = attack.unpruned(budget)
    if is_control(run) and attack.name not in CONTROLS:
        raise InvalidInput(
            f"{attack.name} with {budget} evaluations an image holds controls alone, which test no certificate; raise "
            "certified_budget"
        )
    return run


def _records(
    classifier: Classifier,
    claims: Claims,
    x: Tensor,
    y: Tensor,
    first: int,
    threat: Threat,
    tried: list[list[AttackRecord]],
    judged: int,
    growing: Growing,
) -> list[Record]:
    exact, paper, answers = claims.exact, claims.paper, claims.answers
    evidence = None if exact is None else exact.evidence
    largest = None if exact is None or evidence is None else exact.largest_certified(growing)
    votes = evidence.votes.cast[0].numel() if evidence is not None and isinstance(evidence.votes, Votes) else 0
    confidence, error = None if exact is None else exact.confidence, None
    if confidence is not None:
        # At most the chance that an image is certified and found changed though all is right: that its certificate is
        # wrong, or its `predict`, or the referee's, asked about the clean image and so many attacked ones.
        own, referee = classifier.errors()
        error = min(1.0, 1 - confidence + own + referee * (1 + judged))
    refuted = claims.refuted(threat, x)
    placeless = [threat.varies and threat.of_image(image) is None for image in x]
    # As lists: an element of a tensor read by itself costs more than all else that is done for a record.
    labels, predictions, consistent = y.tolist(), claims.prediction.tolist(), claims.consistent.tolist()
    margins, paper_margins = claims.margins(), claims.margins(paper=True)
    proved, close = ([], []) if exact is None else (exact.certified.tolist(), exact.close.tolist())
    paper_proved = [] if paper is None else paper.certified.tolist()
    largest = None if largest is None else largest.tolist()
    return [
        Record(
            index=first + i,
            label=labels[i],
            prediction=predictions[i],
            consistent=None if exact is None else consistent[i],
            certified_exact=None if exact is None else proved[i],
            margin_exact=margins[i],
            certified_margin=None if paper is None else paper_proved[i],
            margin_margin=paper_margins[i],
            largest_certified=None if largest is None else largest[i],
            close_votes=0 if exact is None else close[i],
            votes=votes,
            refuted=refuted[i],
            confidence=confidence,
            error=error,
            predicted=None if answers is None else int(answers[0, i]),
            refereed=None if answers is None else int(answers[1, i]),
            placeless=placeless[i],
            alerted=predictions[i] < 0 if classifier.alerts else None,
            attacks=tried[i],
        )
        for i in range(len(y))
    ]
