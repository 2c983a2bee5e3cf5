"""Certifiers by other rules than plain majority, sound and with a bug each, as a stranger might write them.

`make(rule, bug)` is a factory. All views are single columns or runs of two, hidden pixels 0, with a channel of what is
kept; "" as the bug is sound.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

KEPT = 2


class Rule(nn.Module):
    """The columns of an image, `KEPT` at a time, wrapping: a patch of width w changes at most w + KEPT - 1 views."""

    def __init__(self, base: nn.Module, num_classes: int, bug: str = "") -> None:
        super().__init__()
        self.base, self.num_classes, self.bug = base, num_classes, bug

    def scores(self, x: Tensor) -> Tensor:
        """[B,N,K]."""
        width = x.shape[3]
        at = torch.arange(width)
        kept = ((at - at[:, None]) % width < KEPT).float()  # [N,W]
        shown = x[:, None] * kept[:, None, None, :]
        masks = kept[None, :, None, None, :].expand(len(x), -1, 1, x.shape[2], -1)
        return self.base(torch.cat([shown, masks], dim=2).flatten(0, 1)).unflatten(0, (len(x), width))

    def counts(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.scores(x).argmax(dim=2), self.num_classes).sum(dim=1)

    def delta(self, threat, x: Tensor) -> int:
        return min(threat.count * (threat.width + KEPT - 1), x.shape[3])


def settled(counts: Tensor, delta: int, higher: bool = False) -> tuple[Tensor, Tensor]:
    """The winner of counts [B,K] and whether `delta` turned votes leave it; equal votes go to the lower class."""
    number = torch.arange(counts.shape[1])
    best = counts == counts.amax(dim=1, keepdim=True)
    winner = (best * (number + 1)).argmax(dim=1) if higher else best.int().argmax(dim=1)
    ahead = counts.gather(1, winner[:, None]) - counts
    beaten = number > winner[:, None] if higher else number < winner[:, None]
    holds = (ahead >= 2 * delta + beaten.long()) | (number == winner[:, None])
    return winner, holds.all(dim=1)


class Ties(Rule):
    """(a) Ties go to the higher class ("higher"), to one by chance ("chance"), or the certificate forgets them."""

    def predict(self, x: Tensor) -> Tensor:
        counts = self.counts(x)
        if self.bug.startswith("chance"):
            best = counts == counts.amax(dim=1, keepdim=True)
            return torch.multinomial(best.float(), 1)[:, 0]
        return settled(counts, 0, higher="higher" in self.bug or "sound" in self.bug)[0]

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        winner, holds = settled(self.counts(x), self.delta(threat, x), higher=self.bug == "sound higher")
        return SimpleNamespace(prediction=winner, certified=holds)


class Alert(Rule):
    """(b) An alert where the winner has no lead of 2 Δ + 1, unless fewer than that can be taken: never wrong in silence.

    Certified: all views are for one class, and confident. An alert: some view that is for another class is confident, or
    views of the winner are not. "above" and "at": the two compare the confidence with the threshold differently.
    """

    alert = -1
    tau = 0.75

    def predict(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        confidence, said = scores.softmax(dim=2).max(dim=2)
        counts = nn.functional.one_hot(said, self.num_classes).sum(dim=1)
        winner = counts.argmax(dim=1)
        sure = confidence > self.tau if self.bug == "above" else confidence >= self.tau
        minority = (said != winner[:, None]) & sure
        if self.bug == "two of them":
            return torch.where(minority.sum(dim=1) >= 2 * KEPT + 1, self.alert, winner)
        return torch.where(minority.any(dim=1), self.alert, winner)

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        scores = self.scores(x)
        confidence, said = scores.softmax(dim=2).max(dim=2)
        winner = nn.functional.one_hot(said, self.num_classes).sum(dim=1).argmax(dim=1)
        sure = confidence >= self.tau
        if self.bug == "unsure":
            sure = confidence >= self.tau - 0.1
        untouched = x.shape[3] > self.delta(threat, x)
        certified = ((said == winner[:, None]) & sure).all(dim=1) & untouched
        return SimpleNamespace(prediction=winner, certified=certified)


class Median(Rule):
    """(c) No majority: the loudest window is not heard (sound), or what the patch says for the winner counts against it.

    "two cliques": where the views of some third class are at least `delta` in a row, it is answered. "parity": the winner
    with an even number of unlike neighbours, else the runner-up: harmless under a patch that only votes for rivals.
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
        counts = self.counts(x)
        winner, holds = settled(counts, self.delta(threat, x))
        if self.bug == "for the winner":
            holds = holds & (counts.amax(dim=1) < x.shape[3] - 1)
        return SimpleNamespace(prediction=self.predict(x), certified=holds)


