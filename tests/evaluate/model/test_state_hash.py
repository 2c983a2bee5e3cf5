"""Values of objects that libraries make: two that differ are two models, and what cannot be told is never the same."""

from __future__ import annotations

import copy
import datetime
import functools
import operator
import threading
from collections import defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from evaluate.model.identity import identity_of
from evaluate.model.state_hash import hash_state
from evaluate.runs.run_identity import claim
from robustpatch import Columns, PatchThreat, SmoothedClassifier
from robustpatch.classifiers.base import Classifier
from robustpatch.defenses.ibp import IBP, BoundedClassifier
from robustpatch.errors import InvalidInput

PAIRS = {
    "a namespace": (SimpleNamespace(t=1), SimpleNamespace(t=2)),
    "nested": ([SimpleNamespace(t=[Decimal(1)])], [SimpleNamespace(t=[Decimal(2)])]),
    "a decimal": (Decimal("0.8"), Decimal(2)),
    "a fraction": (Fraction(1, 3), Fraction(2, 3)),
    "a deque": (deque([1]), deque([2])),
    "a defaultdict": (defaultdict(int, a=1), defaultdict(int, a=2)),
    "an array of objects": (np.array([1, "a"], object), np.array([2, "a"], object)),
    "a scalar": (np.float32(1), np.float32(2)),
    "a date": (datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)),
    "a time": (datetime.time(1), datetime.time(2)),
    "a distribution": (torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, 2.0)),
    "a getter": (operator.itemgetter(1), operator.itemgetter(2)),
    "a range": (range(1), range(2)),
    "bytes": (bytearray(b"a"), bytearray(b"b")),
    "a generator": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "a set and a text": (set(), ""),
    "a set and a frozen one": ({1}, frozenset({1})),
    "numpy's generator": (np.random.default_rng(1), np.random.default_rng(2)),
}


def code_of(model):
    return hash_state([model])[0]


class Holder(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


@pytest.mark.parametrize("kind", PAIRS)
def test_values_of_libraries_are_told_apart(kind):
    one, other = PAIRS[kind]
    assert code_of(Holder(one)) != code_of(Holder(other))
    again = copy.deepcopy(one) if not isinstance(one, torch.Generator) else torch.Generator().manual_seed(1)
    assert code_of(Holder(one)) == code_of(Holder(again))


def test_what_cannot_be_told_is_never_resumed(tmp_path):
    """A new run is made; going on with it is refused, and the message names the kind of object."""
    model = Holder(threading.Lock())
    claim(tmp_path, identity_of(model))
    with pytest.raises(InvalidInput, match=r"cannot pickle '_thread.lock' object.*; name a new output"):
        claim(tmp_path, identity_of(model))


def test_cycles_end():
    value = SimpleNamespace(t=1)
    value.me = value
    assert code_of(Holder(value)) == code_of(Holder(value))


def test_what_a_classifier_was_asked_before_is_no_part_of_it():
    """Else a run could not be resumed with a model that has certified in the meantime."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 8, 3))
    model = SmoothedClassifier(base, Columns(1), num_classes=3).eval()
    bounded = BoundedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4 * 8, 3)), IBP(), num_classes=3).eval()
    for one in (model, bounded):
        before, x = code_of(one), torch.rand(2, 1, 4, 8)
        one.certify(x, PatchThreat(1, 1))
        one.certify(x, PatchThreat(1, 1))
        assert code_of(one) == before


_TABLE, _table = {"limit": 0.5}, {"limit": 0.5}


class Limited(nn.Module):
    """Reads a constant of its module, one of its own, and two tables that look like caches."""

    def __init__(self) -> None:
        super().__init__()
        self._LIMITS, self._limits = [0.5], [0.5]

    def forward(self, x):
        return (x > _TABLE["limit"]) & (x > _table["limit"]) & (x > self._LIMITS[0]) & (x > self._limits[0])


def test_private_tables_named_as_constants_are_told(monkeypatch):
    """Others may be caches, which fill as a model is asked."""
    before, model = code_of(Limited()), Limited()
    assert code_of(model) == before
    model._limits[0] = 0.7
    monkeypatch.setitem(_table, "limit", 0.7)
    assert code_of(model) == before
    model._LIMITS[0] = 0.7
    assert code_of(model) != before
    monkeypatch.setitem(_TABLE, "limit", 0.7)
    assert code_of(Limited()) != before


class Named(nn.Module):
    """A user's module with attributes that are left out of the package's own, and of torch's."""

    def __init__(self, name, value):
        super().__init__()
        setattr(self, name, value)


class Below(Classifier):
    def __init__(self, name, value):
        super().__init__()
        setattr(self, name, value)

    def predict(self, x):
        return (x.flatten(1).mean(dim=1) > vars(self).get("passed", 0)).long()


@pytest.mark.parametrize("kind", [Named, Below])
@pytest.mark.parametrize("name", ["passed", "chunk", "_traced", "_graph"])
def test_attributes_of_the_users_own_are_told_whatever_their_names(kind, name):
    assert code_of(kind(name, 0.25)) != code_of(kind(name, 0.75))
    assert code_of(kind(name, 0.25)) == code_of(kind(name, 0.25))


def test_a_call_of_the_users_own_is_told():
    """`nn.Module.__call__` runs `_compiled_call_impl` where there is one."""
    calls = [lambda x, k=k: k * x for k in (1, 2)]
    one, other = (Named("_compiled_call_impl", call) for call in calls)
    assert code_of(one) != code_of(other)


LEVEL = 1


@functools.lru_cache
def level():
    return LEVEL


def test_what_a_cached_function_reads_is_told(monkeypatch):
    before = code_of(Holder(level))
    assert code_of(Holder(level)) == before
    monkeypatch.setitem(globals(), "LEVEL", 2)
    assert code_of(Holder(level)) != before
