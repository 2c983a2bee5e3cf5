"""Training by interval bounds: the placements of a patch that a step looks at, and the losses of their worst cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from robustpatch.defenses.bounds import Box, Graph, margins
from robustpatch.defenses.bounds.head import first_of, tensor_of
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat


class Guide(nn.Module):
    """A value for each pixel, of the image at half its size; of a placement, the mean over its pixels.

    Trained by cross-entropy to tell which of the placements looked at was worst (after Chiang et al. 2020, Section 3,
    whose guide predicts the loss). Its first weights are the same every time, and the certificate needs none of them.
    """

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(1, channels, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(channels, 1, 5, padding=2),
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        half = F.avg_pool2d(x.mean(dim=1, keepdim=True), 2, ceil_mode=True)
        return F.interpolate(self.layers(half).float(), size=tuple(x.shape[2:]))


@dataclass(frozen=True)
class Candidates:
    """`free` [B,P,H,W]: the pixels of P choices of placements for each image; `guess` [B,P]: the guide's values."""

    free: Bool[Tensor, "B P H W"]
    guess: Float[Tensor, "B P"] | None


def every_placement(x: Float[Tensor, "B C H W"], threat: Threat) -> Candidates:
    """Every placement of the threat, for every image. Raises `InvalidInput` for several patches."""
    height, width = x.shape[2:]
    masks = []
    for one in threat.threats:
        if one.count > 1:
            raise InvalidInput(f"patch is {one}, and placements 0 are all of one patch; draw some of several patches")
        places = one.family(height, width)
        masks.append(places.footprint(torch.arange(len(places))))
    return Candidates(torch.cat(masks).to(x.device).expand(len(x), -1, -1, -1), None)


def drawn_placements(
    x: Float[Tensor, "B C H W"], threat: Threat, count: int, generator: torch.Generator, guide: nn.Module | None = None
) -> Candidates:
    """`count` choices, of the threats in turn, the same for all images of the batch. With a guide, of each image's own,
    every second where it expects the worst: with the probabilities softmax(value). Chance is the `generator`'s.
    """
    if guide is None:
        shared = _drawn(x[:1], threat, count, generator, None)
        return Candidates(shared.free.expand(len(x), -1, -1, -1), None)
    return _drawn(x, threat, count, generator, guide(x))


def _drawn(x: Tensor, threat: Threat, count: int, generator: torch.Generator, value: Tensor | None) -> Candidates:
    first = int(torch.randint(len(threat.threats), (), generator=generator))
    free, guess = [], []
    for number in range(count):
        one = threat.threats[(first + number) % len(threat.threats)]
        places = one.family(x.shape[2], x.shape[3])
        scores = None if value is None else places.means(value[:, 0])
        placement = _draw(len(x), one.count, len(places), scores if number % 2 else None, generator).to(x.device)
        if scores is not None:
            guess.append(scores.gather(1, placement).mean(dim=1))
        free.append(one.footprint(places.anchors.to(x.device)[placement], x.shape[2], x.shape[3]))
    return Candidates(torch.stack(free, dim=1), torch.stack(guess, dim=1) if guess else None)


def _draw(
    images: int, count: int, places: int, scores: Tensor | None, generator: torch.Generator
) -> Int[Tensor, "B count"]:
    """The number of each patch's place."""
    if scores is not None:
        chance = scores.detach().float().cpu().softmax(dim=1)
        return torch.multinomial(chance, count, replacement=True, generator=generator)
    return torch.randint(places, (images, count), generator=generator)


def box(x: Float[Tensor, "M C H W"], free: Bool[Tensor, "M H W"], share: float = 1.0) -> Box:
    """Least and largest value of each pixel: [0, 1] where it is free (with a smaller share, on the way there)."""
    free = free[:, None]
    return Box(torch.where(free, (1 - share) * x, x), torch.where(free, 1 - (1 - share) * (1 - x), x))


def raised(graph: Graph, images: Box, y: Int[Tensor, " M"], node: int = 0) -> Float[Tensor, "M K"]:
    """Upper bounds of z_j - z_y over the images in the box, or over the values of that node; differentiable."""
    return -margins(graph, {node: images}, y, outward=False).float()


def placement_losses(
    graph: Graph,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"],
    free: Bool[Tensor, "B P H W"],
    share: float,
    chunk: int,
) -> Float[Tensor, "B P"]:
    """The cross-entropy of the worst contents of the pixels of each placement, `share` of the way from what they are.

    Where placements are the same for all images and the first layer is fully connected, its bounds are what it computes
    of the clean images, moved by the patch's pixels: |W|r is of the placement alone.
    """
    first, count, found = first_of(graph), free.shape[1], []
    if free.stride(0) or first is None or first.node == graph.output.node:
        for pairs in torch.arange(len(x) * count, device=x.device).split(chunk):
            image, which = pairs // count, pairs % count
            worst = raised(graph, box(x[image], free[image, which], share), y[image])
            found.append(F.cross_entropy(worst, y[image], reduction="none"))
        return torch.cat(found).view(-1, count)
    constants = graph.constants()
    whole, bias = tensor_of(first.weight, constants).t(), first.bias and tensor_of(first.bias, constants)
    flat = x.flatten(1)
    clean, toward = F.linear(flat, whole, bias), share * (0.5 - flat)
    for mask in free[0]:
        pixels = mask.expand(x.shape[1:]).flatten().nonzero()[:, 0]
        weight = whole[:, pixels]
        middle, radius = clean + F.linear(toward[:, pixels], weight), weight.abs().sum(dim=1) * (share / 2)
        worst = raised(graph, Box(middle - radius, middle + radius), y, first.node)
        found.append(F.cross_entropy(worst, y, reduction="none"))
    return torch.stack(found, dim=1)
