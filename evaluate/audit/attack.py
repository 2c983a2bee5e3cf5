"""Every certified image under attack, by all that can be used without knowing the certifier."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attacks import Control, Oracle, PatchAttack, Proposal, SparseRS, judge, standard
from attacks.pasting import paste
from evaluate.audit.finding import Finding
from evaluate.audit.interface import AuditedCertifier
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.threats.base import Patches

_TINY = 20_000  # patches of an image so small that the oracle tries them all
_BATCH = 512


def attack_certified(
    subject: AuditedCertifier,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"],
    donors: Float[Tensor, "M C H W"],
    threat: Patches,
    budget: int,
    generator: torch.Generator,
    found: list[Finding],
) -> int:
    """Attack images certified for the classes y, unpruned, and return the evaluations spent; findings are added to
    `found`, attack by attack.

    With gradients, `standard`; else Sparse-RS on scores or, without any, on predictions. Regions of other images. What
    `donors` show at the same place: where an image is composed of them, that is what turns votes. On tiny images, every
    patch of zeros and ones. `budget`: evaluations of each attack on an image.
    """
    if not len(x):
        return 0
    model = as_classifier(subject if subject.voting is None else subject.voting)
    standing, spent = torch.arange(len(x)), 0
    for attack in attacks_for(subject, x, threat, budget):
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        proposal = attack(model, x[standing], y[standing], threat, generator=own)
        spent += int(proposal.evaluations.sum())
        broken = _broken(subject, model, x[standing], y[standing], threat, proposal)
        found += _findings(subject, x[standing], y[standing], threat, proposal, broken, attack.name)
        standing = standing[~broken]
        if not len(standing):
            return spent
    _, each = model.cost(x.shape[2], x.shape[3])
    proposal = transplants(subject, x[standing], y[standing], donors, threat, max(1, budget // each), generator)
    broken = _broken(subject, subject, x[standing], y[standing], threat, proposal)
    found += _findings(subject, x[standing], y[standing], threat, proposal, broken, "transplants")
    return spent + each * int(proposal.evaluations.sum())


def _broken(
    subject: AuditedCertifier, model: nn.Module, x: Tensor, y: Tensor, threat: Patches, proposal: Proposal
) -> Bool[Tensor, " B"]:
    """Marks images that the judge calls broken, unless the certifier may give the new prediction of any image."""
    outcome = judge(model, x, y, threat, proposal)
    return outcome.broken & subject.changed(outcome.prediction, y)


def attacks_for(subject: AuditedCertifier, x: Tensor, threat: Patches, budget: int) -> list[PatchAttack]:
    """Returns the attacks that can be run against this certifier, each unpruned."""
    attacks: list[PatchAttack] = [standard() if subject.white_box(x) else SparseRS(batch=_BATCH)]
    attacks.append(Control(content="natural"))
    chosen = [attack.unpruned(budget) for attack in attacks]
    places = (x.shape[2] - threat.height + 1) * (x.shape[3] - threat.width + 1)
    pixels = x.shape[1] * threat.height * threat.width * threat.count
    if pixels < 16 and 2**pixels * places**threat.count <= _TINY:
        chosen.insert(0, Oracle())
    return chosen


@torch.no_grad()
def transplants(
    subject: AuditedCertifier,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"],
    donors: Float[Tensor, "M C H W"],
    threat: Patches,
    budget: int,
    generator: torch.Generator,
) -> Proposal:
    """Show in each image what a donor shows at the same place: both in random order, `budget` predictions."""
    places = threat.placements(*x.shape[2:])
    corners = places[:1].expand(len(x), threat.count, 2).clone()
    best, spent = x.clone(), torch.zeros_like(y)
    size = (threat.height, threat.width)
    for i in range(len(x)):
        number = len(places) * len(donors)
        tries = torch.randperm(number, generator=generator)[:budget]
        for some in tries.split(_BATCH):
            own = places[some % len(places)][:, None]
            more = torch.randint(len(places), (len(some), threat.count - 1), generator=generator)
            where = torch.cat([own, places[more]], dim=1)
            donor = donors[torch.div(some, len(places), rounding_mode="floor")]
            row = where[..., 0, None] + torch.arange(size[0])
            column = where[..., 1, None] + torch.arange(size[1])
            rows = torch.arange(len(some))[:, None, None, None]
            patch = donor[rows, :, row[..., :, None], column[..., None, :]].permute(0, 1, 4, 2, 3)
            x_adv = paste(x[i].expand(len(some), -1, -1, -1), where, patch)
            predicted = subject.predict(x_adv)
            spent[i] += len(some)
            hit = subject.changed(predicted, int(y[i])).nonzero()[:, 0]
            if len(hit):
                best[i], corners[i] = x_adv[hit[0]], where[hit[0]]
                break
    return Proposal(best, corners, spent, torch.ones(len(x)))


def _findings(
    subject: AuditedCertifier,
    x: Tensor,
    y: Tensor,
    threat: Patches,
    proposal: Proposal,
    broken: Bool[Tensor, " B"],
    name: str,
) -> list[Finding]:
    found = []
    for i in broken.nonzero()[:, 0].tolist():
        at = ", ".join(str(tuple(corner)) for corner in proposal.corners[i].tolist())
        now = int(subject.predict(proposal.x_adv[i : i + 1]))
        sentence = f"an image certified for class {int(y[i])} against {threat} is predicted {now} with a patch at {at}"
        tensors = {"x": x[i], "x_adv": proposal.x_adv[i], "corners": proposal.corners[i]}
        note = {"kind": "attack", "threat": threat.to_dict(), "prediction": int(y[i])}
        found.append(Finding("attack", "broken certificate", f"{sentence}, found by {name}", tensors, note))
    return found
