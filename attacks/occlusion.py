"""Occlusion: where the answer suffers most from a grey rectangle, an attack; and content that is no attack at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.attack import Attack
from attacks.base import content_hash, require
from attacks.climb import Ascent, Task, climb
from attacks.gradient import differentiate
from attacks.pasting import crop
from attacks.placement import grid, nearest, try_everywhere, window_sums
from attacks.search import Search
from robustpatch.classifiers import checks
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements
from robustpatch.threats.rectangle import PatchThreat

Content = Literal["grey", "noise", "natural"]
CONTROLS: tuple[str, ...] = get_args(Content)  # and so are the controls named


@dataclass(frozen=True, kw_only=True)
class ROA(Attack):
    """Rectangular occlusion attack: PGD at the `top` placements where a grey rectangle brings success nearest.

    `search` "sliding" tries grey at every placement on rows and columns that are multiples of `stride`, the last ones
    included; "gradient" at the `candidates` of these under which the clean image's squared gradient of the soft-vote
    gap sums to most (neighbours sum to much the same: a stride of half the patch spreads them). Several patches are
    put down one after the other, each where it does most beside those before it. PGD starts from that grey, or with
    `random_start` from noise.

    At most (L + (2·steps + 1)·top)·n evaluations an image, L the placements tried times the number of patches, n the
    ablations scored; the gradient costs two passes over all ablations more.

    Wu et al. 2020, section 4. Their code skips the last row and column.
    """

    needs_gradient: ClassVar[bool] = True
    search: Literal["sliding", "gradient"] = "sliding"
    candidates: int = 30
    stride: int = 1
    top: int = 1
    steps: int = 30
    step: float = 0.1
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.search in ("sliding", "gradient"), "search", repr(self.search), '"sliding" or "gradient"')
        for name in ("candidates", "stride", "top"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        self.ascent  # noqa: B018  its own checks

    @property
    def ascent(self) -> Ascent:
        return Ascent(self.steps, self.step)

    @property
    def name(self) -> str:
        return "roa" if self.search == "sliding" else "roa-gradient"

    def _run(self, search: Search) -> None:
        found, value = self.put_down(search)
        order = value.argsort(dim=1, stable=True)[:, : self.top]
        grey = _grey(search, [0], search.y.new_zeros(1, search.threat.count))[0]
        queues = [
            [Task(tuple(sites), start=None if self.random_start else grey) for sites in each[some].tolist()]
            for each, some in zip(found, order, strict=True)
        ]
        climb(search, list(queues), self.ascent, batch=self.batch)

    def put_down(self, search: Search) -> tuple[Int[Tensor, "B M count"], Float[Tensor, "B M"]]:
        """Returns the placements of the last patch that were tried, beside those chosen for the ones before it, and the
        objective with grey patches there.
        """
        count = search.threat.count
        power = _squared_gradient(search, self.batch) if self.search == "gradient" else None
        known = {family: self._sites(search, family, power) for family in dict.fromkeys(search.families)}
        own = [known[family] for family in search.families]
        found = torch.stack([nearest(search, own[0], 0, k) for k in range(count)], dim=2)
        value = try_everywhere(search, found, _grey, self.batch)
        for k in range(1, count):
            best = found[torch.arange(len(found), device=found.device), value.argmin(dim=1), :k]
            after = [nearest(search, own[k], k, later) for later in range(k, count)]
            found = torch.cat([best[:, None].expand(-1, own[k].shape[1], -1), torch.stack(after, dim=2)], dim=2)
            value = try_everywhere(search, found, _grey, self.batch)
        return found, value

    def _sites(self, search: Search, family: Placements, power: Float[Tensor, "B H W"] | None) -> Int[Tensor, "B M"]:
        """The placements to occlude, by number; with a `power`, where it sums to most."""
        on_grid = grid(family, self.stride).nonzero()[:, 0].to(search.x.device)
        if power is None:
            return on_grid.expand(len(search.y), -1)
        sums = window_sums(power, family)[:, on_grid]
        sites = on_grid[: self.candidates].repeat(len(sums), 1)
        for i in search.going().nonzero()[:, 0].tolist():
            # Equal sums in random order: where votes are saturated there is no gradient at all.
            order = torch.randperm(len(on_grid), generator=search.stream(i)).to(sums.device)
            order = order[sums[i][order].argsort(descending=True, stable=True)]
            sites[i] = on_grid[order[: self.candidates]]
        return sites


def _squared_gradient(search: Search, batch: int) -> Float[Tensor, "B H W"]:
    """Of the clean objective, summed over channels, in double precision: its squares may be tiny. Zero where none is
    needed any more."""
    power = torch.zeros_like(search.x[:, 0], dtype=torch.float64)
    image = search.going().nonzero()[:, 0]
    for some in image.split(batch) if len(image) else ():
        view = search.whole_view(some)
        gradient = differentiate(view, search.x[some])[2]
        search.spend(some, 2 * view.cost)
        power[some] = gradient.double().square().sum(dim=1)
    return power


def _grey(search: Search, _: list[int], sites: Int[Tensor, "P count"]) -> Float[Tensor, "P count C h w"]:
    return search.x.new_tensor(0.5).expand(*sites.shape, search.x.shape[1], *search.patch_size)


@dataclass(frozen=True, kw_only=True)
class Control(Attack):
    """No attack: content that knows nothing of the classifier, at `tries` random placements; what breaks is accident.

    A certified image that met nothing else was not attacked (`evaluate.runs.records.Record.threats_tested`).
    `content` is "grey" (one half), "noise" (uniform), or "natural": random regions of other images, those of `source`
    [S,C,H',W'] or else the other images of the batch (so that here what is tried on an image depends on those beside
    it); where there is no other, another region of the image itself. Where `tries` reaches the number of placements,
    each is tried once; several patches are put down at random each time.

    At most `tries` · n evaluations an image, n the ablations scored.
    """

    content: Content
    tries: int = 100
    source: Tensor | None = field(default=None, compare=False, repr=False)
    source_hash: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.content in CONTROLS, "content", repr(self.content), f"one of {', '.join(CONTROLS)}")
        require(self.tries >= 1, "tries", self.tries, "at least 1")
        if self.source is not None:
            require(self.content == "natural", "source", "given", 'None unless content is "natural"')
            checks.image_values(self.source)
            require(len(self.source) > 0, "source", "empty", "at least one image")
            object.__setattr__(self, "source_hash", content_hash(self.source))

    @property
    def name(self) -> str:
        return self.content

    def check(self, threat: Patches) -> None:
        if self.source is not None:
            threat.check_fits(self.source.shape[2], self.source.shape[3])

    def _run(self, search: Search) -> None:
        number, count = len(search.families[0]), search.threat.count
        if self.source is not None and self.source.shape[1] != search.x.shape[1]:
            raise InvalidInput(
                f"control source has {self.source.shape[1]} channels, the images {search.x.shape[1]}; give both alike"
            )
        tries = min(self.tries, number) if count == 1 else self.tries
        sites = search.y.new_zeros(len(search.y), tries, count)
        for i in search.going().nonzero()[:, 0].tolist():
            if count == 1:
                chosen = torch.randperm(number, generator=search.stream(i))[:tries, None]
            else:
                chosen = search.drawn([i] * tries, search.stream(i))
            sites[i] = chosen
        try_everywhere(search, sites, self._content, self.batch)

    def _content(
        self, search: Search, image: list[int], sites: Int[Tensor, "P count"]
    ) -> Float[Tensor, "P count C h w"]:
        if self.content == "noise":
            return search.noise(image)
        if self.content == "grey":
            return _grey(search, image, sites)
        source = search.x if self.source is None else self.source.to(search.x)
        size = (source.shape[2], source.shape[3])
        places = PatchThreat(*search.patch_size).placements(*size).to(sites.device)
        shape = (2, sites.shape[1])
        u = torch.stack([torch.randint(2**40, shape, generator=search.stream(i)) for i in image]).to(sites.device)
        own = torch.tensor(image, device=sites.device)[:, None]
        which, place = torch.zeros_like(sites), u[:, 1] % len(places)
        if self.source is not None:
            which = u[:, 0] % len(source)
        elif len(source) > 1:
            which = u[:, 0] % (len(source) - 1)
            which = which + (which >= own).long()
        elif len(places) > 1:
            place = u[:, 1] % (len(places) - 1)
            place = place + (place >= sites).long()
        regions = [
            crop(source[which[:, k]], places[place[:, k, None]], search.patch_size) for k in range(sites.shape[1])
        ]
        return torch.cat(regions, dim=1)