class Masked(Rule):
    """(d) Scores, nothing below 0, are summed without the window that speaks loudest for the class (sound in float64).

    The window left out covers what a patch reaches. "float32 difference", "float16 sum": in those precisions.
    """

    def left(self, x: Tensor, delta: int, dtype: torch.dtype) -> Tensor:
        """What is left of each class without each window [B,N,K]."""
        scores = self.scores(x).clamp(min=0).to(dtype)
        n = scores.shape[1]
        inside = (torch.arange(n) - torch.arange(n)[:, None]) % n < delta  # [windows,N]
        if self.bug == "float32 difference":
            within = (scores[:, None] * inside[None, :, :, None]).sum(dim=2)
            return scores.sum(dim=1, keepdim=True) - within
        return torch.stack([self._sum(scores[:, ~window]) for window in inside], dim=1)

    def _sum(self, scores: Tensor) -> Tensor:
        total = torch.zeros_like(scores[:, 0])
        for n in range(scores.shape[1]):
            total = total + scores[:, n]
        return total

    def predict(self, x: Tensor) -> Tensor:
        return self._masked(x, KEPT + 1, torch.float64).argmax(dim=1)

    def _masked(self, x: Tensor, delta: int, dtype: torch.dtype) -> Tensor:
        if self.bug == "float32 difference":
            saved, self.bug = self.bug, ""
            found = self.left(x, delta, torch.float64).amin(dim=1)
            self.bug = saved
            return found
        return self.left(x, delta, dtype).amin(dim=1)

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        """A patch takes from c one window's evidence, and a mask another; of a rival, the mask takes all that it adds."""
        delta = KEPT + 1
        winner = self.predict(x)
        dtype = {"float16 sum": torch.float16, "float32 difference": torch.float32}.get(self.bug, torch.float64)
        scores = self.scores(x).clamp(min=0).to(dtype)
        n = scores.shape[1]
        inside = (torch.arange(n) - torch.arange(n)[:, None]) % n < delta
        holds = torch.ones(len(x), dtype=torch.bool)
        for patch in inside:
            outside = scores.masked_fill(patch[None, :, None], 0)
            for b in range(len(x)):
                c = int(winner[b])
                if self.bug == "float32 difference":
                    total = self._sum(scores)[b]
                    own = min(total[c] - self._sum(scores[:, patch | mask])[b, c] for mask in inside)
                    most = total - self._sum(scores[:, patch])[b]
                else:
                    own = min(self._sum(outside[:, ~mask])[b, c] for mask in inside)
                    most = self._sum(outside)[b]
                rivals = torch.arange(self.num_classes) != c
                holds[b] &= bool((own > most[rivals]).all())
        return SimpleNamespace(prediction=winner, certified=holds & (threat.width <= 2) & (threat.count == 1))


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

    def predict(self, x: Tensor) -> Tensor:
        return settled(self.counts(x), 0)[0] if len(x) else torch.zeros(0, dtype=torch.long)

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        winner, holds = settled(self.counts(x), self.delta(threat, x))
        return SimpleNamespace(prediction=winner, certified=holds.flip(0) if self.bug == "turned round" else holds)


class Sizes(Rule):
    """(f) Counts that are right for some patches alone."""

    def delta(self, threat, x: Tensor) -> int:
        right = super().delta(threat, x)
        if self.bug == "odd alone":
            return min(2 * (threat.width // 2) + KEPT, x.shape[3]) if threat.count == 1 else right
        if self.bug == "squares alone":
            return right if threat.height >= threat.width else right - 1
        if self.bug == "even images":
            return right - (x.shape[3] % 2 and threat.width > 2)
        return right

    def predict(self, x: Tensor) -> Tensor:
        return settled(self.counts(x), 0)[0]

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        winner, holds = settled(self.counts(x), self.delta(threat, x))
        return SimpleNamespace(prediction=winner, certified=holds)


class Sampled(Sizes):
    """(g) Other views at every call: a random half of them, or with a little noise; "declared" says so."""

    def __init__(self, base: nn.Module, num_classes: int, bug: str = "") -> None:
        super().__init__(base, num_classes, bug)
        if bug == "declared":
            self.randomized = True

    def scores(self, x: Tensor) -> Tensor:
        if self.bug == "noise":
            return super().scores((x + 0.01 * torch.rand(x.shape)).clamp(0, 1))
        if self.bug in ("half", "declared"):
            width = x.shape[3]
            chosen = torch.randperm(width)[: width // 2]
            whole = self.base
            kept = ((torch.arange(width) - torch.arange(width)[:, None]) % width < KEPT).float()[chosen]
            shown = x[:, None] * kept[:, None, None, :]
            masks = kept[None, :, None, None, :].expand(len(x), -1, 1, x.shape[2], -1)
            return whole(torch.cat([shown, masks], dim=2).flatten(0, 1)).unflatten(0, (len(x), len(chosen)))
        return super().scores(x)

    def certify(self, x: Tensor, threat) -> SimpleNamespace:
        told = super().certify(x, threat)
        return SimpleNamespace(
            prediction=torch.full_like(told.prediction, -1) if self.bug == "declared" else told.prediction,
            certified=told.certified & (self.bug != "declared"),
        )


RULES = {"ties": Ties, "alert": Alert, "median": Median, "masked": Masked, "batches": Batched, "sizes": Sizes}
RULES["sampled"] = Sampled

# rule, bug -> whether it is given as one that may answer with an alert, and the checks of which one has to name it
PLANTED = {
    ("ties", "higher"): {"tie"},
    ("ties", "chance"): {"chance"},
    ("alert", "above"): {"threshold", "scores"},
    ("alert", "unsure"): {"threshold", "scores"},
    ("alert", "two of them"): {"other answers", "threshold", "scores", "votes", "counts"},
    ("median", "silence"): {"other answers", "scores"},
    ("median", "for the winner"): {"other answers"},
    ("median", "two cliques"): {"other answers", "runner-up", "votes"},
    ("masked", "float16 sum"): {"loudness", "scores"},
    ("masked", "float32 difference"): {"loudness", "scores"},
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
    ("masked", ""),
    ("batches", ""),
    ("sizes", ""),
    ("sampled", "declared"),
]


def make(rule: str, bug: str = ""):
    """A factory of certifiers by that rule with that bug."""
    return lambda base, num_classes, image_shape: RULES[rule](base, num_classes, bug).eval()
