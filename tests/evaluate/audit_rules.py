"""Certifiers by other rules than plain majority, sound and with a bug each, as a stranger might write them.

`make(rule, bug)` is a factory. All views are single columns or runs of two, hidden pixels 0, with a channel of what is
kept; "" as the bug is sound.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.evaluate.acceptance.common import ColumnVotes, torch_views


class Rule(ColumnVotes):
    """The majority of the columns of an image, two at a time, wrapping; `bug` names what is wrong."""

    def __init__(self, base: nn.Module, num_classes: int, bug: str = "") -> None:
        super().__init__(base, num_classes)
        self.bug = bug


class Ties(Rule):
    """(a) Ties go to the higher class ("higher"), to one by chance ("chance"), or the certificate forgets them."""

    def winner(self, counts: Tensor) -> Tensor:
        best = counts == counts.amax(dim=1, keepdim=True)
        number = torch.arange(1, self.num_classes + 1)
        return (best * number).argmax(dim=1) if "higher" in self.bug else best.int().argmax(dim=1)

    def needed(self, number: Tensor, prediction: Tensor) -> Tensor:
        return (number > prediction if self.bug == "sound higher" else number < prediction).long()

    def predict(self, x: Tensor) -> Tensor:
        counts = self.counts(x)
        best = counts == counts.amax(dim=1, keepdim=True)
        return torch.multinomial(best.float(), 1)[:, 0] if self.bug == "chance" else self.winner(counts)


class Alert(Rule):
    """(b) The class of the whole image, and an alert where it is confidently contradicted once a window is hidden.

    Certified: the image and all views with a window hidden are for one class, these with at least `tau`. One of the
    windows hides the patch, so that its view is as it was and contradicts whatever else the image is taken for.
    "above": it contradicts only above `tau`. "unsure": certified from `tau` - 0.1 on. "majority": it takes two views.
    """

    alert = -1
    tau = 0.75
    hidden = 5

    def scores(self, x: Tensor) -> Tensor:
        """[B,1+N,K]: of the whole image, then with each window hidden."""
        width = x.shape[3]
        at, size = torch.arange(width), min(self.hidden, width)
        starts = torch.arange(width - size + 1)[:, None]
        kept = torch.cat([torch.ones(1, width), ((at < starts) | (at >= starts + size)).float()])
        return self.base(torch_views(x, kept.bool().numpy())).unflatten(0, (len(kept), len(x))).transpose(0, 1)

    def predict(self, x: Tensor) -> Tensor:
        confidence, said = self.scores(x).softmax(dim=2).max(dim=2)
        sure = confidence > self.tau if self.bug == "above" else confidence >= self.tau
        against = ((said != said[:, :1]) & sure)[:, 1:].sum(dim=1)
        return torch.where(against > (1 if self.bug == "majority" else 0), self.alert, said[:, 0])

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        confidence, said = self.scores(x).softmax(dim=2).max(dim=2)
        sure = confidence[:, 1:] >= self.tau - (0.1 if self.bug == "unsure" else 0)
        certified = (said == said[:, :1]).all(dim=1) & sure.all(dim=1)
        fits = threat.count == 1 and threat.width <= self.hidden <= x.shape[3]
        return SimpleNamespace(prediction=said[:, 0], certified=certified & fits)


class Median(Rule):
    """(c) The majority, but what a patch says for the winner, for nobody or for a third class can be its undoing.

    "silence": where two views say nothing, the last class. "for the winner": where all views but one agree, the next
    class. "two cliques": where the second and the third class are level and there, the second.
    """

    def predict(self, x: Tensor) -> Tensor:
        said = self.scores(x).argmax(dim=2)
        counts = nn.functional.one_hot(said, self.num_classes).sum(dim=1)
        winner = counts.argmax(dim=1)
        if self.bug == "two cliques":
            second = counts.scatter(1, winner[:, None], -1).max(dim=1)
            third = counts.scatter(1, winner[:, None], -1).scatter(1, second.indices[:, None], -1).amax(dim=1)
            return torch.where((third >= 2) & (second.values - third <= 1), second.indices, winner)
        if self.bug == "silence":
            silent = (self.scores(x).amax(dim=2) == self.scores(x).amin(dim=2)).sum(dim=1)
            return torch.where(silent >= 2, counts.shape[1] - 1, winner)
        if self.bug == "for the winner":
            return torch.where(counts.amax(dim=1) >= x.shape[3] - 1, (winner + 1) % self.num_classes, winner)
        return winner

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        holds = super().certify(x, threat).certified
        if self.bug == "for the winner":
            holds = holds & (self.counts(x).amax(dim=1) < x.shape[3] - 1)
        return SimpleNamespace(prediction=self.predict(x), certified=holds)


class Summed(Rule):
    """(d) Scores from 0 to `cap`, summed exactly; certified where the lead is more than twice what a patch can move.

    "float16 sum", "float32 sum", "bfloat16 sum": the certificate adds up in that precision, one view after another.
    "float64 sum" is sound, of scores up to 2^24.
    "saturated": predict stops counting at 2048.
    """

    def sums(self, x: Tensor, dtype: torch.dtype, cap: float) -> Tensor:
        scores = self.scores(x).to(torch.float64).clamp(0, cap).to(dtype)
        total = torch.zeros_like(scores[:, 0])
        for n in range(scores.shape[1]):
            total = total + scores[:, n]
        return total.to(torch.float64)

    @property
    def cap(self) -> float:
        return {"": 4.0, "float16 sum": 2048.0, "bfloat16 sum": 256.0}.get(self.bug, 2.0**24)

    def predict(self, x: Tensor) -> Tensor:
        found = self.sums(x, torch.float64, self.cap)
        return (found.clamp(max=2048) if self.bug == "saturated" else found).argmax(dim=1)

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        kinds = {"float16 sum": torch.float16, "float32 sum": torch.float32, "bfloat16 sum": torch.bfloat16}
        found = self.sums(x, kinds.get(self.bug, torch.float64), self.cap)
        winner = found.argmax(dim=1)
        number = torch.arange(self.num_classes)
        lead = found.gather(1, winner[:, None]) - found
        moved = 2 * self.delta(x, threat) * self.cap
        beaten = (number < winner[:, None]) & (lead == moved)
        holds = ((lead >= moved) & ~beaten) | (number == winner[:, None])
        return SimpleNamespace(prediction=winner, certified=holds.all(dim=1))


class Batched(Rule):
    """(e) What is said of one image depends on the others, or on what was asked before."""

    def __init__(self, base: nn.Module, num_classes: int, bug: str = "") -> None:
        super().__init__(base, num_classes, bug)
        self.before: Tensor | None = None

    def counts(self, x: Tensor) -> Tensor:
        counts = super().counts(x)
        if self.bug == "mean of the batch" and len(x) > 1:
            counts = counts - counts.float().mean(dim=0).long()
        if self.bug == "last incomplete batch" and len(x) % 8 and len(x) > 8:
            counts[-(len(x) % 8) :] = counts[: len(x) % 8]
        if self.bug == "left over":
            if self.before is not None and len(self.before) == len(x):
                counts = torch.maximum(counts, self.before // 2)
            self.before = counts
        return counts

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        told = super().certify(x, threat)
        if self.bug == "turned round":
            told.certified = told.certified.flip(0)
        return told


class Sizes(Rule):
    """(f) Counts that are right for some patches alone."""

    def delta(self, x: Tensor, threat) -> int:
        right = super().delta(x, threat)
        if self.bug == "odd alone":
            return min(2 * (threat.width // 2) + 1, x.shape[3]) if threat.count == 1 else right
        if self.bug == "squares alone":
            return right if threat.height >= threat.width else right - 1
        if self.bug == "even images":
            return right - (x.shape[3] % 2 and threat.width > 2)
        return right


class Sampled(Rule):
    """(g) Other views at every call: a random half of them, or with a little noise; "declared" says so."""

    def __init__(self, base: nn.Module, num_classes: int, bug: str = "") -> None:
        super().__init__(base, num_classes, bug)
        if bug == "declared":
            self.randomized = True

    def scores(self, x: Tensor) -> Tensor:
        if self.bug == "noise":
            return super().scores((x + 0.01 * torch.rand(x.shape)).clamp(0, 1))
        width = x.shape[3]
        kept = self.kept(x)[torch.randperm(width)[: width // 2].numpy()]
        return self.base(torch_views(x, kept)).unflatten(0, (len(kept), len(x))).transpose(0, 1)

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        told = super().certify(x, threat)
        if self.bug == "declared":
            told.prediction, told.certified = torch.full_like(told.prediction, -1), torch.zeros(len(x)).bool()
        return told


RULES: dict[str, type[Rule]] = {
    "ties": Ties,
    "alert": Alert,
    "median": Median,
    "summed": Summed,
    "batches": Batched,
    "sizes": Sizes,
    "sampled": Sampled,
}

# rule, bug -> the checks of which one has to name it
PLANTED = {
    ("ties", "higher"): {"tie"},
    ("ties", "chance"): {"chance"},
    ("alert", "above"): {"threshold", "scores"},
    ("alert", "unsure"): {"threshold", "scores"},
    ("alert", "majority"): {"votes", "counts", "other answers", "border"},
    ("median", "silence"): {"other answers", "scores"},
    ("median", "for the winner"): {"other answers"},
    ("median", "two cliques"): {"other answers", "runner-up", "votes"},
    ("summed", "float16 sum"): {"large scores"},
    ("summed", "float32 sum"): {"large scores"},
    ("summed", "bfloat16 sum"): {"large scores"},
    ("summed", "saturated"): {"agreement"},
    ("batches", "mean of the batch"): {"batches"},
    ("batches", "last incomplete batch"): {"batches"},
    ("batches", "left over"): {"batches"},
    ("batches", "turned round"): {"batches"},
    ("sizes", "odd alone"): {"counts", "border"},
    ("sizes", "squares alone"): {"counts", "border", "sides"},
    ("sizes", "even images"): {"counts", "border"},
    ("sampled", "half"): {"views"},
    ("sampled", "noise"): {"views"},
}
SOUND = [
    ("ties", ""),
    ("ties", "sound higher"),
    ("alert", ""),
    ("median", ""),
    ("summed", ""),
    ("summed", "float64 sum"),
    ("batches", ""),
    ("sizes", ""),
    ("sampled", "declared"),
]


def make(rule: str, bug: str = ""):
    """A factory of certifiers by that rule with that bug."""
    return lambda base, num_classes, image_shape: RULES[rule](base, num_classes, bug).eval()
