"""A search under way: the account of evaluations, chance of each image's own, the best patch yet."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.base import Proposal, answer, evaluations, is_adversarial
from attacks.behind_scores import Shares, has_own_predict
from attacks.border import visible
from attacks.checks import check_call
from attacks.pasting import paste
from attacks.surfaces.base import Objective, TouchedVictim, Victim, WholeVictim
from attacks.surfaces.patchcleanser import CleanMaskedPredictions
from attacks.surfaces.patchguard import MaskedVictim, smoothed_inside
from robustpatch.ablations.touched import Touched
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.lending import certify, lent
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.defenses.patchguard import MaskedClassifier
from robustpatch.threats.base import Patches
from robustpatch.voting.rules import first_argmax
from robustpatch.voting.silence import has_score

_LOOKS = 4  # the share of the budget, 1 in so many, that looks at a clean image may take


class Search:
    """B images under attack: which still stand, what each has cost, and the best patch found for each.

    An image counts as broken once `predict` on the whole attacked image says so, whatever the cheaper view of it said.
    Chance is drawn for each image on its own, from the generator's state and the image's content, so that what is
    tried on an image does not depend on the images beside it; how much of it is under way when a budget ends may.

    Attributes:
        broken: Bool[B]. gap: Float[B], the least objective yet (-inf where broken). evaluations: Int[B].
        held: Bool[B], whether a patch was tried that shows (`border.visible`): then `best` is one of these.
        open: Int[B], how many placements are open to the attacker (all but those that a certificate closed).
        voters: the smoothed classifier of which touched ablations alone are scored; None where the model is scored
            whole. votes: what its ablations contribute on the clean images.
        looks: of PatchCleanser, what it says of the clean images; None where the search leans on nothing.
        reach: Bool[B,S,K], the classes that the certificate leaves in reach of one patch, by touched set; None where
            nothing is known. Climbs towards the strongest class seek it among these.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"],
        threat: Patches,
        *,
        touched_only: bool,
        budget: int | None,
        generator: torch.Generator,
    ) -> None:
        check_call(model, x, y, threat)
        x = x.detach()
        self.model, self.x, self.y, self.threat, self.budget = model, x, y.long(), threat, budget
        self.voters = smoothed_inside(model) if touched_only else None
        self.num_ablations, self._asked = evaluations(model, x)
        self.looks: CleanMaskedPredictions | None = None
        self.placements = threat.placements(*x.shape[2:]).to(x.device)
        self._root = int(torch.randint(2**62, (), generator=generator))
        self._streams: dict[int, torch.Generator] = {}
        if touched_only and isinstance(model, PatchCleanser):
            self.looks = CleanMaskedPredictions.of(model, x, threat, None if budget is None else budget // _LOOKS)
            clean, self.evaluations = self.looks.prediction, self.looks.evaluations
        elif self.voters is not None:
            self.votes = self.voters.votes(lent(x))
            masked = isinstance(model, MaskedClassifier)
            clean = first_argmax(model.left(self.votes, self.image_size) if masked else self.votes.counts)
            self.evaluations = torch.full_like(self.y, self._asked)
        else:
            clean, self.evaluations = answer(model, x)
        self.broken = is_adversarial(model, clean, self.y)
        self._shares = Shares(len(x)) if has_own_predict(model) else None
        self._seen = torch.zeros_like(self.broken)  # by `predict`, under a patch
        self.gap = torch.where(self.broken, -torch.inf, torch.inf)
        self.best = x.clone()
        self.held = torch.zeros_like(self.broken)
        self.corners = self.placements[:1].expand(len(x), threat.count, 2).clone()
        self.open = torch.full_like(self.y, len(self.placements))
        self.reach: Bool[Tensor, "B S K"] | None = None
        self._tried: list[set[int]] = [set() for _ in range(len(x))]

    @cached_property
    def certificate(self) -> Certificate | None:
        """What a smoothed classifier claims of each placement; None of others, and where nothing is leant on."""
        if self.voters is None or self.voters is not self.model:
            return None
        self.evaluations += self.num_ablations  # it scores them all once more
        return certify(self.model, self.x, self.threat)

    @cached_property
    def _scores(self) -> Float[Tensor, "B N K"]:
        assert self.voters is not None
        self.evaluations += self.num_ablations
        with torch.no_grad():
            scores = self.voters.logits(lent(self.x)).softmax(dim=-1)  # of "mean-softmax", whatever votes are made of
        return torch.where(has_score(scores), scores, 0)

    @cached_property
    def _touched(self) -> Touched:
        assert self.voters is not None
        return self.voters.ablation.touched(self.threat, *self.x.shape[2:])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.x.shape[2], self.x.shape[3]

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of one rectangle."""
        return self.threat.height, self.threat.width

    @cached_property
    def climb_cost(self) -> int:
        """Evaluations of one forward pass at one placement, at the most."""
        if self.looks is not None:
            return self.looks.cost
        if self.voters is None:
            return self.num_ablations
        return self.voters.ablation.affected(self.threat, *self.x.shape[2:])

    def going(self) -> Bool[Tensor, " B"]:
        """The images neither broken nor out of budget."""
        return ~self.broken if self.budget is None else ~self.broken & (self.evaluations < self.budget)

    def stream(self, image: int) -> torch.Generator:
        """The source of chance of one image: the same for the same generator and image, whatever else is attacked."""
        if image not in self._streams:
            content = self.x[image].detach().float().cpu().contiguous().numpy().tobytes()
            digest = hashlib.sha256(self._root.to_bytes(8, "big") + content).digest()
            self._streams[image] = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return self._streams[image]

    def noise(self, image: list[int]) -> Float[Tensor, "P count C h w"]:
        """Uniformly random patches, one for each of the images named, each from its own stream."""
        shape = (self.threat.count, self.x.shape[1], self.threat.height, self.threat.width)
        if not image:
            return self.x.new_zeros(0, *shape)
        return torch.stack([torch.rand(shape, generator=self.stream(i)) for i in image]).to(self.x)

    def victim(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        rival: Int[Tensor, " P"] | None = None,
        objective: Objective = "votes",
    ) -> Victim:
        """How attacked copies of these images look to the attack, patched at these placements (by number)."""
        y = self.y[image]
        if self.looks is not None:
            return self.looks.victim(image, placement, y, rival)
        masked = self.model if isinstance(self.model, MaskedClassifier) else None
        if self.voters is None or (masked is not None and objective != "votes"):
            return WholeVictim.of(self.model, self.x[image], y, rival, objective)
        cast, reach = self.votes.cast[image], None
        if self.reach is not None:
            reach = self.reach[image, self._touched.set_of_placement.to(placement.device)[placement[:, 0]]]
        if masked is not None:
            return MaskedVictim.of(masked, y, cast, self._touched, placement, self.image_size, rival, reach)
        scores = self._scores[image] if objective == "mean-softmax" else None
        return TouchedVictim.of(self.voters, y, cast, self._touched, placement, rival, scores=scores, reach=reach)

    def paste(
        self, image: Int[Tensor, " P"], placement: Int[Tensor, "P count"], patch: Float[Tensor, "P count C h w"]
    ) -> Float[Tensor, "P C H W"]:
        """Copies of the images with these patches in place; where two overlap, the last one shows."""
        return paste(self.x[image], self.placements[placement], patch)

    def spend(self, image: Int[Tensor, " P"], evaluations: Int[Tensor, " P"]) -> None:
        """Put evaluations to the account of each row's image."""
        self.evaluations.index_add_(0, image, evaluations)

    def visit(self, image: list[int], placement: list[list[int]]) -> None:
        """Note that these placements are being tried."""
        for i, sites in zip(image, placement, strict=True):
            self._tried[i].update(sites)

    @torch.no_grad()
    def try_patches(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        patch: Float[Tensor, "P count C h w"],
        *,
        batch: int,
        rival: Int[Tensor, " P"] | None = None,
        objective: Objective = "votes",
    ) -> Float[Tensor, " P"]:
        """Score patches as they are, without gradients, `batch` at a time; offer and charge them. Their objectives.

        Rows of an image that a row before it has broken, or brought to the end of its budget, are skipped: inf.
        """
        value = torch.full((len(image),), torch.inf, device=image.device)
        for rows in torch.arange(len(image), device=image.device).split(batch):
            rows = rows[self.going()[image[rows]]]
            if len(rows) == 0:
                continue
            i, where = image[rows], placement[rows]
            victim = self.victim(i, where, rival[rows] if rival is not None else None, objective)
            if self.budget is not None:
                left = self.evaluations[i] + turn(i) * victim.cost < self.budget
                rows, i, where, victim = rows[left], i[left], where[left], victim.keep(left)
            x_adv = self.paste(i, where, patch[rows])
            value[rows], prediction = victim(x_adv)
            self.spend(i, victim.cost)
            self.visit(i.tolist(), where.tolist())
            self.offer(i, self.placements[where], x_adv, value[rows], prediction != self.y[i])
        return value

    @torch.no_grad()
    def offer(
        self,
        image: Int[Tensor, " P"],
        corners: Int[Tensor, "P count 2"],
        x_adv: Float[Tensor, "P C H W"],
        value: Float[Tensor, " P"],
        hit: Bool[Tensor, " P"],
    ) -> None:
        """Keep what is better than the best so far. The first hit of an image that `predict` confirms breaks it.

        Of a model with a `predict` of its own, hits are not only what the scores say: it is asked about one in eight of
        the patches, and about whatever is better than the best so far (see `attacks.behind_scores`).

        Of what does not break the image, only patches that show are kept, and the first of them whatever its value:
        an attack whose best try were the clean image would have nothing to be judged by.
        """
        value = value.masked_fill(value.isnan(), torch.inf)
        if self._shares is not None:
            some = self._shares.chosen(image, x_adv, corners, self.patch_size) | (value < self.gap[image])
            hit = hit | self._behind_scores(image, x_adv, some & ~hit)
        for row in hit.nonzero()[:, 0].tolist():
            i = int(image[row])
            if self.broken[i]:
                continue
            said, spent = answer(self.model, x_adv[row : row + 1])
            self.evaluations[i] += spent[0]
            if is_adversarial(self.model, said, self.y[i])[0]:
                self.best[i], self.corners[i] = x_adv[row], corners[row]
                self.broken[i], self.gap[i], self.held[i], self._seen[i] = True, -torch.inf, True, True
        promising = ((value < self.gap[image]) | ~self.held[image]).nonzero()[:, 0]
        promising = promising[visible(self.x[image[promising]], x_adv[promising])]
        for row in promising[value[promising].argsort(descending=True, stable=True)].tolist():  # written last: the best
            i = int(image[row])
            self.best[i], self.corners[i], self.gap[i], self.held[i] = x_adv[row], corners[row], value[row], True

    def _behind_scores(
        self, image: Int[Tensor, " P"], x_adv: Float[Tensor, "P C H W"], due: Bool[Tensor, " P"]
    ) -> Bool[Tensor, " P"]:
        """Where the model's own `predict` no longer answers y, of the rows that are due, within the budget."""
        rows = (due & self.going()[image]).nonzero()[:, 0]
        if self.budget is not None and len(rows):
            i = image[rows]
            rows = rows[self.evaluations[i] + turn(i) * self._asked < self.budget]
        changed = torch.zeros_like(due)
        if len(rows):
            said, spent = answer(self.model, x_adv[rows])
            self.spend(image[rows], spent)
            changed[rows] = is_adversarial(self.model, said, self.y[image[rows]])
        return changed

    def proposal(self) -> Proposal:
        """What was found; `visited` counts distinct single placements tried among those open."""
        tried = torch.tensor([len(sites) for sites in self._tried], device=self.y.device)
        visited = (tried / self.open.clamp(min=1)).clamp(max=1).to(torch.float32)
        return Proposal(self.best, self.corners, self.evaluations, visited, broken=self._seen)


def turn(image: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
    """How many of the rows before each one are of the same image."""
    order = image.argsort(stable=True)
    ranked = image[order]
    turn = torch.empty_like(image)
    turn[order] = torch.arange(len(image), device=image.device) - torch.searchsorted(ranked, ranked)
    return turn
