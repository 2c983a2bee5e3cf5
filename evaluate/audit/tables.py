"""Base classifiers that answer by heart: an arbitrary function of the view they are shown, and of nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robustpatch.errors import InvalidInput

Key = bytes  # stands for one view: the digest of its values
Answer = tuple[int, ...]  # the classes that a view votes for, with equal scores; none: all alike
Row = tuple[float, ...]  # what the base says of a view, a number for each class
SCALE = 30.0  # logit of a class voted for, and less that of the others: softmax gives those 1e-26, a sigmoid 1e-13


class _Place:
    """A key for the answers of a base; a copy of the base has the same key, and answers the same."""

    __slots__ = ("__weakref__",)

    def __deepcopy__(self, memo: dict[int, object]) -> _Place:
        return self


@dataclass
class _Said:
    """Logits, of which row 0 is for all other views, the row of each view known, and a count of the views shown."""

    logits: Tensor
    rows: dict[Key, int] = field(default_factory=dict)
    shown: Counter[Key] | None = None


_SAID: WeakKeyDictionary[_Place, _Said] = WeakKeyDictionary()


class TableBase(nn.Module):
    """A base classifier that knows some views by heart and says the same of all others.

    Being a lookup in a table of the views' own values, it is a function of its input alone, so every certificate has
    to hold for it; and it can be made the worst such function: the views of a clean image vote as dictated, whatever
    differs from them votes for the adversary's class. It knows nothing of encodings, wraps, strides or resizing: two
    views are the same iff their values are. Views may be arrays or tensors of any shape, one a row.

    The table is kept outside of the module. A certifier that tests its base again whenever the module has changed, as
    ours do, would otherwise do so for each of some thousand tables, which took more than half of the time; and
    what such a test looks for, no table can have: answers that depend on other views or on chance.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # where certifiers look for device and dtype
        self.classes = classes
        self._place = _Place()
        _SAID[self._place] = _Said(torch.zeros(1, classes))

    def dictate(self, answers: Mapping[Key, Answer], others: Answer, *, loud: float = 1.0) -> None:
        """Let views answer so, and all the `others` so, `loud` times as loud."""
        rows = {answer: vote(self.classes, answer) for answer in set(answers.values())}
        self.say({key: rows[answer] for key, answer in answers.items()}, vote(self.classes, others, loud))

    def say(self, answers: Mapping[Key, Row], others: Row) -> None:
        """Let the base return these very numbers for the views it knows, and `others` for every other view."""
        kinds = dict.fromkeys(answers.values())
        number = {row: 1 + k for k, row in enumerate(kinds)}
        said = _SAID[self._place]
        said.logits = torch.tensor([others, *kinds], dtype=torch.float32)
        said.rows = {key: number[row] for key, row in answers.items()}

    @contextmanager
    def recording(self) -> Iterator[Counter[Key]]:
        """Counts the views shown within."""
        said, shown = _SAID[self._place], Counter[Key]()
        said.shown = shown
        try:
            yield shown
        finally:
            said.shown = None

    def forward(self, views: Any) -> Any:
        said, keys = _SAID[self._place], keys_of(views)
        if said.shown is not None:
            said.shown.update(keys)
        logits = said.logits[torch.tensor([said.rows.get(key, 0) for key in keys], dtype=torch.long)]
        return logits.to(views.device) if isinstance(views, Tensor) else logits.numpy()


def vote(classes: int, answer: Answer, loud: float = 1.0) -> Row:
    """The scores of a vote for all classes of `answer`, `loud` times as large."""
    return tuple(loud * (SCALE if k in answer else -SCALE) for k in range(classes))


def keys_of(views: Any) -> list[Key]:
    """A key for each row: equal iff the values are (0 and -0 are)."""
    array = views.detach().cpu().float().numpy() if isinstance(views, Tensor) else np.asarray(views)
    if array.ndim < 2:
        raise InvalidInput(f"the factory's certifier gave its base an input of shape {array.shape}; one row a view")
    rows = np.ascontiguousarray(array.reshape(len(array), -1) + 0.0)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
