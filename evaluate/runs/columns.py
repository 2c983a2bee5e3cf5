"""Columns of Parquet from the fields of a dataclass: a field is added in one place."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

_KINDS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema_of(kind: type) -> pa.Schema:
    """The columns that hold instances of a dataclass, field by field in their order: texts, whole numbers of 64 bits,
    floats, booleans, lists, and dataclasses as structures. Every column may hold nulls.
    """
    return pa.schema(_fields(kind))


def _fields(kind: type) -> list[tuple[str, pa.DataType]]:
    hints = get_type_hints(kind)
    return [(field.name, _type(hints[field.name])) for field in fields(kind)]


def _type(hint: Any) -> pa.DataType:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is list:
        return pa.list_(_type(get_args(hint)[0]))
    return _KINDS[hint] if hint in _KINDS else pa.struct(_fields(hint))
