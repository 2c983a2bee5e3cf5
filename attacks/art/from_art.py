"""The Adversarial Robustness Toolbox, both ways: its attacks on our classifiers, its classifiers under our attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.art.models import Scores, as_module, estimator_of, seeded
from attacks.attack import Attack
from attacks.base import require
from attacks.placement import sites
from attacks.search import Search
from attacks.surfaces.base import Site
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

if TYPE_CHECKING:
    from art.estimators.classification import PyTorchClassifier

__all__ = ["FromART", "as_module"]


Kind = Literal["mask", "content", "patch"]
_CLIMBING = {
    "AdversarialPatchPyTorch",
    "AutoProjectedGradientDescent",
    "BasicIterativeMethod",
    "FastGradientMethod",
    "ProjectedGradientDescent",
}


@dataclass(frozen=True)
class Named:
    """Builds ART's evasion attack of that name with these options; ART is imported when it is called."""

    attack: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self, estimator: PyTorchClassifier, **more: Any) -> Any:
        known = import_module("art.attacks.evasion")
        if not hasattr(known, self.attack):
            raise InvalidInput(f"attack is {self.attack!r}, which is none of art.attacks.evasion; use a class of it")
        return getattr(known, self.attack)(estimator, **dict(self.options), **more)


@dataclass(frozen=True)
class FromART(Attack):
    """An evasion attack of the Adversarial Robustness Toolbox, run at `tries` placements of each image.

    The images are returned as ART made them. They are claimed to be patched where ART was told to; where the change
    lies elsewhere, but within one rectangle of the threat's size, there. Anything else leaves the threat, and `judge`
    says so; of several tries, one within the threat comes first, however weak.

    ART sees a classifier of logits. Of a `SmoothedClassifier` these are the log-odds of its mean soft vote,
    log(s_k / (1 - s_k)): the vote shares that `forward` gives are a step function with values in [0, 1], on which
    ART's cross-entropy is nearly flat and its line searches see no progress. Where rounding to votes decides
    otherwise, the predicted class is lifted above the rest, so that their argmax is always `predict`. All ablations are
    scored; with `touched_only`, placements are those that the certificate leaves open, cheapest first, else random.

    Evaluations are rows that reach the model, times its ablations, forward and backward alike; ART has no budget, so
    one is looked at between its runs alone.

    Args:
        build: given the estimator, the attack: a class of ART's, a `functools.partial` of one, or `FromART.named`.
        kind: how ART is held to the rectangles. "mask": `generate` is given them as `mask`, as PGD and its kin take it.
            "content": the classifier that ART sees shows the clean image outside of them, and that is what is returned:
            for every other attack on images, black boxes too. "patch": the attack learns a square patch and has
            `apply_patch`; `build` is given `patch_shape` and `patch_location`. ART draws it a pixel too large where
            image and patch are not both of even, or both of odd size: `side` sets a smaller one than the threat's.
        copies: of an image, each with a mask of its own, that ART is given at once; 1 unless masked.

    Targeted attacks are sent towards the cheapest rival, or a random class. Chance, numpy's, torch's and Python's, is
    seeded for each run and put back afterwards.
    """

    build: Callable[..., Any]
    kind: Kind = "mask"
    tries: int = 10
    copies: int = 1
    side: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kind in get_args(Kind), "kind", repr(self.kind), f"one of {', '.join(get_args(Kind))}")
        require(self.tries >= 1, "tries", self.tries, "at least 1")
        require(self.copies >= 1, "copies", self.copies, "at least 1")
        require(self.copies == 1 or self.kind == "mask", "copies", self.copies, f"1 for kind {self.kind!r}")
        require(self.side is None or self.side >= 1, "side", self.side, "at least 1, or None for the threat's")

    @classmethod
    def named(
        cls, name: str, /, *, kind: Kind = "content", tries: int = 10, copies: int = 1, **options: Any
    ) -> FromART:
        """ART's attack of that name with these options: `FromART.named("SquareAttack", eps=1.0, max_iter=500)`."""
        return cls(build=Named(name, tuple(options.items())), kind=kind, tries=tries, copies=copies)

    @classmethod
    def _masked(cls, name: str, tries: int, **options: Any) -> FromART:
        return cls.named(name, kind="mask", tries=tries, copies=tries, batch_size=512, eps=1.0, **options)

    @classmethod
    def pgd(cls, *, steps: int = 30, step: float = 0.1, restarts: int = 1, tries: int = 10) -> FromART:
        """ProjectedGradientDescent of any content (eps 1): `restarts` random starts at each placement."""
        options = {"eps_step": step, "max_iter": steps, "num_random_init": restarts, "verbose": False}
        return cls._masked("ProjectedGradientDescent", tries, **options)

    @classmethod
    def bim(cls, *, steps: int = 30, step: float = 0.1, tries: int = 10) -> FromART:
        """BasicIterativeMethod: PGD that starts from the image."""
        return cls._masked("BasicIterativeMethod", tries, eps_step=step, max_iter=steps, verbose=False)

    @classmethod
    def fgm(cls, *, tries: int = 10) -> FromART:
        """FastGradientMethod: one step to the corners of [0, 1]."""
        return cls._masked("FastGradientMethod", tries)

    @classmethod
    def apgd(cls, *, steps: int = 30, restarts: int = 1, tries: int = 10) -> FromART:
        """AutoProjectedGradientDescent on the cross-entropy; its `mask` bounds nothing but the random start."""
        options = {"eps": 1.0, "eps_step": 0.5, "max_iter": steps, "nb_random_init": restarts, "verbose": False}
        return cls.named("AutoProjectedGradientDescent", tries=tries, **options)

    @classmethod
    def patch(
        cls, *, steps: int = 30, step: float = 0.1, rotation: float = 0.0, tries: int = 10, side: int | None = None
    ) -> FromART:
        """AdversarialPatchPyTorch: a square of the threat's shorter side, learned on each image at each placement."""
        options = {"max_iter": steps, "learning_rate": step, "rotation_max": rotation, "patch_type": "square"}
        more = {"targeted": False, "optimizer": "pgd", "verbose": False}
        build = Named("AdversarialPatchPyTorch", tuple({**options, **more}.items()))
        return cls(build=build, kind="patch", tries=tries, side=side)

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]  # of the others it depends on what is built
        """Of the attacks of ART that are known to climb; any other that does is refused when it asks for a gradient."""
        return self.name.removeprefix("art-") in _CLIMBING

    @property
    def name(self) -> str:
        made = getattr(self.build, "func", self.build)  # of a partial, what it is a partial of
        return f"art-{made.attack if isinstance(made, Named) else made.__name__}"

    def check(self, threat: Patches) -> None:
        if self.kind == "patch" and threat.count != 1:
            raise InvalidInput(
                f"patch is {threat}; ART's {self.name[4:]} puts down one, use a masked attack for several"
            )

    def _run(self, search: Search) -> None:
        if not torch.equal(search.x.float().to(search.x.dtype), search.x):
            raise InvalidInput(f"images are {search.x.dtype}; ART computes in float32: pass x.float()")
        if self.kind == "patch" and search.families[0].rectangle is None:
            raise InvalidInput(
                f"patch is {search.threat}; ART's {self.name[4:]} draws rectangles, use a masked attack for this"
            )
        if self.kind == "patch" and min(search.image_size) < 2:
            raise InvalidInput(
                f"images are {'x'.join(map(str, search.image_size))}; ART draws patches on 2x2 pixels at the least: "
                "use a masked attack"
            )
        going = search.going().nonzero()[:, 0].tolist()
        if not going:
            return
        classes = search.classifier.num_classes
        if not classes:
            with torch.no_grad():
                classes = Scores(search.classifier, search.x)(search.x[going[:1]]).shape[1]
            search.evaluations[going[0]] += 1
        queues = sites(search)
        for i in going:
            queue = islice(queues[i], self.tries)
            room = self.copies if self.budget is None else 1  # what one costs is known after the first
            while search.going()[i] and (some := list(islice(queue, room))):
                before = int(search.evaluations[i])
                self._try(search, i, some, classes)
                if self.budget is not None:
                    spent = int(search.evaluations[i])
                    each = max(1, (spent - before) // len(some))
                    room = max(1, min(self.copies, (self.budget - spent) // each))

    def _try(self, search: Search, i: int, some: list[Site], classes: int) -> None:
        """Run ART on as many copies of image i as there are placements, and offer what comes back."""
        rows = torch.full((len(some),), i, device=search.y.device)
        x, y = search.x[rows], search.y[rows]
        asked = search.anchors(torch.tensor([numbers for numbers, _ in some], device=x.device))
        other = (y.cpu() + torch.randint(1, classes, (len(some),), generator=search.stream(i))) % classes
        aimed = int(search.criterion.rival[i])
        rivals = [rival if aimed < 0 else aimed for _, rival in some]
        goals = [rival if rival >= 0 else int(k) for rival, k in zip(rivals, other, strict=True)]
        inside = search.threat.footprint(asked, *x.shape[2:])[:, None].expand_as(x)
        scores = Scores(search.classifier, x, inside if self.kind == "content" else None)
        seed = int(torch.randint(2**31, (), generator=search.stream(i)))
        with seeded(seed):
            made = self._generate(estimator_of(scores, x, classes), x, y, goals, asked, inside, search.patch_size)
        x_adv = scores.shown(torch.from_numpy(made).to(x))
        corners = claimed_corners(x, x_adv, asked, search.threat)
        search.evaluations[i] += scores.evaluations
        search.visit([i] * len(some), _numbers(corners, search))
        claimed = search.threat.footprint(corners, *x.shape[2:])[:, None]
        valid = ((x_adv >= 0) & (x_adv <= 1) & ((x_adv == x) | claimed)).flatten(1).all(dim=1)
        if valid.any():
            view = search.whole_view(rows[valid])
            with torch.no_grad():
                value, prediction = view(x_adv[valid])
            search.spend(rows[valid], view.cost)
            search.offer(rows[valid], corners[valid], x_adv[valid], value, search.hits(rows[valid], prediction))
        elif not search.held[i]:
            search.best[i], search.corners[i] = x_adv[0], corners[0]

    def _generate(
        self,
        estimator: PyTorchClassifier,
        x: Float[Tensor, "P C H W"],
        y: Int[Tensor, " P"],
        goals: list[int],
        asked: Int[Tensor, "P count 2"],
        inside: Bool[Tensor, "P C H W"],
        size: tuple[int, int],
    ) -> np.ndarray:
        """The images [P,C,H,W] that ART makes of x, each patched at the corners asked for."""
        images = x.detach().float().cpu().numpy()
        labels = np.eye(estimator.nb_classes, dtype=np.float32)
        if self.kind != "patch":
            attack = self.build(estimator)
            labels = labels[goals if _targeted(attack) else y.cpu().numpy()]
            masks = {"mask": inside.float().cpu().numpy()} if self.kind == "mask" else {}
            return np.asarray(attack.generate(images, labels, **masks), np.float32)
        side = self.side or min(size)
        made = []
        for row, (top, left) in enumerate(asked[:, 0].tolist()):
            attack = self.build(estimator, patch_shape=(x.shape[1], side, side), patch_location=(left, top))
            image = images[row : row + 1]
            attack.generate(image, labels[[goals[row] if _targeted(attack) else int(y[row])]])
            made.append(attack.apply_patch(image, scale=side / min(x.shape[2:])))
        return np.concatenate(made).astype(np.float32)


def claimed_corners(
    x: Float[Tensor, "P C H W"], x_adv: Float[Tensor, "P C H W"], asked: Int[Tensor, "P count 2"], threat: Patches
) -> Int[Tensor, "P count 2"]:
    """The rectangles asked for; a single one moved as little as needed to cover all that changed, where it can."""
    claimed = asked.clone()
    if threat.count != 1 or threat.family(*x.shape[2:]).rectangle is None:
        return claimed
    changed = (x_adv != x).any(dim=1)
    for row in changed.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
        for axis, size in enumerate((threat.height, threat.width)):
            lines = changed[row].any(dim=1 - axis).nonzero()[:, 0]
            first, last = int(lines[0]), int(lines[-1])
            if last - first >= size:
                claimed[row] = asked[row]
                break
            claimed[row, 0, axis] = min(max(int(asked[row, 0, axis]), last - size + 1, 0), first)
    return claimed


def _numbers(corners: Int[Tensor, "P count 2"], search: Search) -> list[list[int]]:
    """The placements with these corners, by number."""
    each = [family.find(corners[:, k]) for k, family in enumerate(search.families)]
    return torch.stack(each, dim=1).tolist()


def _targeted(attack: Any) -> bool:
    return bool(getattr(attack, "targeted", False))
