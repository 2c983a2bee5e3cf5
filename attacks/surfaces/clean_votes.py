"""Votes of clean images that the certificate has made already: pruned searches do not score the images clean again.

Certified images are attacked by searches that are not pruned (`surface_of(…, pruned=False)`), which ask afresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.voting.votes import Scored, Votes


@dataclass(frozen=True)
class _Known:
    model: nn.Module
    row: dict[bytes, int]  # of each image, by its bytes
    votes: Votes | Scored


_known: ContextVar[_Known | None] = ContextVar("clean votes", default=None)


@contextmanager
def known_votes(classifier: Classifier, x: Tensor, votes: Votes | Scored | None) -> Iterator[None]:
    """Let searches of this classifier within it take these votes (None: none) for those of the images x [B,C,H,W].

    They are charged all the same, so that what a budget buys does not depend on what is known.
    """
    row = {key: i for i, key in enumerate(_keys(x))} if votes is not None else {}
    token = _known.set(None if votes is None else _Known(classifier.given, row, votes))
    try:
        yield
    finally:
        _known.reset(token)


def votes_of(classifier: Classifier, voting: SmoothedClassifier, x: Tensor) -> Votes | Scored:
    """The votes of the ablations of `voting`, by which `classifier` decides, of clean images [B,C,H,W]."""
    known = _known.get()
    if known is not None and known.model is classifier.given:
        rows = [known.row.get(key) for key in _keys(x)]
        if None not in rows:
            return known.votes.of(torch.tensor(rows, dtype=torch.long, device=x.device))
    return voting.votes(lent(x))


def _keys(x: Tensor) -> list[bytes]:
    return [image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for image in x]
