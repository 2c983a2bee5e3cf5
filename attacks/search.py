"""A search under way: evaluations spent, random numbers of each image's own, the best patch yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from attacks.base import Proposal, check_call, require, visible
from attacks.criterion import Criterion, as_criterion, asked, counts_for, is_broken
from attacks.pasting import crop, paste
from attacks.predict_sample import PredictSample
from attacks.surfaces import Attacked, View, surface_of, whole_view
from attacks.surfaces.views import Objective, aimed
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.threats.base import Patches


class Search:
    """B images under attack: which are broken, what each has cost, and the best patch found for each.

    An image counts as broken once `predict` on the whole attacked image says so, whatever the cheaper view of it said.
    Random numbers are drawn for each image on its own, from the generator's state and the image's content, so that
    what is tried on an image does not depend on the images beside it; how much is under way when a budget ends may.

    Attributes:
        surface: how the classifier looks to this search (`attacks.surfaces`). criterion: when an image is broken.
        y: Int[B], the classes to move away from.
        broken: Bool[B]. gap: Float[B], the least objective yet (-inf where broken). evaluations: Int[B].
            (This is the surface's account: to be added to in place.)
        held: Bool[B], whether a patch was tried that shows (`attacks.base.visible`): then `best` is one of these.
        open: Int[B], how many placements are open to the attacker (all but those that a certificate closed).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"] | Criterion,
        threat: Patches,
        *,
        touched_only: bool,
        budget: int | None,
        generator: torch.Generator,
    ) -> None:
        classifier, criterion = as_classifier(model), as_criterion(y)
        check_call(classifier, x, criterion.y, threat)
        x, criterion = x.detach(), criterion.to(x.device)
        self.classifier, self.model, self.criterion = classifier, classifier.given, criterion
        self.x, self.y, self.threat, self.budget = x, criterion.y, threat, budget
        self.families = threat.families(x.shape[2], x.shape[3])
        self._anchors = {family: family.anchors.to(x.device) for family in self.families}
        self._kinds = list(self._anchors)
        self._kind_of_patch = [self._kinds.index(family) for family in self.families]
        self._root = int(torch.randint(2**62, (), generator=generator))
        self._streams: dict[int, torch.Generator] = {}
        attacked = Attacked(x, self.y, threat, budget, criterion.rank)
        self.surface = surface_of(classifier, attacked, touched_only)
        self.evaluations = self.surface.evaluations
        counts = counts_for(classifier, criterion, x)
        if counts is not None:
            self.evaluations += self.surface.forward_cost
        self.broken = is_broken(classifier, criterion, self.surface.prediction, counts)
        self._sample = PredictSample(len(x)) if classifier.predicts_apart else None
        self._seen = torch.zeros_like(self.broken)  # by `predict`, under a patch
        self.gap = torch.where(self.broken, -torch.inf, torch.inf)
        self.best = x.clone()
        self.held = torch.zeros_like(self.broken)
        self.corners = self.anchors(self.y.new_zeros(len(x), threat.count))
        self.open = torch.full_like(self.y, sum(map(len, self._kinds)))
        self._tried: list[set[tuple[int, int]]] = [set() for _ in range(len(x))]
        self.on_spent: Callable[[int, int], None] | None = None  # told the evaluations so far, and the images broken

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.x.shape[2], self.x.shape[3]

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of the box that holds a patch."""
        return self.threat.height, self.threat.width

    @property
    def alike(self) -> bool:
        """True where all patches have the same places."""
        return len(self._kinds) == 1

    def anchors(self, placement: Int[Tensor, "*any count"]) -> Int[Tensor, "*any count 2"]:
        """The anchors of these placements, by number: one of each patch."""
        if self.alike:
            return self._anchors[self._kinds[0]][placement]
        each = zip(self.families, placement.unbind(dim=-1), strict=True)
        return torch.stack([self._anchors[family][numbers] for family, numbers in each], dim=-2)

    def drawn(self, image: Sequence[int], generator: torch.Generator) -> Int[Tensor, "n count"]:
        """Uniformly random placements of all patches, a row for each of the images named, on the CPU."""
        if self.alike:
            return torch.randint(len(self.families[0]), (len(image), len(self.families)), generator=generator)
        each = [torch.randint(len(family), (len(image),), generator=generator) for family in self.families]
        return torch.stack(each, dim=1)

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

    @property
    def climb_cost(self) -> int:
        """Evaluations of one forward pass at one placement, at the most."""
        return self.surface.climb_cost

    def view(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        rival: Int[Tensor, " P"] | None = None,
        objective: Objective = "votes",
    ) -> View:
        """Attacked copies of these images, patched at these placements (by number): towards the criterion's own class
        where it names one.
        """
        return aimed(self.surface.view(image, placement, rival, objective), self.criterion.rival[image])

    def whole_view(self, image: Int[Tensor, " P"]) -> View:
        """The same, of these images as they will be shown, scored whole."""
        view = whole_view(self.classifier, self.x[image], self.y[image], rank=self.criterion.rank)
        return aimed(view, self.criterion.rival[image])

    def check_target(self, target: int | None) -> None:
        """Refuse a class that there is none of, before an index out of range brings a GPU down."""
        if target is not None and len(self.x):
            classes = self.classifier.count_outputs(self.x)
            require(target < classes, "target", target, f"below {classes}, the number of classes")

    def hits(self, image: Int[Tensor, " P"], prediction: Int[Tensor, " P"]) -> Bool[Tensor, " P"]:
        """Mark the rows whose prediction by a view is worth asking the classifier itself."""
        target = self.criterion.rival[image]
        return torch.where(target >= 0, prediction == target, prediction != self.y[image])

    def paste(
        self, image: Int[Tensor, " P"], placement: Int[Tensor, "P count"], patch: Float[Tensor, "P count C h w"]
    ) -> Float[Tensor, "P C H W"]:
        """Copies of the images with these patches in place; where two overlap, the last one shows.

        Of a content [h,w], the bounding box of the shape, only the shape's pixels show.
        """
        shown, anchors = self.x[image], self.anchors(placement)
        for k, family in enumerate(self.families):
            h, w = family.box
            pasted = paste(shown, family.corners(anchors[:, k, None]), patch[:, k, None, :, :h, :w])
            if family.rectangle is not None:
                shown = pasted
            else:
                shown = torch.where(family.footprint(placement[:, k])[:, None], pasted, shown)
        return shown

    def footprint(self, placement: Int[Tensor, "P count"]) -> Bool[Tensor, "P H W"]:
        """The pixels under the patches at these placements."""
        each = [family.footprint(placement[:, k]) for k, family in enumerate(self.families)]
        return torch.stack(each).any(dim=0)

    def crop(
        self, x_adv: Float[Tensor, "P C H W"], anchors: Int[Tensor, "P count 2"]
    ) -> Float[Tensor, "P count C h w"]:
        """The contents of the boxes of patches at these anchors, zeros beyond smaller ones: `paste` takes them."""
        each = []
        for k, family in enumerate(self.families):
            content = crop(x_adv, family.corners(anchors[:, k, None]), family.box)
            more = [most - own for most, own in zip(self.patch_size, family.box, strict=True)]
            each.append(pad(content, (0, more[1], 0, more[0])) if any(more) else content)
        return torch.cat(each, dim=1)

    def spend(self, image: Int[Tensor, " P"], evaluations: Int[Tensor, " P"]) -> None:
        """Put evaluations to the account of each row's image."""
        self.evaluations.index_add_(0, image, evaluations)
        if self.on_spent is not None:
            self.on_spent(int(self.evaluations.sum()), int(self.broken.sum()))

    def visit(self, image: list[int], placement: list[list[int]]) -> None:
        """Note that these placements are being tried."""
        for i, sites in zip(image, placement, strict=True):
            self._tried[i].update(zip(self._kind_of_patch, sites, strict=True))

    @torch.no_grad()
    def try_patches(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        patch: Float[Tensor, "P count C h w"],
        *,
        batch: int,
        rival: Int[Tensor, " P"] | None = None,
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
            view = self.view(i, where, rival[rows] if rival is not None else None)
            if self.budget is not None:
                left = self.evaluations[i] + turn(i) * view.cost < self.budget
                rows, i, where, view = rows[left], i[left], where[left], view.keep(left)
            x_adv = self.paste(i, where, patch[rows])
            value[rows], prediction = view(x_adv)
            self.spend(i, view.cost)
            self.visit(i.tolist(), where.tolist())
            self.offer(i, self.anchors(where), x_adv, value[rows], self.hits(i, prediction))
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

        Of a classifier whose `predict` is more than its scores, hits are not only what the scores say: it is asked
        about one in eight of the patches, and whatever is better than the best so far (`attacks.predict_sample`).

        Of what does not break the image, only patches that show are kept, and the first of them whatever its value:
        an attack whose best try were the clean image would have nothing to be judged by.
        """
        value = value.masked_fill(value.isnan(), torch.inf)
        if self._sample is not None:
            boxes = torch.stack([one.corners(corners[:, k]) for k, one in enumerate(self.families)], dim=1)
            some = self._sample.chosen(image, self.crop(x_adv, corners), boxes) | (value < self.gap[image])
            hit = hit | self._predicted(image, x_adv, some & ~hit)
        for row in hit.nonzero()[:, 0].tolist():
            i = int(image[row])
            if self.broken[i]:
                continue
            broken, _, spent = asked(self.classifier, self.criterion.of(slice(i, i + 1)), x_adv[row : row + 1])
            self.evaluations[i] += spent[0]
            if broken[0]:
                self.best[i], self.corners[i] = x_adv[row], corners[row]
                self.broken[i], self.gap[i], self.held[i], self._seen[i] = True, -torch.inf, True, True
        promising = ((value < self.gap[image]) | ~self.held[image]).nonzero()[:, 0]
        promising = promising[visible(self.x[image[promising]], x_adv[promising])]
        for row in promising[value[promising].argsort(descending=True, stable=True)].tolist():  # written last: the best
            i = int(image[row])
            self.best[i], self.corners[i], self.gap[i], self.held[i] = x_adv[row], corners[row], value[row], True

    def _predicted(
        self, image: Int[Tensor, " P"], x_adv: Float[Tensor, "P C H W"], due: Bool[Tensor, " P"]
    ) -> Bool[Tensor, " P"]:
        """Ask the classifier itself, within the budget, about the rows that are due: where it meets the criterion."""
        rows = (due & self.going()[image]).nonzero()[:, 0]
        if self.budget is not None and len(rows):
            i = image[rows]
            rows = rows[self.evaluations[i] + turn(i) * self.surface.predict_cost < self.budget]
        changed = torch.zeros_like(due)
        if len(rows):
            changed[rows], _, spent = asked(self.classifier, self.criterion.of(image[rows]), x_adv[rows])
            self.spend(image[rows], spent)
        return changed

    def proposal(self) -> Proposal:
        """The best patch of each image; `visited` counts distinct single placements tried among those open."""
        tried = torch.tensor([len(sites) for sites in self._tried], device=self.y.device)
        visited = (tried / self.open.clamp(min=1)).clamp(max=1).to(torch.float32)
        return Proposal(self.best, self.corners, self.evaluations, visited, broken=self._seen)


def turn(image: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
    """Count, for each row, the rows before it that are of the same image."""
    order = image.argsort(stable=True)
    ranked = image[order]
    turn = torch.empty_like(image)
    turn[order] = torch.arange(len(image), device=image.device) - torch.searchsorted(ranked, ranked)
    return turn
