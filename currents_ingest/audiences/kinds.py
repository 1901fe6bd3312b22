"""What type a JSON column has, over all its values, and its values in that type."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_EXACT = 1 << 53
"""Whole numbers up to here are the same as floats."""
_DEEPEST = 16
_MOST_FIELDS = 1000
"""Beyond these two limits a value is kept as JSON text."""


class Plain(Enum):
    """A type without parts, by the Polars type that holds it."""

    NOTHING = "only null so far"
    BOOL = "Boolean"
    INT = "Int64 that a Float64 can hold"
    LONG = "Int64"
    FLOAT = "Float64"
    TEXT = "String"
    JSON = "String that holds JSON, for values of several types"


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array."""

    items: Kind


@dataclass(frozen=True, slots=True)
class Fields:
    """An object; it has all keys that any of the values has."""

    of: Mapping[str, Kind] = field(hash=False)


Kind = Plain | ListOf | Fields

_BY_TYPE = {
    type(None): Plain.NOTHING,
    bool: Plain.BOOL,
    float: Plain.FLOAT,
    str: Plain.TEXT,
}
_DTYPES = {
    Plain.BOOL: pl.Boolean(),
    Plain.INT: pl.Int64(),
    Plain.LONG: pl.Int64(),
    Plain.FLOAT: pl.Float64(),
}


def kind(values: Sequence[Any], depth: int = 0) -> Kind:
    """Return what holds all of some values that came out of JSON."""
    found: Kind = Plain.NOTHING
    for one in sorted(set(map(type, values)), key=str):
        found = merged(found, _of_type(one, values, depth))
    return found


def _of_type(one: type, values: Sequence[Any], depth: int) -> Kind:
    if one in _BY_TYPE:
        return _BY_TYPE[one]
    same: list[Any] = [value for value in values if type(value) is one]
    if one is int:
        return _whole(min(same), max(same))
    if depth == _DEEPEST:
        return Plain.JSON
    if one is list:
        items = kind(list(chain.from_iterable(same)), depth + 1)
        return Plain.JSON if items is Plain.JSON else ListOf(items)
    return _fields(same, depth)


def _whole(least: int, most: int) -> Kind:
    if least >= -_EXACT and most <= _EXACT:
        return Plain.INT
    return Plain.LONG if least >= -(1 << 63) and most < 1 << 63 else Plain.JSON


def _fields(values: Sequence[dict[str, Any]], depth: int) -> Kind:
    names = dict.fromkeys(chain.from_iterable(values))
    if not 0 < len(names) <= _MOST_FIELDS:
        return Plain.JSON
    of = {
        name: kind([one[name] for one in values if name in one], depth + 1)
        for name in names
    }
    return Plain.JSON if Plain.JSON in of.values() else Fields(of)


def merged(one: Kind, other: Kind) -> Kind:
    """Return what holds all that either holds.

    Numbers stay numbers as long as none loses a digit. All else that disagrees, at any
    depth, makes the whole value JSON text.
    """
    if one == other or other is Plain.NOTHING:
        return one
    if one is Plain.NOTHING:
        return other
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        items = merged(one.items, other.items)
        return Plain.JSON if items is Plain.JSON else ListOf(items)
    if isinstance(one, Fields) and isinstance(other, Fields):
        return _merged_fields(one, other)
    if {one, other} == {Plain.INT, Plain.LONG}:
        return Plain.LONG
    return Plain.FLOAT if {one, other} == {Plain.INT, Plain.FLOAT} else Plain.JSON


def _merged_fields(one: Fields, other: Fields) -> Kind:
    of = dict(one.of)
    for name, value in other.of.items():
        of[name] = merged(of.get(name, Plain.NOTHING), value)
    if len(of) > _MOST_FIELDS or Plain.JSON in of.values():
        return Plain.JSON
    return Fields(of)


def dtype(one: Kind) -> pl.DataType:
    """Return the Polars type; text where there was nothing but null."""
    if isinstance(one, ListOf):
        return pl.List(dtype(one.items))
    if isinstance(one, Fields):
        return pl.Struct({name: dtype(value) for name, value in one.of.items()})
    return _DTYPES.get(one, pl.String())


def column(values: list[Any], one: Kind) -> list[Any]:
    """Return values as their type's Series takes them."""
    if one is not Plain.JSON:
        return values
    return [None if value is None else orjson.dumps(value).decode() for value in values]
