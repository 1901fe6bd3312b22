"""Contracts of unified feeds, read from TOML and checked whole, with file and line."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from currents_ingest import amperity
from currents_ingest.amperity import COLUMN_TYPES
from currents_ingest.contracts import ADDED, ColumnType, column_type
from currents_ingest.errors import SettingsError
from currents_ingest.unified import PSEUDO, UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from currents_ingest.amperity import AmperityType
    from currents_ingest.schemas import Registry
    from currents_ingest.unified import Join, Source, UnifiedColumn, Value

Location = tuple[str | int, ...]


def load(
    text: str, where: str, feed: str, registry: Registry | None
) -> UnifiedContract:
    """Read a contract and check it.

    Args:
        text: TOML.
        where: Its path, for messages.
        feed: The feed that the file's name promises.
        registry: Which event types and fields there are; None: the contract is one
            of ours, which is not checked again at each start.

    Raises:
        SettingsError: With every problem, each with its line.
    """
    try:
        contract = UnifiedContract.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError((f"{where}: {error}",)) from None
    except ValidationError as error:
        problems = [(one["loc"], _told(one)) for one in error.errors()]
    else:
        problems = list(_problems(contract, feed, registry)) if registry else []
    if problems:
        lines = sorted((_line(text, at), told) for at, told in problems)
        raise SettingsError(tuple(f"{where}:{line}: {told}" for line, told in lines))
    return contract


def _told(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _line(text: str, at: Location) -> int:
    """Return the line of a place in TOML: of its table, and of the key in it."""
    lines = text.splitlines()
    start = 0
    names = [str(part) for part in at]
    if len(at) > 1 and isinstance(at[1], int):
        headers = [
            number
            for number, line in enumerate(lines)
            if f"[[{at[0]}]]" == line.strip()
        ]
        start = headers[at[1]] if at[1] < len(headers) else 0
        names = names[2:]
    elif len(at) > 1:
        wanted = f"[{'.'.join(names[:2])}]"
        start = next((n for n, line in enumerate(lines) if line.strip() == wanted), 0)
        names = names[2:] or names[:1]
    for number, line in enumerate(lines[start:], start):
        if names and re.match(rf"\s*{re.escape(names[0])}\s*=", line):
            return number + 1
        if number > start and line.startswith("["):
            break
    return start + 1


def _problems(
    contract: UnifiedContract, feed: str, registry: Registry
) -> Iterator[tuple[Location, str]]:
    if contract.feed != feed:
        yield ("feed",), f"the feed is named {contract.feed}, its file {feed}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", contract.feed):
        yield ("feed",), f"{contract.feed} is no feed name: letters, digits, underscore"
    fields = _fields(contract, registry)
    yield from _source_problems(contract, registry, fields)
    yield from _column_problems(contract, fields)
    yield from _table_problems(contract)


_BACK: Mapping[ColumnType, AmperityType] = {
    **{kind: name for name, kind in COLUMN_TYPES.items()},
    "json": "string",
}


def _fields(
    contract: UnifiedContract, registry: Registry
) -> dict[str, dict[str, AmperityType]]:
    """Return the fields of each event type that the contract names, with types."""
    added = {column.name: _BACK[column.type] for column in ADDED}
    found: dict[str, dict[str, AmperityType]] = {}
    for event_type in registry.event_types():
        sources = [
            one for one in contract.sources if fnmatchcase(event_type, one.event)
        ]
        if sources:
            found[event_type] = _own(event_type, registry) | added | dict(PSEUDO)
        for join in (one.join for one in sources if one.join):
            theirs = _own(join.event, registry)
            found[event_type] |= {n: theirs[n] for n in join.take if n in theirs}
    return found


def _own(event_type: str, registry: Registry) -> dict[str, AmperityType]:
    return {
        field.name: _BACK[column_type(field)]
        for writer in registry.writers(event_type)
        for field in writer.fields
    }


def _source_problems(
    contract: UnifiedContract,
    registry: Registry,
    fields: Mapping[str, Mapping[str, AmperityType]],
) -> Iterator[tuple[Location, str]]:
    columns = {column.name: column for column in contract.columns}
    for number, source in enumerate(contract.sources):
        at = "sources", number
        events = [one for one in registry.event_types() if source.is_of(one)]
        if not events:
            yield (*at, "event"), f"no known event type is named {source.event}"
        known = set(chain.from_iterable(fields[one] for one in events))
        for key in ("when", "unless"):
            for name in sorted(set(chain.from_iterable(getattr(source, key)))):
                if told := _no_test(name, contract, source.event, known):
                    yield (*at, key), told
        if source.join:
            for told in _rivals(contract, source, events):
                yield (*at, "join"), told
            own = set(chain.from_iterable(_own(one, registry) for one in events))
            for told in _join_problems(source.join, own, registry):
                yield (*at, "join"), told
        for told in _set_problems(source, columns):
            yield (*at, "set"), told


def _set_problems(
    source: Source, columns: Mapping[str, UnifiedColumn]
) -> Iterator[str]:
    for name, value in source.set.items():
        if name not in columns:
            yield f"there is no column {name} to set"
        elif told := _no_constant(columns[name], value):
            yield told


def _rivals(
    contract: UnifiedContract, source: Source, events: Iterable[str]
) -> Iterator[str]:
    """A row that is joined comes later, so no other source may take it as well."""
    others = [one for one in contract.sources if one is not source]
    for event in events:
        if any(one.is_of(event) for one in others):
            yield f"{event} has another source, and a row may come once"


def _join_problems(join: Join, own: set[str], registry: Registry) -> Iterator[str]:
    theirs = _own(join.event, registry)
    if not theirs:
        yield f"no known event type is named {join.event}"
        return
    for name in join.on:
        if name not in own or name not in theirs:
            yield f"not both event types have a field {name} to join on"
    for name in join.take:
        if name not in theirs:
            yield f"{join.event} has no field {name} to take"


def _no_test(
    name: str, contract: UnifiedContract, event: str, known: set[str]
) -> str | None:
    """Say why a source cannot ask for something, or None."""
    if name.startswith("@"):
        return (
            None if name[1:] in contract.options else f"there is no option {name[1:]}"
        )
    return f"{event} has no field {name}" if known and name not in known else None


def _column_problems(
    contract: UnifiedContract, fields: Mapping[str, Mapping[str, AmperityType]]
) -> Iterator[tuple[Location, str]]:
    seen: set[str] = set()
    for number, column in enumerate(contract.columns):
        at = "columns", number
        if told := amperity.wrong_name(column.name):
            yield (*at, "name"), told
        if column.name.lower() in seen:
            yield (*at, "name"), f"there are two columns {column.name}"
        seen.add(column.name.lower())
        if fields:
            yield from _origin_problems(at, column, fields)
        for value in (*column.values.values(), column.constant):
            if value is not None and (told := _no_constant(column, value)):
                yield (*at, "values"), told
        if column.tag and (told := amperity.wrong_tag(column.tag, column.type)):
            yield (*at, "tag"), told


def _origin_problems(
    at: Location,
    column: UnifiedColumn,
    fields: Mapping[str, Mapping[str, AmperityType]],
) -> Iterator[tuple[Location, str]]:
    key = "which" if column.which else "from"
    for name in sorted({*chain.from_iterable(column.sources), *column.which}):
        types = {held[name] for held in fields.values() if name in held}
        if not types:
            yield (*at, key), f"no event type of this feed has a field {name}"
        for kind in sorted(types) if column.sources else ():
            if told := _clash(column, name, kind):
                yield (*at, "type"), told


def _clash(column: UnifiedColumn, name: str, kind: AmperityType) -> str | None:
    """Say why values of a type cannot become the column's, or None."""
    joined = any(name in choice and len(choice) > 1 for choice in column.sources)
    text = column.pick or column.trim or column.lower or column.sha256 or joined
    if column.values:
        return None
    have: AmperityType = "string" if text else kind
    if column.unit:
        fits = have == "integer" and column.type == "datetime"
    else:
        fits = column.type in ("string", have, *_WIDER.get(have, ()))
        fits = fits or (column.pick is not None and column.type != "datetime")
    if fits:
        return None
    hint = (
        " (say in which unit)" if (have, column.type) == ("integer", "datetime") else ""
    )
    return f"{name} is {have}, which does not become {column.type}{hint}"


