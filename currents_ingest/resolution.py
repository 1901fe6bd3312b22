"""Avro's rule for a pair of schemas: can every value of one be read as the other?

Source: Avro 1.12 specification, "Schema Resolution".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from currents_ingest.schemas import Json

PROMOTES = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}
_NAMED = ("record", "enum", "fixed")
_INNER = {"array": "items", "map": "values"}


def reads(writer: Json, reader: Json) -> bool:
    """Tell whether every value of one Avro type can be read as another.

    Args:
        writer: A type with full names, as ``WriterSchema.form`` or ``Field.schema``.
        reader: Likewise.
    """
    return _Resolution(_names(writer), _names(reader)).resolves(writer, reader)


class _Resolution:
    """Schema resolution of one pair; remembers pairs, for types may hold themselves."""

    def __init__(self, writers: dict[str, Json], readers: dict[str, Json]) -> None:
        self._writers, self._readers = writers, readers
        self._assumed: set[tuple[str, str]] = set()

    def resolves(self, writer: Json, reader: Json) -> bool:
        if isinstance(writer, list):  # the data decides which, so each has to
            return all(self.resolves(branch, reader) for branch in writer)
        if isinstance(reader, list):  # the first that matches is used
            matching = [one for one in reader if self._match(writer, one)]
            return bool(matching) and self.resolves(writer, matching[0])
        writer, reader = self._named(writer, reader)
        return self._match(writer, reader) and self._holds(writer, reader)

    def _holds(self, writer: Json, reader: Json) -> bool:
        """Look into two types that match."""
        match _kind(writer):
            case "array" | "map" as kind:
                return self.resolves(writer[_INNER[kind]], reader[_INNER[kind]])
            case "enum":
                missing = set(writer["symbols"]) - set(reader["symbols"])
                return not missing or bool(reader.get("default"))
            case "record":
                return self._record(writer, reader)
        return True

    def _record(self, writer: Json, reader: Json) -> bool:
        pair = writer["name"], reader["name"]
        if pair in self._assumed:
            return True
        self._assumed.add(pair)
        written = {each["name"]: each["type"] for each in writer["fields"]}
        return all(self._has(written, field) for field in reader["fields"])

    def _has(self, written: dict[str, Json], field: Json) -> bool:
        names = (field["name"], *field.get("aliases", ()))
        name = next((name for name in names if name in written), None)
        if name is None:
            return "default" in field
        return self.resolves(written[name], field["type"])

    def _match(self, writer: Json, reader: Json) -> bool:
        """Tell whether two types match, without looking into records."""
        if isinstance(writer, list) or isinstance(reader, list):
            return True
        writer, reader = self._named(writer, reader)
        kind, wanted = _kind(writer), _kind(reader)
        if kind != wanted:
            return wanted in PROMOTES.get(kind, ())
        if kind in _NAMED:
            sizes = writer.get("size"), reader.get("size")
            return _same_name(writer, reader) and sizes[0] == sizes[1]
        inner = _INNER.get(kind)
        return inner is None or self._match(writer[inner], reader[inner])

    def _named(self, writer: Json, reader: Json) -> tuple[Json, Json]:
        if isinstance(writer, str):
            writer = self._writers.get(writer, writer)
        if isinstance(reader, str):
            reader = self._readers.get(reader, reader)
        return writer, reader


def _kind(schema: Json) -> str:
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _same_name(writer: Json, reader: Json) -> bool:
    """Tell whether the last parts of the names agree, or the reader has an alias."""
    name = str(writer["name"])
    names = {_last(reader["name"]), *reader.get("aliases", ())}
    return bool(names & {name, _last(name)})


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _names(schema: Json) -> dict[str, Json]:
    """Return the named types inside a schema."""
    found: dict[str, Json] = {}
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            if one.get("type") in _NAMED:
                found[one["name"]] = one
            waiting += [field["type"] for field in one.get("fields", ())]
            waiting += [one[inner] for inner in _INNER.values() if inner in one]
    return found
