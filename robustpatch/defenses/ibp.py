"""Interval bound propagation: the patch's pixels may be anything, and bounds of the outputs say which class can win."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from robustpatch import precision
from robustpatch.certificates.each_image import certify_each
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.defenses.base import Defended, Defense
from robustpatch.defenses.bounds import Box, Graph, Traced, bounds, flushes_subnormal, margins, sums_of_products
from robustpatch.defenses.ibp_training import Guide, box, drawn_placements, every_placement, placement_losses, raised
from robustpatch.defenses.regions import Regions
from robustpatch.errors import InvalidInput
from robustpatch.memory import chunk
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.parse import as_threat
from robustpatch.voting.rules import first_argmax


@dataclass(frozen=True)
class IBP(Defense):
    """Train and certify a network by bounds of its outputs over all contents of a patch (Chiang et al. 2020).

    `placements`: how many placements of each image a training step looks at, 0 for all; the gradient is of the worst
    of them. They are drawn at random, and with `guided` half of them where a small network, trained alongside, expects
    the worst (Section 3). The patch's pixels widen from what they are to [0, 1], and the loss of the worst case gains
    its `weight` against that of the clean prediction, both linearly within the first `ramp` of the training.

    The certificate takes none of these. Raises `InvalidInput`.
    """

    name: ClassVar[str] = "ibp"
    placements: int = 10
    guided: bool = False
    weight: float = 0.7
    ramp: float = 0.5

    def __post_init__(self) -> None:
        if self.placements < 0:
            raise InvalidInput(f"placements is {self.placements}; give a number to draw for each image, or 0 for all")
        if self.guided and self.placements < 2:
            raise InvalidInput(f"placements is {self.placements}, but guided draws half of them; draw at least 2")
        for name in ("weight", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; give a share between 0 and 1")

    def wrap(self, network: nn.Module, *, num_classes: int) -> BoundedClassifier:
        return BoundedClassifier(network, self, num_classes=num_classes)


class BoundedClassifier(Defended, CertifiedClassifier):
    """For every image that it certifies, no content of a patch within the threat changes its prediction.

    `predict`, `forward` in evaluation mode and the certificate all run one graph: the operators that the network runs
    in evaluation mode, recorded once and run again, each on every image alone (see `robustpatch.defenses.bounds`).
    Whatever has a part in the network's outputs at the recording (hooks, replaced methods, functions) is in the graph
    of all three; hooks on this classifier, and modes of torch, are in none. The graph is recorded anew when the
    network's modules, attributes, hooks or weights are replaced, or images have another shape, type or device; its
    weights are read at every run. What else changes (a global that the network reads, a method replaced in its class)
    counts after `retrace`; `certify` refuses a network that computes something else than its graph of the clean images.

    At each placement the patch's pixels become [0, 1] and bounds go through the graph, rounded outward (see
    `robustpatch.defenses.bounds.rounding`): whatever it computes of a patched image, in any order of summation and in
    any batch, lies within. c is certified iff z_c - z_j > 0 is so proved everywhere for every other class j: that two
    sums come out equal, so that the lowest index wins, rounding leaves nobody to prove. `guard` is 0: it is in the
    bounds. Where a bound on the way is infinite, nothing is certified.

    Raises `InvalidInput` for operators without known bounds, naming them, for what decides by values or mixes images,
    and where products are computed in less than float32.
    """

    defense: IBP
    certified_in_training: ClassVar[int] = 500

    def __init__(self, network: nn.Module, defense: IBP, *, num_classes: int) -> None:
        super().__init__(network, defense, num_classes=num_classes)
        self.guide = Guide() if defense.guided else None
        self._traced = Traced()

    def retrace(self) -> None:
        """Record the network anew at its next use."""
        self._traced.forget()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The outputs of the images: of the graph in evaluation mode, in its precision, of the network in training.
        Raises `InvalidInput`.
        """
        if any(module.training for module in self.modules()):
            with sums_of_products():
                return self.network(self._match(x).clone())
        return self._outputs(self._precise(x))

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class of the largest output in the network's own type, in which it is bounded. Raises `InvalidInput`."""
        checks.inputs(self, x)
        # Not self(x), which hooks on this classifier could change.
        return first_argmax(self._outputs(self._precise(x)))

    def _outputs(self, x: Tensor) -> Float[Tensor, "B K"]:
        graph = self._graph(x)
        with sums_of_products():
            return graph(x)

    def _graph(self, x: Tensor) -> Graph:
        """Returns the graph of operators that the network runs on images like these. Raises `InvalidInput`."""
        graph = self._traced.of(self.network, x)
        outputs = graph.nodes[graph.output.node].meta(graph.output).shape[1]
        if outputs != self.num_classes:
            raise InvalidInput(
                f"num_classes is {self.num_classes}, but the network has {outputs} outputs; make both agree"
            )
        return graph

    def _match(self, x: Tensor) -> Tensor:
        """The images as a plain tensor of the weights' type."""
        own, plain = (getattr(kind, "__torch_dispatch__", None) for kind in (type(x), Tensor))
        if own is not plain:
            raise InvalidInput(f"images are a {type(x).__name__}, with operators of its own; pass a torch.Tensor")
        parameter = next(self.network.parameters(), None)
        with torch._C.DisableTorchFunction():
            x = x if type(x) in (Tensor, nn.Parameter) else x.as_subclass(Tensor)
            return x if parameter is None else x.to(parameter.dtype)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """Prove, for each image, that no patch within `threat` changes the prediction.

        `margin` is a lower bound of z_c - z_j over all placements, contents and rivals: certified iff ≥ 0, as it lies
        strictly below. Neighbouring placements are tried together, as one patch that holds them all, and
        apart only where that fails; an image is left once a placement fails alone. Several patches: every
        choice of their placements. Raises `InvalidInput`.
        """
        checks.inputs(self, x)
        threat = as_threat(threat, x.shape[2:])
        if threat.varies:
            return certify_each(self.certify, x, threat)
        x = self._check(x, threat)
        for one in threat.threats:  # what cannot be bounded is refused before any work
            Regions.of(one, (x.shape[2], x.shape[3]), 0, x.device)
        graph = self._graph(x)
        logits = self._outputs(x)
        self._check_clean(graph, x, logits)
        prediction = first_argmax(logits)
        margin = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        for _ in self._decided(graph, x, prediction, threat, margin):
            pass
        return Certificate(
            prediction=prediction,
            certified=margin >= 0,
            margin=margin,
            placement_margin=None,
            threat=threat,
            method="bounds",
            guard=0.0,
            close=torch.zeros_like(prediction),
        )

    @torch.no_grad()
    def bounded_regions(
        self, x: Float[Tensor, "B C H W"], threat: Threat
    ) -> list[tuple[int, Int[Tensor, " M"], Int[Tensor, "M count 4"], Float[Tensor, " M"]]]:
        """The evidence behind `certify`: of each alternative of the threat, by number, images and regions of placements
        (`Regions`) and the least lead of the prediction there. In those of a certified image, all at least 0, lies
        every placement. Raises `InvalidInput`.
        """
        x = self._check(x, threat)
        graph, prediction = self._graph(x), first_argmax(self._outputs(x))
        margin = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        return list(self._decided(graph, x, prediction, threat, margin))

    def _decided(
        self, graph: Graph, x: Tensor, prediction: Tensor, threat: Threat, margin: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yields regions that need not be tried in halves, with their bounds, and lowers `margin` to these."""
        for number, one in enumerate(threat.threats):
            alive = (margin >= 0).nonzero()[:, 0]
            regions = Regions.of(one, (x.shape[2], x.shape[3]), len(alive), x.device)
            while len(regions):
                regions, some = regions.split(self._chunk(x))
                image = alive[some.image]
                found = _margins(graph, x[image], some.footprint(), prediction[image])
                failed = found < 0
                sure = ~failed | some.single
                margin.scatter_reduce_(0, image[sure], found[sure], "amin")
                yield number, image[sure], some.corners[sure], found[sure]
                regions = regions.join(some.keep(failed & ~some.single).halves())
                regions = regions.keep(margin[alive[regions.image]] >= 0)

    @torch.no_grad()
    def placement_margins(self, x: Float[Tensor, "B C H W"], threat: Patches) -> Float[Tensor, "B L"]:
        """The margin of each placement on its own, in row-major order: the vulnerability map, and what `certify` gives
        without trying placements together or leaving any out. Raises `InvalidInput`, for several patches too.
        """
        x = self._check(x, threat)
        if threat.count > 1:
            raise InvalidInput(f"patch is {threat}; only one patch has a map of its placements")
        graph, prediction = self._graph(x), first_argmax(self._outputs(x))
        places = threat.family(x.shape[2], x.shape[3])
        masks = places.footprint(torch.arange(len(places), device=x.device))
        each = [
            torch.cat(
                [
                    _margins(graph, image.expand(len(some), -1, -1, -1), some, own.expand(len(some)))
                    for some in masks.split(self._chunk(x))
                ]
            )
            for image, own in zip(x, prediction, strict=True)
        ]
        return torch.stack(each) if each else x.new_zeros(0, len(masks))

    def margins(self, x: Float[Tensor, "M C H W"], free: Tensor, own: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Lower bounds, over every content of the pixels `free` (Bool[M,H,W]) and every j, of z_c - z_j for c = `own`.

        They are strictly below: of those not negative, c is proved to be predicted, the sole largest.
        """
        x = self._precise(x)
        return _margins(self._graph(x), x, free, own)

    def _check(self, x: Tensor, threat: Threat) -> Tensor:
        """The images as the network takes them, after every test that needs no bounds."""
        checks.inputs(self, x)
        threat.check_fits(x.shape[2], x.shape[3])
        return self._precise(x)

    def _precise(self, x: Tensor) -> Tensor:
        """The images as the network takes them. Raises `InvalidInput` where it computes in less than float32: every
        operator of its graph gives the type of its first parameter, which these have, or has no bounds.
        """
        x = self._match(x)
        remedies = precision.remedies([x], x.device.type)
        if remedies:
            raise InvalidInput(
                "network computes in less than float32 (bfloat16, float16, TF32 or autocast), whose rounding is not "
                f"bounded; for float32: {'; '.join(remedies)}"
            )
        if x.device.type == "cpu" and flushes_subnormal():
            raise InvalidInput(
                "torch takes subnormal numbers for 0 in this thread, or in one that computes for it, which bounds do "
                "not cover; leave out torch.set_flush_denormal(True), and start anew"
            )
        return x

    def _check_clean(self, graph: Graph, x: Tensor, logits: Tensor) -> None:
        """Refuse outputs that are no numbers, and a network that computes something else than its graph."""
        checks.finite_scores(logits)
        try:
            with sums_of_products():
                computed = self.network(x.clone())
        except Exception as error:
            raise InvalidInput(f"network fails, though not when it was recorded: {error}; mend it") from error
        (lower, upper), sound = bounds(graph, Box(x, x))
        for found in (logits, computed):
            inside = found.shape == lower.shape and bool(((lower <= found) & (found <= upper))[sound].all())
            if not inside:
                raise InvalidInput(
                    "network computes something else than when it was recorded, or differently each time: its outputs "
                    "leave their bounds; call retrace() after changing what it does from outside"
                )

    def _chunk(self, x: Tensor) -> int:
        return chunk(2 * x[0].numel(), x.device, False)

    def training_loss(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat, generator: torch.Generator, done: float
    ) -> Float[Tensor, ""]:
        """(1 - κ)·cross-entropy of the outputs + κ·cross-entropy of the worst case's, z_j raised against z_y as far as
        bounds allow at the worst of the placements looked at. Batch norm bounds take the running statistics.
        """
        x, share = self._match(x), 1.0 if self.defense.ramp == 0 else min(1.0, done / self.defense.ramp)
        kappa = self.defense.weight * share
        if self.defense.placements == 0:
            candidates = every_placement(x, threat)
        else:
            candidates = drawn_placements(x, threat, self.defense.placements, generator, self.guide)
        worst = self.losses(x, y, candidates.free, share).argmax(dim=1)
        every = torch.arange(len(x), device=x.device)
        loss = kappa * F.cross_entropy(raised(self._graph(x), box(x, candidates.free[every, worst], share), y), y)
        if kappa < 1:
            loss = loss + (1 - kappa) * F.cross_entropy(self.network(x).float(), y)
        if candidates.guess is not None:
            loss = loss + F.cross_entropy(candidates.guess, worst)
        return loss

    @torch.no_grad()
    def losses(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], free: Bool[Tensor, "B P H W"], share: float = 1.0
    ) -> Float[Tensor, "B P"]:
        """The worst case's cross-entropy at each of the placements `free`; see `placement_losses`."""
        return placement_losses(self._graph(x), x, y, free, share, self._chunk(x))


def _margins(graph: Graph, x: Tensor, free: Tensor, own: Tensor) -> Float[Tensor, " M"]:
    found = margins(graph, {0: box(x, free)}, own)
    return found.scatter(1, own[:, None], torch.inf).nan_to_num(nan=-torch.inf, posinf=torch.inf).amin(dim=1)