_WIDER: Mapping[AmperityType, tuple[AmperityType, ...]] = {
    "integer": ("float", "decimal"),
    "float": ("decimal",),
    "decimal": ("float",),
}
_CONSTANTS: Mapping[AmperityType, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (int, float),
    "decimal": (int, float),
    "boolean": (bool,),
    "datetime": (),
}


def _no_constant(column: UnifiedColumn, value: Value) -> str | None:
    """Say why a column cannot hold a constant, or None."""
    if type(value) not in _CONSTANTS[column.type]:
        return f"{value!r} is no value of {column.name}, which is {column.type}"
    tag = amperity.TAGS.get(column.tag or "")
    if tag and tag.words and value not in tag.words:
        words = ", ".join(sorted(tag.words))
        return f"{value!r} is none of the values of {column.tag}: {words}"
    return None


def _table_problems(contract: UnifiedContract) -> Iterator[tuple[Location, str]]:
    columns = {column.name: column for column in contract.columns}
    for name in (*contract.key, *contract.prefer):
        at = "key" if name in contract.key else "prefer"
        if name not in columns:
            yield (at,), f"{name} is no column"
        elif at == "key" and not columns[name].required:
            yield (at,), f"{name} is part of the key, so it must be required"
    updated = columns.get(contract.last_updated)
    if updated is None:
        yield ("last_updated",), f"{contract.last_updated} is no column"
    elif updated.type not in ("datetime", "integer"):
        yield ("last_updated",), f"{updated.name} must be a datetime or an integer"
    for name, option in contract.options.items():
        if option.default not in option.values:
            yield (
                ("options", name, "default"),
                f"{option.default} is none of its values",
            )
    yield from _tag_problems(contract)


def _tag_problems(contract: UnifiedContract) -> Iterator[tuple[Location, str]]:
    tags = [column.tag for column in contract.columns if column.tag]
    for told in amperity.wrong_tags(tags):
        yield ("columns",), told
    for number, column in enumerate(contract.columns):
        rule = amperity.TAGS.get(column.tag or "")
        if rule and rule.required and not column.required:
            told = f"{column.name} must be required, for {column.tag} is"
            yield ("columns", number, "tag"), told
