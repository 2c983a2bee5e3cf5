"""The columns of a sweep's rows: what is listed here is computed of each image, and in each shard, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evaluate.results.table import Column
from robustpatch.certificates.certificate import Method
from robustpatch.certificates.exact import certify_votes, largest_certified
from robustpatch.certificates.lead import ranks
from robustpatch.certificates.top_k import certify_top_k
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import Voting, first_argmax
from robustpatch.voting.votes import Scored, Votes

METHODS: tuple[Method, ...] = ("exact", "margin")


@dataclass(frozen=True)
class RuledBatch:
    """Images of one batch, scored by one checkpoint, whose votes are counted by one rule; the guard is the model's."""

    model: SmoothedClassifier
    scores: Tensor
    image_size: tuple[int, int]
    voting: Voting
    labels: Tensor | None = None
    checkpoint: str = ""
    index: range = range(0)

    @cached_property
    def guard(self) -> float:
        return self.model.guard_on(self.scores.device)

    @cached_property
    def votes(self) -> Votes | Scored:
        return self.voting.votes(self.scores, self.guard)

    def largest(self, method: Method) -> Tensor:
        return largest_certified(self.votes, self.model.ablation, self.image_size, method)

    def margin(self, method: Method, patch: Threat) -> Tensor:
        found = certify_votes(self.votes, self.model.ablation, patch, self.image_size, method=method, guard=self.guard)
        assert found.margin is not None  # of votes there always is one
        return torch.div(found.margin, found.unit, rounding_mode="floor")

    def top_margin(self, k: int, patch: Threat) -> Tensor:
        assert self.labels is not None
        capacity = self.voting.capacity(self.model.num_classes)
        given = (self.model.ablation, patch, self.image_size)
        found = certify_top_k(self.votes, self.labels, k, *given, capacity=capacity, guard=self.guard)
        return torch.div(found.margin, found.unit, rounding_mode="floor")

    def rank(self) -> Tensor:
        assert self.labels is not None
        return ranks(self.votes.counts, self.labels.to(self.scores.device))


def margin_column(method: Method, patch: object) -> str:
    """The column with the margins against one patch: certified iff ≥ 0."""
    return f"margin_{method} {patch}"


def top_column(k: int, patch: object) -> str:
    """The column with the margins of the label among the k most voted, against one patch: certified iff ≥ 0."""
    return f"margin_top{k} {patch}"


KEYS: tuple[Column[RuledBatch], ...] = (
    Column(field="checkpoint", kind=str, value=lambda batch: [batch.checkpoint] * len(batch.index)),
    Column(field="ablation", kind=str, value=lambda batch: [str(batch.model.ablation)] * len(batch.index)),
    Column(field="voting", kind=str, value=lambda batch: [str(batch.voting)] * len(batch.index)),
    Column(field="index", kind=int, value=lambda batch: list(batch.index)),
    Column(field="label", kind=int, value=lambda batch: batch.labels),
)


def columns(patches: Sequence[Threat | str], top_k: Sequence[int] = ()) -> tuple[Column[RuledBatch], ...]:
    """All columns: those that say which image a row is of, and those that certificates fill."""
    return (*KEYS, *certified_columns(patches, top_k))


def certified_columns(patches: Sequence[Threat | str], top_k: Sequence[int] = ()) -> tuple[Column[RuledBatch], ...]:
    """The columns that certificates fill.

    `largest_certified` and `largest_certified_margin` are sides of squares, by the exact certificate and by the paper's
    margin; 0 where there is none. `close_votes` counts votes within the guard of turning over. `rank`, where top k
    are asked for, is how many classes come before the label. Margins are in whole votes, rounded down. Of patches
    given by their text alone the columns can be read, not filled.
    """
    found: list[Column[RuledBatch]] = [
        _numbers("prediction", lambda batch: first_argmax(batch.votes.counts)),
        _numbers("largest_certified", lambda batch: batch.largest("exact")),
        _numbers("largest_certified_margin", lambda batch: batch.largest("margin")),
        _numbers("close_votes", lambda batch: batch.votes.close.flatten(1).sum(dim=1)),
    ]
    for patch in patches:
        for method in METHODS:
            found.append(_numbers(margin_column(method, patch), lambda b, m=method, p=patch: b.margin(m, p)))
    if top_k:
        found.append(_numbers("rank", RuledBatch.rank))
    for patch in patches:
        for k in top_k:
            found.append(_numbers(top_column(k, patch), lambda b, k=k, p=patch: b.top_margin(k, p)))
    return tuple(found)


def _numbers(field: str, value: Any) -> Column[RuledBatch]:
    return Column(field=field, kind=int, value=value)
