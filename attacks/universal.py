"""One patch for all images: trained over random placements, rotations, scales and brightness, and put on any image."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.attack import Attack
from attacks.base import require
from attacks.gradient import differentiate
from attacks.placement import sites
from attacks.search import Search, turn
from attacks.surfaces import View
from attacks.universal_patch import AS_IT_IS, Poses, Transfer, UniversalPatch, draw
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.threats.parse import as_patches

__all__ = ["Poses", "Transfer", "Universal", "UniversalPatch", "train_and_transfer", "train_patch"]

_POSES = Poses()


@dataclass(frozen=True)
class Universal(Attack):
    """The adversarial patch of Brown et al. (2017): one content for all images, trained over random placements and
    poses, then put on each image at `tries` of them, the best kept.

    Without `patch` it is trained on the very images attacked, so that what is found on one depends on the others, and
    each image pays for the steps it took part in. `patch`, a `UniversalPatch` or the path of a PNG, which is read at
    once, is applied as it is; first in no pose, then in random ones. With `touched_only` it goes to placements that the
    certificate leaves open, cheapest first, else to random ones; training knows only random ones. `target`: the class
    to bring about, or None: any other than each image's own. At most (2·steps·rows / B + tries + 1)·n evaluations an
    image on average, n the ablations scored, and 2·N where the certificate is asked. Of a `budget`, training leaves
    what the tries need, or half where they need more. `Proposal.visited` counts the tries alone.

    Source: Adversarial Patch, Section 2 and its expectation over transformations, with a margin in place of log p.
    """

    target: int | None = None
    patch: UniversalPatch | str | Path | None = None
    steps: int = 200
    rows: int = 32
    step: float = 0.05
    poses: Poses = _POSES
    tries: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "rows", "tries"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.step > 0 and isfinite(self.step), "step", self.step, "positive")
        require(self.target is None or self.target >= 0, "target", self.target, "a class, or None")
        if isinstance(self.patch, str | Path):
            object.__setattr__(self, "patch", UniversalPatch.load(self.patch))

    @property
    def name(self) -> str:
        target = self.target if self._given is None else self._given.target
        return "universal" if target is None else f"universal-to-{target}"

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        """Training does; a patch that is given is only applied."""
        return self._given is None

    @property
    def _given(self) -> UniversalPatch | None:
        assert not isinstance(self.patch, str | Path)
        return self.patch

    def check(self, threat: Patches) -> None:
        if threat.varies:
            raise InvalidInput(
                f"patch is {threat}, which has other places on every image, and a universal patch is trained on all of "
                "them alike; use pgd, exhaustive or sparse-rs"
            )
        if self._given is not None and tuple(self._given.content.shape[1:]) != (threat.height, threat.width):
            height, width = self._given.content.shape[1:]
            raise InvalidInput(f"patch is {threat}, but the trained one has {height}x{width}; train one of that size")

    def _run(self, search: Search) -> None:
        if not len(search.y):
            return
        patch = self._given
        if patch is None:
            # The patch is trained on all images, so that its random numbers are of no single one.
            chance = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=search.stream(0))))
            patch = self.train(search, chance, self._room_to_train(search))
        patch.check(search.x)
        search.check_target(patch.target)
        rival = torch.full_like(search.y, -1 if patch.target is None else patch.target)
        rival = rival.masked_fill(rival == search.y, -1)
        queues = sites(search)
        for number in range(self.tries):
            found = [(i, site) for i in search.going().nonzero()[:, 0].tolist() for site, _ in islice(queues[i], 1)]
            if not found:
                return
            image = torch.tensor([i for i, _ in found], device=search.y.device)
            placement = torch.tensor([site for _, site in found], device=search.y.device)
            poses = [patch.poses.draw(1, search.stream(i)) if number else AS_IT_IS for i, _ in found]
            x_adv = _posed(search, patch.content.to(search.x), image, placement, torch.cat(poses).to(search.x))
            shown = search.crop(x_adv, search.anchors(placement))
            search.try_patches(image, placement, shown, batch=self.batch, rival=rival[image])

    def _room_to_train(self, search: Search) -> int | None:
        """The budget less what the tries cost, or half of what is left of it where they cost more."""
        if self.budget is None:
            return None
        surface = search.surface
        room = self.budget - surface.asking_cost
        return room - min(self.tries * surface.climb_cost, (room - surface.forward_cost) // 2)

    def train(self, search: Search, generator: torch.Generator, budget: int | None = None) -> UniversalPatch:
        """See `train_patch`; no image takes part in more than its evaluations stay within `budget`."""
        search.check_target(self.target)
        device = search.x.device
        shape = (search.x.shape[1], search.threat.height, search.threat.width)
        content = torch.rand(shape, generator=generator).to(search.x).requires_grad_()
        adam = torch.optim.Adam([content], lr=self.step, betas=(0.9, 0.99))
        each = 2 * search.surface.climb_cost
        for _ in range(self.steps):
            # How many rows each image can still pay for.
            left = None if budget is None else (budget - search.evaluations) // each
            usable = torch.ones_like(search.broken) if left is None else left > 0
            usable = usable if self.target is None else usable & (search.y != self.target)
            pool = usable.nonzero()[:, 0]
            if not len(pool):
                break
            image = pool[torch.randint(len(pool), (self.rows,), generator=generator).to(device)]
            if left is not None:
                image = image[turn(image) < left[image]]
            where = search.drawn(image.tolist(), generator).to(device)
            view = search.view(image, where)
            view = view if self.target is None else view.towards(self.target)
            pose = self.poses.draw(len(image), generator).to(search.x)

            def loss(
                content: Tensor, view: View = view, image: Tensor = image, where: Tensor = where, pose: Tensor = pose
            ) -> tuple[Tensor, Tensor]:
                value, prediction = view(_posed(search, content[0], image, where, pose))
                return value.clamp(min=-search.surface.enough).mean()[None], prediction

            found = differentiate(loss, content[None])[2][0]
            content.grad = found.nan_to_num(0.0, 0.0, 0.0)  # what Adam has once seen it keeps
            adam.step()
            with torch.no_grad():
                content.clamp_(0, 1)
            search.spend(image, 2 * view.cost)
        rounded = (content.detach() * 255).round() / 255
        return UniversalPatch(rounded, self.target, self.poses, int(search.evaluations.sum()))


def _posed(
    search: Search,
    content: Float[Tensor, "C h w"],
    image: Int[Tensor, " P"],
    placement: Int[Tensor, "P count"],
    pose: Float[Tensor, "P 3"],
) -> Float[Tensor, "P C H W"]:
    """The images with posed copies of the content under each patch; of smaller patches, of its top left corner."""
    shown, anchors = search.x[image], search.anchors(placement)
    for k, family in enumerate(search.families):
        h, w = family.box
        drawn = draw(content[:, :h, :w], shown, family.corners(anchors[:, k, None]), pose)
        covered = family.footprint(placement[:, k])[:, None]
        shown = drawn if family.rectangle is not None else torch.where(covered, drawn, shown)
    return shown


def train_patch(
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"],
    threat: Patches | str,
    *,
    target: int | None = None,
    steps: int = 200,
    rows: int = 32,
    step: float = 0.05,
    poses: Poses = _POSES,
    touched_only: bool = True,
    generator: torch.Generator | None = None,
) -> UniversalPatch:
    """One patch of the threat's size for all the images: `steps` steps of Adam of length `step`, on the mean, over
    `rows` images each at a random placement and in a random pose, of how far the attack is from success.

    That is, of the soft votes of the true class less those of the strongest other, or, with `target`, of the strongest
    other class less those of the target; no further than to a lead of a fifth of the ablations (of 5 logits, where
    there are no votes), so that images already won do not outweigh the rest. Content is rounded to 8 bits. With
    `touched_only`, a smoothed classifier has only those ablations scored that the patch touches. Costs 2·steps·rows
    forward passes. Chance is the `generator`'s alone; None: one of seed 0. Raises `InvalidInput`.
    """
    threat, generator = as_patches(threat, x.shape[2:]), generator or torch.Generator().manual_seed(0)
    attack = Universal(target=target, steps=steps, rows=rows, step=step, poses=poses)
    search = Search(model, x, y, threat, touched_only=touched_only, budget=None, generator=generator)
    require(len(x) > 0, "images", len(x), "at least 1 in number, to train a patch on")
    return attack.train(search, generator)


def train_and_transfer(
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"],
    threat: Patches | str,
    *,
    tries: int = 10,
    generator: torch.Generator | None = None,
    **training,
) -> tuple[UniversalPatch, Transfer, Transfer]:
    """Train a patch on the images at even positions, and try it on these and on the unseen ones at odd positions.

    `training` goes to `train_patch`.
    """
    threat, generator = as_patches(threat, x.shape[2:]), generator or torch.Generator().manual_seed(0)
    patch = train_patch(model, x[::2], y[::2], threat, generator=generator, **training)
    seen, unseen = (
        patch.transfer(model, x[half::2], y[half::2], tries=tries, count=threat.count, generator=generator)
        for half in (0, 1)
    )
    return patch, seen, unseen
