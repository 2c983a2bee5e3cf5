"""Base classifiers that answer as dictated: an arbitrary function of the view they are shown, and of nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robustpatch.errors import InvalidInput

Key = bytes  # stands for one view: the digest of its values
Vote = tuple[int, ...]  # the classes that a view votes for, with equal scores; none: all alike
Logits = tuple[float, ...]  # the scores of a view, a number for each class
SCALE = 30.0  # logit of a class voted for, and less that of the others: softmax gives those 1e-26, a sigmoid 1e-13


@dataclass(frozen=True)
class Answers:
    """The answers of a base: `by_view` of each view that it knows, `others` of every other view."""

    by_view: dict[Key, Logits]
    others: Logits

    def tensors(self) -> dict[str, Tensor]:
        """The answers as tensors: keys [N,16], and answers [N+1,K], of which the first is that of all other views."""
        keys = torch.frombuffer(bytearray(b"".join(self.by_view)), dtype=torch.uint8).reshape(len(self.by_view), -1)
        return {"keys": keys, "answers": torch.tensor([self.others, *self.by_view.values()], dtype=torch.float32)}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Answers:
        """The answers that `tensors` made tensors of."""
        others, *rest = [tuple(row) for row in tensors["answers"].tolist()]
        return cls(dict(zip([bytes(row) for row in tensors["keys"].tolist()], rest, strict=True)), others)


class _Place:
    """A key for the answers of a base; a copy of the base has the same key, and answers the same."""

    __slots__ = ("__weakref__",)

    def __deepcopy__(self, memo: dict[int, object]) -> _Place:
        return self


@dataclass
class _Dictated:
    """Logits, of which row 0 is for all other views, the row of each view known, and a count of the views shown."""

    logits: Tensor
    rows: dict[Key, int] = field(default_factory=dict)
    shown: Counter[Key] | None = None


_DICTATED: WeakKeyDictionary[_Place, _Dictated] = WeakKeyDictionary()


class DictatedBase(nn.Module):
    """A base classifier that gives dictated answers for some views and one answer for all others.

    It looks up the view's own values in a table, so it is a function of its input alone, and every certificate has to
    hold for it; and it can be made the worst such function: the views of a clean image vote as dictated, whatever
    differs from them votes for the adversary's class. It knows nothing of encodings, wraps, strides or resizing: two
    views are the same iff their values are. Views may be arrays or tensors of any shape, one a row.

    The table is kept outside of the module. A certifier that tests its base again whenever the module has changed, as
    ours do, would otherwise do so for each of some thousand tables, which took more than half of the time; and
    what such a test looks for, no table can have: answers that depend on other views or on chance.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # where certifiers look for device and dtype
        self._place = _Place()
        _DICTATED[self._place] = _Dictated(torch.zeros(1, classes))

    def dictate(self, answers: Answers) -> None:
        """From now on return these very numbers."""
        kinds = dict.fromkeys(answers.by_view.values())
        number = {row: 1 + k for k, row in enumerate(kinds)}
        dictated = _DICTATED[self._place]
        dictated.logits = torch.tensor([answers.others, *kinds], dtype=torch.float32)
        dictated.rows = {key: number[row] for key, row in answers.by_view.items()}

    @contextmanager
    def recording(self) -> Iterator[Counter[Key]]:
        """Counts the views shown within."""
        dictated, shown = _DICTATED[self._place], Counter[Key]()
        dictated.shown = shown
        try:
            yield shown
        finally:
            dictated.shown = None

    def forward(self, views: Any) -> Any:
        dictated, keys = _DICTATED[self._place], keys_of(views)
        if dictated.shown is not None:
            dictated.shown.update(keys)
        logits = dictated.logits[torch.tensor([dictated.rows.get(key, 0) for key in keys], dtype=torch.long)]
        return logits.to(views.device) if isinstance(views, Tensor) else logits.numpy()


def vote(classes: int, answer: Vote, scale: float = 1.0) -> Logits:
    """The scores of a vote for all classes of `answer`, `scale` times as large."""
    return tuple(scale * (SCALE if k in answer else -SCALE) for k in range(classes))


def keys_of(views: Any) -> list[Key]:
    """A key for each row: equal iff the values are (0 and -0 are)."""
    array = views.detach().cpu().float().numpy() if isinstance(views, Tensor) else np.asarray(views)
    if array.ndim < 2:
        raise InvalidInput(f"the factory's certifier gave its base an input of shape {array.shape}; one row a view")
    rows = np.ascontiguousarray(array.reshape(len(array), -1) + 0.0)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
