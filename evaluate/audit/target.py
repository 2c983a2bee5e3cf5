"""A certifier as it is: its answers held against each other, and every certified image attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attacks import Control, Oracle, PatchAttack, Proposal, SparseRS, judge, standard
from attacks.pasting import crop, paste
from evaluate.audit.certifier import AuditedCertifier, Refused
from evaluate.audit.contradictions import CHECKS
from evaluate.audit.finding import Finding, Tally
from evaluate.audit.images import seams
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

_TINY = 20_000  # patches of an image so small that the oracle tries them all
_BATCH = 512
_SEAMS, _ATTACKS = "looking for votes about to turn", "attacking certified images"
STEPS = (*(f"consistency: {name}" for name in CHECKS), _SEAMS, _ATTACKS)


def try_target(
    subject: AuditedCertifier,
    pool: Float[Tensor, "M C H W"],
    threat: Patches,
    images: int,
    budget: int,
    generator: torch.Generator,
    tally: Tally,
    on_progress: Callable[[str], None],
) -> None:
    """Runs the checks of `contradictions` on the images of `pool`, then attacks what is certified of these and of
    `images` more, composed of them. Findings are added to `tally` at once.
    """
    tally.images = max(tally.images, len(pool))
    try:
        claim = subject.certify(pool, threat)
    except Refused as refusal:
        raise InvalidInput(
            f"certifier does not certify {tuple(pool.shape[1:])} images against {threat}: {refusal}"
        ) from refusal
    for name, check in CHECKS.items():
        on_progress(f"consistency: {name}")
        try:
            for one in check(subject, pool, threat, claim):
                tally.findings.append(replace(one, note={"threat": threat.to_dict(), **one.note}))
        except Refused as refusal:
            tally.untested.append((name, str(refusal)))
    if not isinstance(subject.target, nn.Module):
        tally.untested.append(("training mode", f"a {type(subject.target).__name__} is no nn.Module"))
    try:
        on_progress(_SEAMS)
        every = torch.cat([pool, seams(subject, pool, threat, 4 * images, images, generator)])
        claim = subject.certify(every, threat)
        consistent = claim.certified & (subject.predict(every) == claim.prediction)
        chosen = (consistent & (claim.prediction >= 0)).nonzero()[:, 0]
        abstained = int(consistent.sum()) - len(chosen)
        if abstained:
            tally.untested.append(("certified abstentions", f"{abstained} images: no class to attack"))
        if not len(chosen):
            why = f"none of {len(every)} images was certified against {threat}"
            tally.untested.append(("certificates of images", why))
        elif not subject.white_box(every):
            why = "the certifier has no scores with a gradient: attacked as a black box"
            tally.untested.append(("gradients", why))
        on_progress(_ATTACKS)
        tally.images, tally.certified = max(tally.images, len(every)), tally.certified + len(chosen)
        ImageAttack(subject, threat, budget, generator, tally).run(every[chosen], claim.prediction[chosen], pool)
        tally.attacked += len(chosen)
    except Refused as refusal:
        tally.untested.append((_ATTACKS, str(refusal)))


@dataclass(frozen=True)
class ImageAttack:
    """Attacks on certified images, unpruned. `budget`: evaluations of each attack on an image."""

    subject: AuditedCertifier
    threat: Patches
    budget: int
    generator: torch.Generator
    tally: Tally

    def run(self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], donors: Float[Tensor, "M C H W"]) -> None:
        """Attack images certified for the classes y; findings are added attack by attack.

        With gradients, `standard`; else Sparse-RS on scores or, without any, on predictions. Regions of other images.
        What `donors` show at the same place: where an image is composed of them, that is what turns votes. On tiny
        images, every patch of zeros and ones.
        """
        model = as_classifier(self.subject if self.subject.voting is None else self.subject.voting)
        spent = 0
        for attack in self._attacks(x) if len(x) else []:
            own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            proposal = attack(model, x, y, self.threat, generator=own)
            spent += int(proposal.evaluations.sum())
            broken = self._broken(model, x, y, proposal, attack.name)
            x, y = x[~broken], y[~broken]
            if not len(x):
                break
        if len(x):
            _, each = model.cost(x.shape[2], x.shape[3])
            proposal = self._transplants(x, y, donors, max(1, self.budget // each))
            self._broken(self.subject, x, y, proposal, "transplants")
            spent += each * int(proposal.evaluations.sum())
        self.tally.evaluations += spent

    def _attacks(self, x: Tensor) -> list[PatchAttack]:
        """The attacks that can be run against this certifier."""
        threat = self.threat
        attacks: list[PatchAttack] = [standard() if self.subject.white_box(x) else SparseRS(batch=_BATCH)]
        chosen = [attack.unpruned(self.budget) for attack in (*attacks, Control(content="natural"))]
        places = (x.shape[2] - threat.height + 1) * (x.shape[3] - threat.width + 1)
        pixels = x.shape[1] * threat.height * threat.width * threat.count
        tiny = pixels < 16 and 2**pixels * places**threat.count <= _TINY
        return [Oracle(), *chosen] if tiny else chosen

    @torch.no_grad()
    def _transplants(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], donors: Float[Tensor, "M C H W"], number: int
    ) -> Proposal:
        """Show in each image what a donor shows at the same place: both in random order, `number` predictions."""
        threat, generator, places = self.threat, self.generator, self.threat.placements(*x.shape[2:])
        corners = places[:1].expand(len(x), threat.count, 2).clone()
        best, spent = x.clone(), torch.zeros_like(y)
        for i in range(len(x)):
            for some in torch.randperm(len(places) * len(donors), generator=generator)[:number].split(_BATCH):
                more = torch.randint(len(places), (len(some), threat.count - 1), generator=generator)
                where = torch.cat([places[some % len(places)][:, None], places[more]], dim=1)
                patch = crop(donors[some // len(places)], where, (threat.height, threat.width))
                x_adv = paste(x[i].expand(len(some), -1, -1, -1), where, patch)
                hit = self.subject.changed(self.subject.predict(x_adv), int(y[i])).nonzero()[:, 0]
                spent[i] += len(some)
                if len(hit):
                    best[i], corners[i] = x_adv[hit[0]], where[hit[0]]
                    break
        return Proposal(best, corners, spent, torch.ones(len(x)))

    def _broken(self, model: nn.Module, x: Tensor, y: Tensor, proposal: Proposal, name: str) -> Bool[Tensor, " B"]:
        """Marks images that the judge calls broken, unless the certifier may give the new prediction of any image; each
        is a finding.
        """
        outcome = judge(model, x, y, self.threat, proposal)
        broken = outcome.broken & self.subject.changed(outcome.prediction, y)
        for i in broken.nonzero()[:, 0].tolist():
            at = ", ".join(str(tuple(corner)) for corner in proposal.corners[i].tolist())
            now = int(self.subject.predict(proposal.x_adv[i : i + 1]))
            sentence = (
                f"an image certified for class {int(y[i])} against {self.threat} is predicted {now} with a patch at "
                f"{at}, found by {name}"
            )
            tensors = {"x": x[i], "x_adv": proposal.x_adv[i], "corners": proposal.corners[i]}
            note = {"kind": "attack", "threat": self.threat.to_dict(), "prediction": int(y[i])}
            self.tally.findings.append(Finding("attack", "broken certificate", sentence, tensors, note))
        return broken
