"""What a writer schema means for a contract, and how two versions of one differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from currents_ingest.contracts import NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from currents_ingest.contracts import Contract
    from currents_ingest.schemas import Field, WriterSchema


class Verdict(StrEnum):
    """What a writer schema means for a contract, from harmless to not deliverable."""

    KNOWN = "known"
    """A schema of the registry, and every field of it has a column."""
    COMPATIBLE = "compatible"
    """A new schema without new fields: reordered, optional now, a promoted type."""
    ADDITIVE = "additive"
    """Some fields have no column; their values go to ``unmapped_fields``."""
    BREAKING = "breaking"
    """Rows cannot be delivered; the files go to quarantine."""

    @property
    def rank(self) -> int:
        """Return 0 for the harmless one, 3 for the worst."""
        return list(Verdict).index(self)


_MOST_TOLD = 100
"""Differences of one schema that are told; a foreign header can have thousands."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A writer schema held against a contract."""

    verdict: Verdict
    differences: tuple[str, ...]
    """What breaks, if anything does; else which fields have no column."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two versions of a schema."""

    kind: str
    """``added``, ``removed``, ``retyped``, ``made optional``, ``made required``,
    ``default changed``, ``reordered``; ``renamed`` of the record itself."""
    field: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        both = f": {self.before} to {self.after}" if self.before and self.after else ""
        one = self.before or self.after
        return f"{self.field} {self.kind}{both or (f' ({one})' if one else '')}"


def compare(
    writer: WriterSchema, contract: Contract, registered: Iterable[WriterSchema] = ()
) -> Comparison:
    """Tell what files of a writer schema mean for a feed.

    A contract reads as Avro's rules say: by name, in any order, with promoted types.
    All its columns may be null. Two rules are ours: a ``json`` column takes any array
    and object, and a value of no plain type (bytes, enums, unions of several types)
    goes nowhere else.

    Args:
        writer: The schema in the files' header.
        contract: The feed's contract, pinned or about to be.
        registered: The event type's schemas in the registry.
    """
    if breaks := (*unusable(writer), *_misfits(writer, contract)):
        return Comparison(Verdict.BREAKING, breaks)
    known = any(one.text == writer.text for one in registered)
    new = unmapped(writer, contract)
    # What no column may be named stays in unmapped_fields, however well we know it.
    if new and not (known and contract.grown([writer]) == contract):
        told = tuple(f"field {each.name} ({describe(each)}) is new" for each in new)
        return Comparison(Verdict.ADDITIVE, told)
    return Comparison(Verdict.KNOWN if known else Verdict.COMPATIBLE, ())


def judge(
    writer: WriterSchema,
    contract: Contract | None,
    registered: Sequence[WriterSchema],
    seen: Sequence[WriterSchema] = (),
) -> Comparison:
    """Compare, and say what changed since the closest schema known before.

    Args:
        writer: The schema in the files' header.
        contract: The feed's contract; None if the feed does not exist and no version
            is registered: then one would be made from this schema.
        registered: The event type's versions in the registry, oldest first.
        seen: Those met before beside them; then only what is new since is said.
    """
    found = _judged(writer, contract, registered, seen)
    told, rest = found.differences[:_MOST_TOLD], found.differences[_MOST_TOLD:]
    more = (f"and {len(rest)} more",) if rest else ()
    return Comparison(found.verdict, told + more)


def _judged(
    writer: WriterSchema,
    contract: Contract | None,
    registered: Sequence[WriterSchema],
    seen: Sequence[WriterSchema],
) -> Comparison:
    if contract is None:
        breaks = unusable(writer)
        verdict = Verdict.BREAKING if breaks else Verdict.ADDITIVE
        return Comparison(verdict, breaks or ("the event type is new",))
    found = compare(writer, contract, registered)
    before = [*reversed(seen), *reversed(registered)]
    if found.verdict in (Verdict.KNOWN, Verdict.BREAKING) or not before:
        return found
    since = min((changes(one, writer) for one in before), key=len)
    if seen and since:
        return Comparison(found.verdict, tuple(map(str, since)))
    told = (str(one) for one in since if one.kind != "added")
    return Comparison(found.verdict, (*found.differences, *told))


def unusable(writer: WriterSchema) -> tuple[str, ...]:
    """Say what an event needs and the writer schema lacks; empty if nothing."""
    fields = {each.name: each for each in writer.fields}
    return tuple(
        f"field {column.name} is gone"
        if column.name not in fields
        else f"field {column.name} is {fields[column.name].type} and not {column.type}"
        for column in NEEDED
        if column.name not in fields or not column.takes(fields[column.name])
    )


def unmapped(writer: WriterSchema, contract: Contract) -> tuple[Field, ...]:
    """Return the fields that no column asks for by name."""
    known = {column.source for column in contract.own}
    return tuple(each for each in writer.fields if each.name not in known)


def _misfits(writer: WriterSchema, contract: Contract) -> Iterator[str]:
    taken = {field.name for field in contract.placed(writer).values()}
    types = {column.source: column.type for column in reversed(contract.own)}
    needed = {column.name for column in NEEDED}
    for field in writer.fields:
        wrong = field.name in types and field.name not in taken
        if wrong and field.name not in needed:
            yield f"field {field.name} is {field.type} and not {types[field.name]}"


def describe(field: Field) -> str:
    """Return a field's type in words, such as ``null or string``."""
    return ("null or " if field.nullable else "") + field.type


def changes(old: WriterSchema, new: WriterSchema) -> tuple[Change, ...]:
    """Say how one version of a schema differs from another, in the new one's order."""
    before = {each.name: each for each in old.fields}
    after = {each.name: each for each in new.fields}
    return (
        *_renamed(old, new),
        *(Change("removed", n, describe(before[n])) for n in before if n not in after),
        *(c for name in after for c in _of_field(before.get(name), after[name])),
        *_reordered([n for n in before if n in after], list(after)),
    )


def _renamed(old: WriterSchema, new: WriterSchema) -> Iterator[Change]:
    if old.name != new.name:
        yield Change("renamed", "the record", old.name, new.name)


def _of_field(old: Field | None, new: Field) -> Iterator[Change]:
    if old is None:
        yield Change("added", new.name, after=describe(new))
        return
    if old.plain != new.plain:
        yield Change("retyped", new.name, old.plain, new.plain)
    elif old.nullable == new.nullable and old.schema != new.schema:  # null has moved
        yield Change("retyped", new.name, *map(json.dumps, (old.schema, new.schema)))
    if old.nullable != new.nullable:
        yield Change("made optional" if new.nullable else "made required", new.name)
    if old.default != new.default:
        texts = (text or "none" for text in (old.default, new.default))
        yield Change("default changed", new.name, *texts)


def _reordered(before: list[str], after: list[str]) -> Iterator[Change]:
    """Name the fewest fields that have to move."""
    position = {name: at for at, name in enumerate(after)}
    kept = _longest_rising([position[name] for name in before])
    for name in before:
        if position[name] not in kept:
            yield Change("reordered", name)


def _longest_rising(numbers: list[int]) -> set[int]:
    """Return the longest rising subsequence of distinct numbers; there are few."""
    best: list[list[int]] = [[]]
    for number in numbers:
        shorter = [run for run in best if not run or run[-1] < number]
        longest = max(shorter, key=len)
        best.append([*longest, number])
    longest = max(best, key=len)
    return set(longest)
