"""What attacks have in common: the call, the account of evaluations, chance of each image's own, the best patch yet."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.base import Proposal, answer, evaluations
from attacks.cleansed import CleanLooks
from attacks.victim import Objective, TouchedVictim, Victim, WholeVictim
from robustpatch import checks
from robustpatch.certificate import Certificate
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.errors import InvalidInput
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.threat import PatchThreat
from robustpatch.touched import Touched
from robustpatch.voting import first_argmax

A = TypeVar("A", bound="Attack")
_LOOKS = 4  # the share of the budget, 1 in so many, that looks at a clean image may take


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search for adversarial patches; see `PatchAttack` for what it promises.

    Args:
        budget: evaluations an image; None for no limit. No new step of an image is begun beyond it.
        touched_only: score only the ablations that the patch touches, and heed the certificate where the attack can. Of
            PatchCleanser, look at the clean images for a quarter of the budget at most, and climb a few views alone.
        batch: attacked images scored at once; memory follows it, and so do rounding errors and what an image pays for
            the climbs under way when it breaks or its budget ends.
    """

    budget: int | None = None
    touched_only: bool = True
    batch: int = 512

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "at least 1")
        require(self.budget is None or self.budget >= 1, "budget", self.budget, "at least 1, or None for no limit")

    @property
    @abstractmethod
    def name(self) -> str: ...

    def check(self, threat: PatchThreat) -> None:  # noqa: B027  no duty to refuse any
        """Raise `InvalidInput` where the attack cannot search this threat; most search every one."""

    def unpruned(self: A, budget: int | None) -> A:
        """The same, leaning on nothing that a certificate says, within another budget."""
        return replace(self, touched_only=False, budget=budget)

    def __call__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"],
        threat: PatchThreat,
        *,
        generator: torch.Generator,
    ) -> Proposal:
        """Search a patch for each image that moves the prediction away from y. Raises `InvalidInput`."""
        self.check(threat)
        search = Search(model, x, y, threat, touched_only=self.touched_only, budget=self.budget, generator=generator)
        self._run(search)
        return search.proposal()

    @abstractmethod
    def _run(self, search: Search) -> None:
        """Spend evaluations, and offer `search` what was found."""


def require(holds: bool, name: str, value: object, remedy: str) -> None:
    """Raise `InvalidInput` for an attack's parameter out of range."""
    if not holds:
        raise InvalidInput(f"attack {name} is {value}; it must be {remedy}")


def check_call(model: torch.nn.Module, x: Tensor, y: Tensor, threat: PatchThreat) -> None:
    """Raise `InvalidInput` for what no attack can be asked, before any work is done."""
    checks.evaluation_mode(model)
    checks.image_values(x)
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.shape != x.shape[:1] or not whole or y.device != x.device:
        raise InvalidInput(
            f"labels have shape {tuple(y.shape)}, dtype {y.dtype} and device {y.device}; one whole number for each "
            f"of the {len(x)} images is needed, on {x.device}"
        )
    classes = getattr(model, "num_classes", None)
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or (isinstance(classes, int) and high >= classes):
        most = "the number of classes less 1" if classes is None else classes - 1
        raise InvalidInput(f"labels range from {low} to {high}; they must lie in 0 to {most}")
    threat.check_fits(x.shape[2], x.shape[3])


