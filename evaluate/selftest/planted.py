"""Certifiers with one bug each, as a stranger might write them: plain loops, no code shared with the library.

`make(bug)` is a factory (`evaluate.audit`): column smoothing with top-1 votes and the paper's margin, in which `bug`
names what is wrong; "" is sound.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

SIZE = 2  # columns kept


class Smoothing(nn.Module):
    """Views in steps of `stride`, each of SIZE columns, wrapping; hidden pixels 0, with a channel of what is kept."""

    def __init__(self, base: nn.Module, num_classes: int, bug: str = "", stride: int = 1) -> None:
        super().__init__()
        self.base, self.num_classes, self.bug, self.stride = base, num_classes, bug, stride
        self.size = 3 if bug == "3 stride" else SIZE
        self.known: dict[object, SimpleNamespace] = {}

    def views(self, x: Tensor) -> list[Tensor]:
        if self.bug == "14 blur before ablation":
            x = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        if self.bug == "14 normalised by the image":
            x = x - x.mean(dim=(1, 2, 3), keepdim=True)
        width = x.shape[3]
        starts = list(range(0, width, self.stride))
        if self.bug == "8 a view twice":
            starts += [0, 1]
        found = []
        for start in starts:
            kept = torch.zeros_like(x[:, :1])
            for k in range(self.size + (self.bug == "8 a wider view" and start == 3)):
                if self.bug != "2 no wrap in the views" or start + k < width:
                    kept[..., (start + k) % width] = 1
            if self.bug == "10 one channel ablated":
                shown = torch.cat([x[:, :1] * kept, x[:, 1:]], dim=1)
            elif self.bug == "11 ablation in place":
                x *= kept
                shown = x.clone()
            else:
                shown = torch.where(kept > 0, x, 0.0)
            found.append(torch.cat([shown, kept], dim=1))
        return found

    def scores(self, x: Tensor) -> Tensor:
        """[N,B,K], all views in one call."""
        views = self.views(x if self.bug == "11 ablation in place" else x.clone())
        return self.base(torch.cat(views)).unflatten(0, (len(views), len(x)))

    def counts(self, x: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
        total = torch.zeros(len(x), self.num_classes, dtype=dtype)
        for vote in nn.functional.one_hot(self.scores(x).argmax(dim=2), self.num_classes):
            total += vote.to(dtype)
        return total

    def predict(self, x: Tensor) -> Tensor:
        if self.bug == "12 predict adds scores":
            return self.scores(x).sum(dim=0).argmax(dim=1)
        if self.bug == "12 predict without the last view":
            votes = self.base(torch.cat(self.views(x)[:-1])).argmax(dim=1).unflatten(0, (-1, len(x)))
            return nn.functional.one_hot(votes, self.num_classes).sum(dim=0).argmax(dim=1)
        if self.bug == "ties abstained from":
            first, second = self._counts(x).topk(2, dim=1).values.unbind(dim=1)
            return torch.where(first > second, self._counts(x).argmax(dim=1), -1)
        return self._counts(x).argmax(dim=1)

    def _counts(self, x: Tensor) -> Tensor:
        if self.bug == "16 eight bits":
            return self.counts(x, torch.uint8).long()
        if self.bug == "24 bfloat16":
            return self.counts(x, torch.bfloat16).long()
        return self.counts(x)

    def delta(self, height: int, width: int, x: Tensor) -> int:
        if self.bug in ("6 image sides swapped", "7 patch sides swapped"):
            width = height
        if self.stride > 1:
            starts = range(0, x.shape[3], self.stride)
            if self.bug == "3 stride":
                return -(-(width + self.size - 1) // self.stride)
            touched = [
                sum(any((s + k) % x.shape[3] in range(p, p + width) for k in range(self.size)) for s in starts)
                for p in range(x.shape[3] - width + 1)
            ]
            return max(touched)
        delta = width + SIZE - 1 - (self.bug == "1 off by one")
        return delta % x.shape[3] if self.bug == "9 more than all" else min(delta, x.shape[3])

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        key = tuple(x.shape) if self.bug == "19 cache by shape" else (x.numpy().tobytes(), x.shape)
        if self.bug.startswith("19") and key in self.known:
            return self.known[key]
        counts = self._counts(x)
        prediction = counts.argmax(dim=1)
        own = counts.gather(1, prediction[:, None])
        number = torch.arange(self.num_classes)
        rivals = counts.masked_fill(number == prediction[:, None], -1)
        if threat.count > 1 and self.bug != "several patches as one":
            delta = threat.count * self.delta(threat.height, threat.width, x)
        else:
            delta = self.delta(threat.height, threat.width, x)
        needed = 2 * delta + (number < prediction[:, None]).long()
        if self.bug == "ties forgotten":
            needed = torch.full_like(needed, 2 * delta)
        holds = own - counts >= needed
        if self.bug == "4 tie with another rival":
            last = rivals.shape[1] - 1 - rivals.flip(1).argmax(dim=1)
            certified = holds.gather(1, last[:, None])[:, 0]
        elif self.bug == "5 only the runner-up":
            ahead = rivals.argmax(dim=1)
            spent = own[:, 0] - delta >= rivals.gather(1, ahead[:, None])[:, 0] + delta + (ahead < prediction).long()
            certified = spent & (prediction >= 0)
        else:
            certified = (holds | (number == prediction[:, None])).all(dim=1)
        if self.bug == "withdrawn votes only":
            certified = (own - counts >= delta + (number < prediction[:, None]).long()) | (
                number == prediction[:, None]
            )
            certified = certified.all(dim=1)
        found = SimpleNamespace(prediction=prediction, certified=certified)
        self.known[key] = found
        return found


def make(bug: str, stride: int = 1):
    """A factory of certifiers with that bug."""

    def factory(base, num_classes, image_shape):
        return Smoothing(base, num_classes, bug, 3 if bug == "3 stride" else stride).eval()

    return factory
