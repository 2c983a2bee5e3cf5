"""Nobody who changes a safety case makes it say more than its evidence shows."""

from __future__ import annotations

import pytest

from robustpatch.proof.bundle import KINDS, checked
from robustpatch.storage.npz import read_members
from tests.evaluate.bundle.cases import (
    about_of,
    content,
    members_of,
    plain_forgeries,
    refused,
    sealed,
    sealed_forgeries,
)


def forgeries(kind: str):
    yield from sealed_forgeries(kind)
    yield from plain_forgeries(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_some_forgeries(kind):
    """An honest case passes, also when it is packed anew; of its forgeries, a part of every sort, none does."""
    assert checked(read_members(content(kind), 2**28)).wrong == []
    assert not refused(sealed(members_of(kind), about_of(members_of(kind))))
    found = list(forgeries(kind))
    assert len(found) > 400
    some = found[len(kind) :: len(found) // 13]
    assert [name for name, forged in some if not refused(forged())] == []


@pytest.mark.slow
def test_a_thousand_forgeries():
    """Every one is refused."""
    number = 0
    for kind in KINDS:
        for name, forged in forgeries(kind):
            assert refused(forged()), f"{kind}: {name}"
            number += 1
    assert number > 2_000