class Search:
    """B images under attack: which still stand, what each has cost, and the best patch found for each.

    An image counts as broken once `predict` on the whole attacked image says so, whatever the cheaper view of it said.
    Chance is drawn for each image on its own, from the generator's state and the image's content, so that what is
    tried on an image does not depend on the images beside it; how much of it is under way when a budget ends may.

    Attributes:
        broken: Bool[B]. gap: Float[B], the least objective yet (-inf where broken). evaluations: Int[B].
        open: Int[B], how many placements are open to the attacker (all but those that a certificate closed).
        looks: of PatchCleanser, what it says of the clean images; None where the search leans on nothing.
        reach: Bool[B,S,K], the classes that the certificate leaves in reach of one patch, by touched set; None where
            nothing is known. Climbs towards the strongest class seek it among these.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"],
        threat: PatchThreat,
        *,
        touched_only: bool,
        budget: int | None,
        generator: torch.Generator,
    ) -> None:
        check_call(model, x, y, threat)
        x = x.detach()
        self.model, self.x, self.y, self.threat, self.budget = model, x, y.long(), threat, budget
        self.pruned = touched_only and isinstance(model, SmoothedClassifier)
        self.num_ablations, self._asked = evaluations(model, x)
        self.looks: CleanLooks | None = None
        self.placements = threat.placements(*x.shape[2:]).to(x.device)
        self._root = int(torch.randint(2**62, (), generator=generator))
        self._streams: dict[int, torch.Generator] = {}
        if touched_only and isinstance(model, PatchCleanser):
            self.looks = CleanLooks.of(model, x, threat, None if budget is None else budget // _LOOKS)
            clean, self.evaluations = self.looks.prediction, self.looks.evaluations
        elif self.pruned:
            assert isinstance(model, SmoothedClassifier)
            votes = model.votes(x)
            self.cast, clean = votes.cast, first_argmax(votes.counts)
            self.evaluations = torch.full_like(self.y, self._asked)
        else:
            clean, self.evaluations = answer(model, x)
        self.broken = (clean != self.y) & (clean >= 0)
        self.gap = torch.where(self.broken, -torch.inf, torch.inf)
        self.best = x.clone()
        self.corners = self.placements[:1].expand(len(x), threat.count, 2).clone()
        self.open = torch.full_like(self.y, len(self.placements))
        self.reach: Bool[Tensor, "B S K"] | None = None
        self._tried: list[set[int]] = [set() for _ in range(len(x))]

    @cached_property
    def certificate(self) -> Certificate | None:
        """What the classifier claims of each placement; None where the search leans on nothing, or nothing is said."""
        if not self.pruned:
            return None
        self.evaluations += self.num_ablations  # it scores them all once more
        found: Certificate = self.model.certify(self.x, self.threat)  # type: ignore[operator]
        return found

    @cached_property
    def _scores(self) -> Float[Tensor, "B N K"]:
        assert isinstance(self.model, SmoothedClassifier)
        self.evaluations += self.num_ablations
        with torch.no_grad():
            return self.model.logits(self.x).softmax(dim=-1)  # of "mean-softmax", whatever the votes are made of

    @cached_property
    def _touched(self) -> Touched:
        assert isinstance(self.model, SmoothedClassifier)
        return self.model.ablation.touched(self.threat, *self.x.shape[2:])

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
        if not self.pruned:
            return self.num_ablations
        assert isinstance(self.model, SmoothedClassifier)
        return self.model.ablation.affected(self.threat, *self.x.shape[2:])

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
        if not self.pruned:
            return WholeVictim.of(self.model, self.x[image], y, rival, objective)
        assert isinstance(self.model, SmoothedClassifier)
        scores = self._scores[image] if objective == "mean-softmax" else None
        reach = None
        if self.reach is not None:
            reach = self.reach[image, self._touched.set_of_placement.to(placement.device)[placement[:, 0]]]
        return TouchedVictim.of(
            self.model, y, self.cast[image], self._touched, placement, rival, scores=scores, reach=reach
        )

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
        """Keep what is better than the best so far. The first hit of an image that `predict` confirms breaks it."""
        for row in hit.nonzero()[:, 0].tolist():
            i = int(image[row])
            if self.broken[i]:
                continue
            said, spent = answer(self.model, x_adv[row : row + 1])
            self.evaluations[i] += spent[0]
            if said[0] >= 0 and said[0] != self.y[i]:
                self.best[i], self.corners[i] = x_adv[row], corners[row]
                self.broken[i], self.gap[i] = True, -torch.inf
        promising = (value < self.gap[image]).nonzero()[:, 0]
        for row in promising[value[promising].argsort(descending=True, stable=True)].tolist():  # written last: the best
            i = int(image[row])
            self.best[i], self.corners[i], self.gap[i] = x_adv[row], corners[row], value[row]

    def proposal(self) -> Proposal:
        """What was found; `visited` counts distinct single placements tried among those open."""
        tried = torch.tensor([len(sites) for sites in self._tried], device=self.y.device)
        visited = (tried / self.open.clamp(min=1)).clamp(max=1).to(torch.float32)
        return Proposal(self.best, self.corners, self.evaluations, visited)


def turn(image: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
    """How many of the rows before each one are of the same image."""
    order = image.argsort(stable=True)
    ranked = image[order]
    turn = torch.empty_like(image)
    turn[order] = torch.arange(len(image), device=image.device) - torch.searchsorted(ranked, ranked)
    return turn


def paste(
    x: Float[Tensor, "P C H W"], corners: Int[Tensor, "P count 2"], patch: Float[Tensor, "P count C h w"]
) -> Float[Tensor, "P C H W"]:
    """Copies of the images with each one's patches at its corners (row, column); where two overlap, the last shows."""
    out = x.clone()
    image = torch.arange(len(x), device=x.device)[:, None, None]
    for k in range(corners.shape[1]):
        row = corners[:, k, 0, None] + torch.arange(patch.shape[3], device=x.device)
        column = corners[:, k, 1, None] + torch.arange(patch.shape[4], device=x.device)
        out[image, :, row[:, :, None], column[:, None, :]] = patch[:, k].permute(0, 2, 3, 1).to(x.dtype)
    return out


def crop(
    x: Float[Tensor, "P C H W"], corners: Int[Tensor, "P count 2"], size: tuple[int, int]
) -> Float[Tensor, "P count C h w"]:
    """What the images show at these corners: the inverse of `paste`."""
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    row = corners[..., 0, None] + torch.arange(size[0], device=x.device)
    column = corners[..., 1, None] + torch.arange(size[1], device=x.device)
    return x[image, :, row[..., :, None], column[..., None, :]].permute(0, 1, 4, 2, 3)
