"""Mutated headers and blocks by the hundred thousand; the worst outcome is a verdict.

``python -m tests.fuzz --count 100000 --seed 1`` is the long run. Every mutant follows
from the seed and its number alone. They are judged a thousand at a time, each thousand
in a process of its own with a limit of time and of memory; one that raises, crashes,
hangs or counts a file wrongly is halved until the file is found, which is then kept in
``build/fuzz/`` with what was said of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import cramjam
import fastavro
import pyarrow.parquet as pq
import structlog
from typer.testing import CliRunner

from currents_ingest import api, avro, config, validate_report
from currents_ingest.cli import app
from currents_ingest.compatibility import Verdict
from currents_ingest.errors import CorruptObjectError
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.simulate_values import AWKWARD
from currents_ingest.validate import HEAD, validate
from currents_ingest.verify import verify
from tests.avro_files import OPEN, key, number, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "fuzz"
PART = 1000
"""Mutants in one folder, and in one process."""
PATIENCE = 120
"""Seconds for a part; for one file, the same."""
MEMORY = 6 << 30
"""Bytes of address space that a part may take."""
SLOW = 5.0
"""Seconds after which reading one head counts as hanging."""
POLLED = 10
"""One part in so many is polled, too."""
ENOUGH = 20
"""Defects after which the run ends: more would hardly tell more."""
ODD = "users.made.up.Odd"
"""An event type that nobody knows: its first schema makes its contract."""

# Good files.


@dataclass(frozen=True, slots=True)
class Sample:
    """A good file, whole and in parts."""

    event_type: str
    body: bytes
    metadata: tuple[tuple[bytes, bytes], ...]
    codec: str
    sync: bytes
    blocks: tuple[tuple[int, bytes], ...]
    """Rows, and their bytes unpacked."""

    @property
    def schema(self) -> Any:
        return json.loads(dict(self.metadata)[b"avro.schema"])


def make_stock(folder: Path) -> None:
    """Write good files: every schema version, each codec, and odd types."""
    with tempfile.TemporaryDirectory() as tree:
        simulate(tree, Simulation(versions="all", layout="new", rows=6, hours=4))
        paths = sorted(Path(tree).glob("currents/**/*.avro"))
        bodies = [(_event_type(path), path.read_bytes()) for path in paths]
    rng = Random(0)
    for codec in ("deflate", "snappy"):
        chosen = rng.sample(bodies, len(bodies) // 8)
        bodies += [(event, _repacked(body, codec)) for event, body in chosen]
    bodies += [(event, _odd(event, at)) for at in range(12) for event in (ODD, OPEN)]
    for at, (event_type, body) in enumerate(bodies):
        (folder / f"{at:05}={event_type}.avro").write_bytes(body)


def _event_type(path: Path) -> str:
    (found,) = (part for part in path.parts if part.startswith("event_type="))
    return found.removeprefix("event_type=")


def _repacked(body: bytes, codec: str) -> bytes:
    out = io.BytesIO()
    reader = fastavro.reader(io.BytesIO(body))
    fastavro.writer(out, reader.writer_schema, reader, codec=codec, sync_interval=900)
    return out.getvalue()


ODD_TYPES: tuple[Any, ...] = (
    "null",
    "bytes",
    ["null", "bytes"],
    ["string", "int", "null"],
    {"type": "array", "items": "long"},
    ["null", {"type": "array", "items": ["null", "string"]}],
    {"type": "array", "items": {"type": "array", "items": "double"}},
    {"type": "map", "values": "string"},
    {"type": "map", "values": {"type": "map", "values": ["null", "int"]}},
    {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN"]},
    {"type": "fixed", "name": "Sixteen", "size": 16},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
    {"type": "int", "logicalType": "date"},
    {"type": "string", "logicalType": "uuid"},
    {
        "type": "record",
        "name": "Shop",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "floors", "type": {"type": "array", "items": "int"}},
        ],
    },
    ["null", {"type": "record", "name": "Nothing", "fields": []}],
)


def _odd(event_type: str, at: int) -> bytes:
    rng = Random(at)
    kinds = deepcopy(rng.sample(ODD_TYPES, 4))
    schema = record(event_type, **{f"odd_{n}": kind for n, kind in enumerate(kinds)})
    rows = b"".join(Values(rng).row(schema) for _ in range(5))
    text = json.dumps(schema).encode()
    codec = rng.choice((b"null", b"deflate", b"snappy"))
    metadata = ((b"avro.schema", text), (b"avro.codec", codec))
    return assembled(metadata, bytes(16), [(5, packed(rows, codec.decode()))])


@cache
def stock(folder: Path) -> tuple[Sample, ...]:
    """Return the good files."""
    return tuple(map(_sample, sorted(folder.glob("*.avro"))))


def _sample(path: Path) -> Sample:
    body = path.read_bytes()
    view = io.BytesIO(body)
    view.seek(4)
    metadata: dict[str, bytes] = fastavro.schemaless_reader(
        view, {"type": "map", "values": "bytes"}, None
    )
    codec = metadata.get("avro.codec", b"null").decode()
    sync = view.read(16)
    blocks = []
    while view.tell() < len(body):
        rows = fastavro.schemaless_reader(view, "long", None)
        blocks.append((rows, fastavro.schemaless_reader(view, "bytes", None)))
        view.read(16)
    return Sample(
        event_type=path.stem.partition("=")[2],
        body=body,
        metadata=tuple((name.encode(), value) for name, value in metadata.items()),
        codec=codec,
        sync=sync,
        blocks=tuple((rows, _unpacked(data, codec)) for rows, data in blocks),
    )


def _unpacked(data: bytes, codec: str) -> bytes:
    if codec == "deflate":
        return zlib.decompress(data, -15)
    if codec == "snappy":
        return bytes(cramjam.snappy.decompress_raw(data[:-4]))
    return data


def packed(data: bytes, codec: str) -> bytes:
    """Compress a block; what the codec's name is not known for stays as it is."""
    if codec == "deflate":
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(data) + packer.flush()
    if codec == "snappy":
        checksum = zlib.crc32(data).to_bytes(4, "big")
        return bytes(cramjam.snappy.compress_raw(data)) + checksum
    return data


def assembled(
    metadata: Sequence[tuple[bytes, bytes]],
    sync: bytes,
    blocks: Sequence[tuple[int, bytes]],
    number: Callable[[int], bytes] = number,
) -> bytes:
    """Put a file together from its parts; blocks are packed already."""
    parts = [b"Obj\x01", number(len(metadata))]
    for name, value in metadata:
        parts += [number(len(name)), name, number(len(value)), value]
    parts += [number(0), sync]
    for rows, data in blocks:
        parts += [number(rows), number(len(data)), data, sync]
    return b"".join(parts)


# Values that fit a schema, so that mutated ones are decoded and not just refused.


@dataclass(slots=True)
class Values:
    """Encodes random values of a decoded schema; raises anything if it is none."""

    rng: Random
    names: dict[str, Any] = field(default_factory=dict)
    depth: int = 0

    def row(self, schema: Any) -> bytes:
        """Encode an event, with a time that is believed."""
        self.names[schema["name"]] = schema
        return b"".join(map(self._field, schema["fields"]))

    def _field(self, one: Any) -> bytes:
        if one["name"] == "time" and one["type"] in ("int", "long"):
            return number(1_700_000_000 + self.rng.randrange(10**6))
        return self.of(one["type"])

    def of(self, kind: Any) -> bytes:
        """Encode a value of a type."""
        if self.depth > 60:
            raise RecursionError
        self.depth += 1
        try:
            return self._of(self.names.get(kind, kind) if _named(kind) else kind)
        finally:
            self.depth -= 1

    def _of(self, kind: Any) -> bytes:
        if isinstance(kind, list):
            at = self.rng.randrange(len(kind)) if self.depth < 8 else 0
            return number(at) + self.of(kind[at])
        if _named(kind):
            return _PRIMITIVE[kind](self.rng)
        if "name" in kind:
            self.names[kind["name"]] = kind
        inner = (
            getattr(self, f"_{kind['type']}", None) if _named(kind["type"]) else None
        )
        return inner(kind) if inner else self.of(kind["type"])

    def _record(self, kind: Any) -> bytes:
        return b"".join(self.of(one["type"]) for one in kind["fields"])

    def _array(self, kind: Any) -> bytes:
        return self._several(lambda: self.of(kind["items"]))

    def _map(self, kind: Any) -> bytes:
        return self._several(lambda: _text(self.rng) + self.of(kind["values"]))

    def _enum(self, kind: Any) -> bytes:
        return number(self.rng.randrange(len(kind["symbols"])))

    def _fixed(self, kind: Any) -> bytes:
        return self.rng.randbytes(min(kind["size"], 10**6))

    def _several(self, one: Callable[[], bytes]) -> bytes:
        count = self.rng.choice((0, 1, 3)) if self.depth < 6 else 0
        items = b"".join(one() for _ in range(count))
        if not count:
            return number(0)
        if self.rng.random() < 0.2:  # the form with the block's size
            return number(-count) + number(len(items)) + items + number(0)
        return number(count) + items + number(0)


def _named(kind: Any) -> bool:
    return isinstance(kind, str)


def _text(rng: Random) -> bytes:
    text = rng.choice((*AWKWARD, *HOSTILE, f"id-{rng.getrandbits(64):x}"))
    body = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
        body += rng.randbytes(3)
    return number(len(body)) + body


_PRIMITIVE: dict[str, Callable[[Random], bytes]] = {
    "null": lambda _rng: b"",
    "boolean": lambda rng: rng.choice((b"\x00", b"\x01", b"\x01", b"\x02")),
    "int": lambda rng: number(rng.choice((0, -1, 2**31 - 1, -(2**31), 77))),
    "long": lambda rng: number(rng.choice((0, -1, 2**62, -(2**63), 77))),
    "float": lambda rng: rng.randbytes(4),
    "double": lambda rng: rng.randbytes(8),
    "bytes": lambda rng: number(5) + rng.randbytes(5),
    "string": _text,
}

# Mutations.

HOSTILE = (
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "^.*$",
    "^id$",
    "*",
    "a\x00b",
    "]]>",
    "&lt;&#0;&nbsp;",
    "\ud800",
    "\udfff\ud800",
    "\ufffe\uffff",
    "\x1b[31m[bold red]x[/]",
    "[/]",
    "{{ 7*7 }}{% for %}",
    "../../etc/passwd",
    "with space",
    "",
    ".",
    "a..b",
    "..",
    "0digit",
    "x" * 300,
    "y" * 70_000,
    "id",
    "ID",
    "time",
    "time_ms",
    "currents_file",
    "event_datetime",
    "unmapped_fields",
    "row of file",
    "reason",
    "position",
    "hour",
    "v",
    "literal",
    "null",
    "string",
    "record",
    "\u202egnp.avro",
    "\u0130",
    "e\u0301",
    "a'b\"c`d",
    "a\nb\r\nc\td",
    "__proto__",
    "%s%n",
    "${HOME}",
    "A.B.C",
    "\\",
    "\u2028",
)
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    [],
    {},
    [[]],
    [None],
    {"type": None},
    {"type": {"type": {"type": "int"}}},
    ["null", "null"],
    ["int", "int"],
    [["int"]],
    "null",
    "record",
    "array",
    "no such type",
    {"type": "array"},
    {"type": "map", "values": 5},
    {"type": "enum", "name": "E", "symbols": []},
    {"type": "enum", "name": "E", "symbols": ["A", "A"]},
    {"type": "enum", "name": "E", "symbols": [1, None]},
    {"type": "enum", "name": "E2", "symbols": ["A"], "default": "B"},
    {"type": "fixed", "name": "F", "size": -1},
    {"type": "fixed", "name": "F0", "size": 0},
    {"type": "fixed", "name": "F1", "size": 2**40},
    {"type": "fixed", "name": "F2", "size": "3"},
    {"type": "record", "name": "R", "fields": None},
    {"type": "record", "name": "R", "fields": {}},
    {"type": "record", "name": 7, "fields": []},
    {"type": "error", "name": "R2", "fields": []},
    {"type": "int", "logicalType": "date"},
    {"type": "int", "logicalType": 9},
    {"type": "bytes", "logicalType": "decimal", "precision": -1, "scale": "x"},
    {"type": "bytes", "logicalType": "decimal", "precision": 10**9, "scale": 10**8},
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "string", "logicalType": "uuid"},
    {"type": "array", "items": "null"},
    {"type": "array", "items": {"type": "record", "name": "Empty", "fields": []}},
    {"type": "array", "items": "Empty"},
    ["null", {"type": "array", "items": "Empty"}],
    {"type": "map", "values": "Empty"},
    {"type": "error_union", "declared": []},
    {"type": "request"},
    {"type": ["null", "string"]},
)
NUMBERS = (0, 1, -1, -2, 63, 64, 1000, 2**20, 2**31, -(2**31), 2**40, 2**62, -(2**63))
VARINTS = (
    b"\xff" * 9 + b"\x01",
    b"\xff" * 10,
    b"\xff" * 11 + b"\x00",
    b"\x80" * 9 + b"\x00",
    b"\x80\x00",
    b"\x80",
    b"",
    b"\xfe" + b"\xff" * 8 + b"\x7f",
)


def mutant(folder: Path, seed: int, at: int) -> tuple[str, bytes]:
    """Return the event type and the bytes of one mutant."""
    rng = Random(f"{seed} {at}")
    samples = stock(folder)
    sample = rng.choice(samples[-24:] if rng.random() < 0.1 else samples)
    changed = rng.choices(tuple(MUTATIONS), tuple(MUTATIONS.values()))[0]
    body = changed(rng, sample, samples)
    if rng.random() < 0.1:
        body = scarred(rng, body, len(body))
    return sample.event_type, body


def anywhere(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Damage bytes wherever they are."""
    return scarred(rng, sample.body, len(sample.body))


def in_the_header(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Damage bytes before the first block."""
    return scarred(rng, sample.body, sample.body.find(sample.sync) + 16)


def scarred(rng: Random, body: bytes, end: int) -> bytes:
    """Flip, insert, delete, repeat, overwrite or cut within the first *end* bytes."""
    out = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(max(1, min(end, len(out))))
        size = rng.choice((1, 1, 2, 8, 100))
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                out[at:at] = rng.randbytes(size)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = out[at : at + size]
            case 4:
                fill = rng.choice((b"\x00", b"\xff", b"\x80", b"\x7f", b'"', b"{"))
                out[at : at + size] = fill * size
            case 5:
                if rng.random() < 0.5:
                    del out[at:]
    return bytes(out)


def numbers(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Write one of the lengths and counts wrongly; all else is well-formed."""
    packed_ = [(rows, packed(data, sample.codec)) for rows, data in sample.blocks]
    places = 3 + 2 * len(sample.metadata) + 2 * len(packed_) - 1
    hit = rng.randrange(min(places, rng.choice((7, places))))
    written = iter(range(10**9))

    def wrong(value: int) -> bytes:
        if next(written) != hit:
            return number(value)
        if rng.random() < 0.3:
            return rng.choice(VARINTS)
        near = (value + 1, value - 1, -value, value * 2)
        return number(rng.choice((*NUMBERS, *near)))

    return assembled(sample.metadata, sample.sync, packed_, wrong)


def spliced(rng: Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    """Join parts of two files."""
    other = rng.choice(samples)
    if rng.random() < 0.3:
        cut, on = rng.randrange(len(sample.body)), rng.randrange(len(other.body))
        return sample.body[:cut] + other.body[on:]
    codec = rng.choice((sample.codec, other.codec))
    blocks = [(rows, packed(data, codec)) for rows, data in other.blocks]
    own = [(rows, packed(data, sample.codec)) for rows, data in sample.blocks]
    mixed = rng.choice((blocks, own + blocks, blocks + own))
    return assembled(sample.metadata, sample.sync, mixed)


def rows_damaged(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Damage what blocks hold, and keep their frames whole."""
    blocks = [
        (rows, scarred(rng, data, len(data)) if rng.random() < 0.7 else data)
        for rows, data in sample.blocks
    ]
    if rng.random() < 0.3:
        at = rng.randrange(len(blocks))
        rows = rng.choice((blocks[at][0] + rng.choice((-1, 1)), *NUMBERS))
        blocks[at] = (rows, blocks[at][1])
    return assembled(
        sample.metadata,
        sample.sync,
        [(rows, packed(data, sample.codec)) for rows, data in blocks],
    )


def blocks_odd(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Write blocks that are well framed and hold nothing sensible."""
    codec = rng.choice(("null", "deflate", "snappy"))
    metadata = ((b"avro.codec", codec.encode()), *_without(sample, b"avro.codec"))
    rows, data = sample.blocks[0]
    huge = bytes([0x80] * 4 + [0x7F])
    choices: tuple[Callable[[], list[tuple[int, bytes]]], ...] = (
        lambda: [(rows, rng.randbytes(rng.choice((0, 1, 4, 5, 50, 5000))))],
        lambda: [(rng.choice(NUMBERS), packed(b"", codec))],
        lambda: [(0, packed(b"", codec))] * 500 + [(rows, packed(data, codec))],
        lambda: [(rows, packed(data, codec)[:-1])],
        lambda: [(rows, packed(data, codec)[:-4] + b"\0\0\0\0")],
        lambda: [(rows, packed(data, codec) + b"more")],
        lambda: [(rows, huge + rng.randbytes(40))],
        lambda: [(2**33, _bomb(codec))],
        lambda: [(rows, packed(data, codec)), (2**40, packed(bytes(100), codec))],
        lambda: [(-rows, packed(data, codec))],
        lambda: [(1, packed(bytes(rng.choice((10**4, 10**6))), codec))],
    )
    weights = [10] * len(choices)
    weights[7] = 1
    return assembled(metadata, sample.sync, rng.choices(choices, weights)[0]())


@cache
def _bomb(codec: str) -> bytes:
    return packed(bytes(100 << 20), codec) if codec != "null" else bytes(100)


def _without(sample: Sample, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(one for one in sample.metadata if one[0] != name)


def metadata_odd(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Write a header of well-formed but senseless entries."""
    text = dict(sample.metadata)[b"avro.schema"]
    codec = rng.choice(
        (b"lzma", b"", b"\xff\xfe", b"null\0", b"NULL", b"<script>", b"x" * 9000)
    )
    choices: tuple[list[tuple[bytes, bytes]], ...] = (
        [],
        [(b"avro.codec", b"null")],
        [(b"avro.schema", b"")],
        [(b"avro.schema", text), (b"avro.codec", codec)],
        [(b"avro.schema", text), (b"avro.schema", b"{}")],
        [(b"avro.schema", b"{}"), (b"avro.schema", text)],
        [(b"\xff\xfe", b"\0" * 50), (b"avro.schema", text), (b"", b"")],
        [(f"x{n}".encode(), b"y" * 20) for n in range(1200)] + [(b"avro.schema", text)],
        [(b"x", b"y" * rng.choice((8_000, 70_000, 2**20))), (b"avro.schema", text)],
        [(b"AVRO.SCHEMA", text)],
    )
    blocks = [(rows, packed(data, sample.codec)) for rows, data in sample.blocks]
    return assembled(rng.choice(choices), sample.sync, blocks)


def schema_text(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Write a schema that is hardly JSON."""
    text = dict(sample.metadata)[b"avro.schema"]
    deep = rng.choice((50, 120, 250, 400, 1_000, 50_000))
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: scarred(rng, text, len(text)),
        lambda: scarred(rng, text, len(text)),
        lambda: text.decode().encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text + b" " * rng.choice((10_000, 2**19)),
        lambda: b"[" * deep,
        lambda: b'{"type":' * deep,
        lambda: _nested(text, b'{"type":"array","items":', b"}", deep),
        lambda: _nested(text, b'{"type":"map","values":', b"}", deep),
        lambda: _nested(text, b'["null",', b"]", deep),
        lambda: _nested(text, b'{"type":', b"}", deep),
        lambda: _chained(text, min(deep, 5_000)),
        lambda: text.replace(b'"type"', b'"type":"int","type"', rng.randint(1, 3)),
        lambda: text.replace(b'"fields"', b'"fields":[],"fields"', 1),
        lambda: text.replace(b'"name":"', b'"name":"\\ud800', rng.randint(1, 9)),
        lambda: text.replace(b'"name":"', b'"name":"\\u0000', rng.randint(1, 9)),
        lambda: b'{"type":"record","name":"a","fields":' + b"9" * 5000 + b"}",
        lambda: b'"string"',
        lambda: b"null",
        lambda: b"\xff" * 40,
    )
    return _with_schema(rng, sample, rng.choice(choices)())


def _nested(text: bytes, before: bytes, after: bytes, deep: int) -> bytes:
    kind = before * deep + b'"int"' + after * deep
    whole = text.rstrip().removesuffix(b"}").rstrip().removesuffix(b"]")
    return whole + b',{"name":"deep","type":' + kind + b"}]}"


def _chained(text: bytes, deep: int) -> bytes:
    """Nest records in each other."""
    opened = (
        b'{"type":"record","name":"N%d","fields":[{"name":"f","type":' % n
        for n in range(deep)
    )
    kind = b"".join(opened) + b'"int"' + b"}]}" * deep
    return _nested(text, kind.replace(b"%", b""), b"", 1).replace(b'"int""int"', b"0")


def _with_schema(rng: Random, sample: Sample, text: bytes) -> bytes:
    """Give a file another schema, and mostly rows that fit it."""
    blocks = [(rows, packed(data, sample.codec)) for rows, data in sample.blocks]
    if rng.random() < 0.8:
        with suppress(Exception):
            schema, count = json.loads(text), rng.choice((1, 3, 20))
            data = b"".join(Values(rng).row(schema) for _ in range(count))
            blocks = [(count, packed(data, sample.codec))]
    metadata = (*_without(sample, b"avro.schema"), (b"avro.schema", text))
    return assembled(metadata, sample.sync, blocks)


def schema_changed(rng: Random, sample: Sample, _samples: Sequence[Sample]) -> bytes:
    """Change the schema as JSON, so that it stays well-formed."""
    schema = sample.schema
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change = rng.choices(tuple(CHANGES), tuple(CHANGES.values()))[0]
        with suppress(IndexError, KeyError, TypeError, AttributeError, ValueError):
            change(rng, schema)
    text = json.dumps(schema, ensure_ascii=rng.random() < 0.7)
    return _with_schema(rng, sample, text.encode("utf-8", "surrogatepass"))


def rename_field(rng: Random, schema: Any) -> None:
    rng.choice(schema["fields"])["name"] = rng.choice(HOSTILE)


def retype_field(rng: Random, schema: Any) -> None:
    rng.choice(schema["fields"])["type"] = some_type(rng)


def promote_field(rng: Random, schema: Any) -> None:
    one = rng.choice(schema["fields"])
    one["type"] = rng.choice(
        ("int", "long", "float", "double", "string", ["null", "long"], ["null", "int"])
    )


def optional_field(rng: Random, schema: Any) -> None:
    one = rng.choice(schema["fields"])
    branches = ["null", one["type"]] if isinstance(one["type"], str) else one["type"]
    one["type"] = rng.sample(branches, len(branches))


def add_field(rng: Random, schema: Any) -> None:
    name = rng.choice((*HOSTILE, f"new_{rng.randrange(99)}"))
    at = rng.randint(0, len(schema["fields"]))
    schema["fields"].insert(at, {"name": name, "type": some_type(rng)})


def drop_field(rng: Random, schema: Any) -> None:
    del schema["fields"][rng.randrange(len(schema["fields"]))]


def repeat_field(rng: Random, schema: Any) -> None:
    at = rng.randrange(len(schema["fields"]))
    copied = json.loads(json.dumps(schema["fields"][at]))
    if rng.random() < 0.5:
        copied["name"] = copied["name"].upper()
    schema["fields"].insert(rng.randint(0, len(schema["fields"])), copied)


def reorder_fields(rng: Random, schema: Any) -> None:
    rng.shuffle(schema["fields"])


def many_fields(rng: Random, schema: Any) -> None:
    kind = rng.choice(("null", "string", "int", ["null", "string"]))
    more = ({"name": f"f{n}", "type": kind} for n in range(rng.choice((300, 3_000))))
    schema["fields"] += more


def set_default(rng: Random, schema: Any) -> None:
    rng.choice(schema["fields"])["default"] = _junk(rng)


def set_junk(rng: Random, schema: Any) -> None:
    """Replace or delete any value at all."""
    holder, key_ = rng.choice(list(_places(schema)))
    if rng.random() < 0.3:
        del holder[key_]
    else:
        holder[key_] = _junk(rng)


def add_key(rng: Random, schema: Any) -> None:
    """Give some object an attribute that means something elsewhere."""
    objects = [schema, *(h[k] for h, k in _places(schema) if isinstance(h[k], dict))]
    names = ("namespace", "aliases", "doc", "order", "logicalType", "default", "items")
    more = (
        "size",
        "symbols",
        "fields",
        "__fastavro_parsed__",
        "__named_schemas",
        "values",
    )
    rng.choice(objects)[rng.choice((*names, *more))] = _junk(rng)


def rename_record(rng: Random, schema: Any) -> None:
    hostile = rng.choice(HOSTILE)
    match rng.randrange(4):
        case 0:
            schema["name"] = hostile
        case 1:
            schema["namespace"] = hostile
        case 2:
            schema["name"] = f"{hostile}.{schema['name']}"
        case 3:
            schema["name"] = f"{schema.pop('namespace')}.{schema['name']}"


def recursive(rng: Random, schema: Any) -> None:
    """Let a type hold itself, and now and then be very deep."""
    name = rng.choice((schema["name"], f"{schema['namespace']}.{schema['name']}"))
    kind = rng.choice(
        (
            name,
            ["null", name],
            [name, "null"],
            {"type": "array", "items": name},
            {"type": "map", "values": ["int", name]},
            {
                "type": "record",
                "name": "Link",
                "fields": [{"name": "next", "type": ["null", "Link"]}],
            },
            {
                "type": "record",
                "name": "Loop",
                "fields": [{"name": "next", "type": "Loop"}],
            },
        )
    )
    schema["fields"].append({"name": "again", "type": kind})


def empty_things(rng: Random, schema: Any) -> None:
    """Add types whose values take no bytes."""
    empty = {"type": "record", "name": "Empty", "fields": []}
    inner = {"name": "in", "type": rng.choice(("Empty", "null"))}
    outer = {"type": "record", "name": "Outer", "fields": [inner]}
    kinds = ({"type": "array", "items": "Empty"}, {"type": "array", "items": outer})
    schema["fields"] += [
        {"name": "e", "type": empty},
        {"name": "a", "type": rng.choice((*kinds, empty, "Empty", "null"))},
    ]
    if rng.random() < 0.2:
        schema["fields"] = [{"name": "n", "type": rng.choice(("null", empty))}]


def huge_symbols(rng: Random, schema: Any) -> None:
    symbols = [f"S{n}" for n in range(rng.choice((2_000, 30_000)))]
    if rng.random() < 0.3:
        symbols = ["Z" * 200_000]
    kind = {"type": "enum", "name": "Big", "symbols": symbols}
    schema["fields"].append({"name": "big", "type": kind})


def _junk(rng: Random) -> Any:
    """Return a value of its own: later changes may go into it."""
    return deepcopy(rng.choice((*JUNK, *HOSTILE)))


CHANGES: dict[Callable[[Random, Any], None], int] = {
    rename_field: 10,
    retype_field: 10,
    promote_field: 6,
    optional_field: 4,
    add_field: 10,
    drop_field: 5,
    repeat_field: 5,
    reorder_fields: 4,
    many_fields: 1,
    set_default: 6,
    set_junk: 12,
    add_key: 8,
    rename_record: 6,
    recursive: 3,
    empty_things: 3,
    huge_symbols: 1,
}
MUTATIONS: dict[Callable[[Random, Sample, Sequence[Sample]], bytes], int] = {
    anywhere: 10,
    in_the_header: 15,
    numbers: 12,
    spliced: 8,
    rows_damaged: 15,
    blocks_odd: 8,
    metadata_odd: 4,
    schema_text: 8,
    schema_changed: 30,
}


def some_type(rng: Random, depth: int = 0) -> Any:
    """Return a type, well-formed or not."""
    if depth > 3 or rng.random() < 0.5:
        return deepcopy(rng.choice((*ODD_TYPES, *JUNK, *HOSTILE[:4], "string", "long")))
    inner = partial(some_type, rng, depth + 1)
    match rng.randrange(5):
        case 0:
            return {"type": "array", "items": inner()}
        case 1:
            return {"type": "map", "values": inner()}
        case 2:
            return ["null", inner()]
        case 3:
            return [inner() for _ in range(rng.randint(0, 4))]
    fields = [
        {"name": rng.choice((*HOSTILE, "a", "b")), "type": inner()}
        for _ in range(rng.randint(0, 3))
    ]
    name = rng.choice((*HOSTILE, f"R{rng.randrange(9)}"))
    return {"type": "record", "name": name, "fields": fields}


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in decoded JSON, as its holder and key."""
    keys = range(len(node)) if isinstance(node, list) else tuple(node)
    for one in keys:
        yield node, one
        if isinstance(node[one], dict | list):
            yield from _places(node[one])


# Judging, in a process of its own.


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of mutants, judged together."""

    stock: Path
    seed: int
    first: int
    last: int
    """Number of the first one that is no longer in it."""
    polled: bool

    @property
    def numbers(self) -> range:
        return range(self.first, self.last)


def judge(part: Part) -> Counter[str]:
    """Judge a part; anything raised is a defect."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=part.stock) as root:
        looked, polled = Path(root, "looked"), Path(root, "polled")
        for at in part.numbers:
            event, body = mutant(part.stock, part.seed, at)
            name = key(event, hour=f"2026-09-15-{at % 5:02}", offset=at)
            foreign = f"by hand/{at}.avro" if at % 10 == 9 else name
            _write(looked / foreign, body)
            if part.polled:
                _write(polled / name, body)
            counts[judge_head(event if foreign is name else "", body)] += 1
        held = counts["head: refused"]
        counts += judge_look(looked, len(part.numbers), held)
        if part.polled:
            share = (0.05, 1.0)[part.first // PART // POLLED % 2]
            counts += judge_poll(polled, Path(root, "feeds"), share)
    return counts


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def judge_head(event_type: str, body: bytes) -> str:
    """Read a head from the first bytes and from all; both must say the same."""
    began = time.monotonic()
    short, whole = _head(body[:HEAD]), _head(body)
    spent = time.monotonic() - began
    assert spent < SLOW, f"reading the head took {spent:.1f} s"
    if isinstance(short, avro.Head):
        assert short == whole
    if not isinstance(whole, avro.Head):
        str(whole).encode()
        return "head: refused"
    with suppress(CorruptObjectError):
        avro.walk(body)
    known = not event_type or whole.schema.is_of(event_type)
    return "head: read" if known else "head: refused"


def _head(body: bytes) -> avro.Head | CorruptObjectError:
    try:
        return avro.read_head(body)
    except CorruptObjectError as error:
        return error


def judge_look(folder: Path, files: int, refused: int) -> Counter[str]:
    """Validate a folder, heads alone and whole; every file is counted once."""
    heads, deep = (validate(None, [str(folder)], deep=one) for one in (False, True))
    grouped = sum(one.files for one in heads.schemas)
    troubled = sum(one.files for one in heads.troubles)
    assert not heads.unread, heads.unread
    assert heads.listed == heads.looked_at == grouped + troubled == files
    assert troubled == refused, f"{troubled} troubles, and {refused} heads are none"
    assert not deep.unread, deep.unread
    data = [one.data for one in deep.schemas if one.data]
    aside = sum(one.files for one in deep.troubles)
    assert sum(one.files for one in data) + aside == files
    assert [one.fingerprint for one in deep.schemas] == [
        one.fingerprint for one in heads.schemas
    ]
    for report in (heads, deep):
        _render(report)
    form = "json" if len(heads.schemas) % 2 else "text"
    _run("validate", str(folder), "--fail-on", "never", "--format", form)
    counts = Counter({"deep: read": files - aside, "deep: rows": 0})
    for one in heads.schemas:
        counts[f"look: {one.verdict}"] += one.files
    counts["look: trouble"] += troubled
    counts["deep: trouble"] += aside
    counts["deep: rows"] += sum(one.rows for one in data)
    return counts


def _render(report: Any) -> None:
    page = validate_report.html(report)
    page.encode()
    assert "<script" not in page
    assert "<img" not in page
    for least in (None, Verdict.ADDITIVE):
        root = ET.fromstring(validate_report.junit(report, least).encode())  # noqa: S314
        cases = len(root.findall(".//testcase"))
        assert cases == len(report.schemas) + len(report.troubles)


def _run(*arguments: str) -> None:
    """Run a command in this process."""
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output[-2000:]
    if "json" in arguments:
        json.loads(result.stdout)


def judge_poll(source: Path, feeds: Path, share: float) -> Counter[str]:
    """Poll a folder: nothing is lost, and nothing is left to do."""
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=quiet)  # the command line set it otherwise
    settings = config.read(
        source={"url": str(source)},
        feeds={"url": str(feeds), "max_reject_share": share},
        ledger={"cache": ":memory:", "lease": "0s"},
    )
    found = validate(None, [str(source)], deep=True)
    files, aside = found.listed, sum(one.files for one in found.troubles)
    outcome = api.poll(settings)
    assert not outcome.unread, outcome.unread
    assert outcome.files + len(outcome.quarantined) == files
    assert len(outcome.quarantined) >= aside
    assert outcome.rows_in == outcome.rows_out + outcome.duplicates + outcome.rejects
    ids: Counter[str] = Counter()
    unified: dict[str, set[str]] = {}
    for path in _published(feeds):
        table, feed = pq.read_table(path), path.parts[-5]
        if "id" in table.column_names:
            ids.update(table["id"].to_pylist())
            continue
        names = unified.setdefault(feed, set())
        if "event_id" in table.column_names:
            names.update(table["event_id"].to_pylist())
    assert ids.total() == outcome.rows_out
    assert all(ids.keys() >= names for names in unified.values())
    verified = verify(settings)
    # Mutants of two event types may have one id, and Braze's never: see decisions.md.
    shared = unified if len(ids) < ids.total() else ()
    differences = [
        one
        for one in verified.differences
        if not ("twice" in one.what and one.about.split("/")[0] in shared)
    ]
    assert not differences, differences
    assert verified.committed + verified.quarantined == verified.source_files == files
    assert verified.pending == 0
    again = api.poll(settings)
    assert again.files == len(again.quarantined) == 0
    return Counter(
        {
            "poll: committed": outcome.files,
            "poll: quarantined": len(outcome.quarantined),
            "poll: rows": outcome.rows_out,
            "poll: rejects": outcome.rejects,
        }
    )


def _published(feeds: Path) -> Iterator[Path]:
    return (one for one in feeds.glob("*/*/*/*/*.parquet") if one.parts[-5][0] != "_")


def child(part: Part) -> int:
    """Judge a part under limits and print the counts as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    try:
        counts = judge(part)
    except BaseException:  # noqa: BLE001 (whatever it is, it is a defect)
        traceback.print_exc()
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"counts": counts, "peak": peak}))  # noqa: T201
    return 0


# The campaign.


@dataclass(slots=True)
class Figures:
    """What came of it."""

    counts: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    defects: list[str] = field(default_factory=list)


def run(part: Part) -> dict[str, Any] | str:
    """Judge a part in a process of its own; return its figures, or what it said."""
    numbers_ = [str(part.seed), str(part.first), str(part.last), str(int(part.polled))]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", "--part", str(part.stock), *numbers_],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, said = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(6)  # faulthandler tells where it hangs
        out, said = process.communicate()
        return f"still running after {PATIENCE} s\n{said}"
    if process.returncode:
        return f"status {process.returncode}\n{said}"
    found: dict[str, Any] = json.loads(out)
    return found


def search(part: Part, figures: Figures) -> None:
    """Judge a part; if it fails, halve it until the files that do it are found."""
    if len(figures.defects) >= ENOUGH:
        return
    found = run(part)
    if isinstance(found, dict):
        figures.counts += Counter(found["counts"])
        figures.peak = max(figures.peak, found["peak"])
        _tell(f"{part.first} to {part.last}: nothing")
        return
    before = len(figures.defects)
    if len(part.numbers) > 1:
        middle = (part.first + part.last) // 2
        for first, last in ((part.first, middle), (middle, part.last)):
            half = Part(part.stock, part.seed, first, last, part.polled)
            search(half, figures)
    if len(figures.defects) == before:
        figures.defects.append(keep(part, found))


def keep(part: Part, said: str) -> str:
    """Keep the files of a defect and what was said of it; return both in short."""
    name = f"{part.seed}-{part.first}"
    KEPT.mkdir(parents=True, exist_ok=True)
    for at in part.numbers if len(part.numbers) <= 8 else ():
        event, body = mutant(part.stock, part.seed, at)
        (KEPT / f"{part.seed}-{at}={event}.avro").write_bytes(body)
    (KEPT / f"{name}.txt").write_text(f"mutants {part.numbers}\n{said}")
    last = said.strip().splitlines()[-1][:200] if said.strip() else ""
    note = f"seed {part.seed}, {part.numbers}: {said.splitlines()[0]} ... {last}"
    _tell(note)
    return note


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def campaign(count: int, seed: int, first: int, processes: int) -> Figures:
    """Judge so many mutants, some parts at the same time."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="fuzz-stock-") as folder:
        make_stock(Path(folder))
        parts = [
            Part(
                stock=Path(folder),
                seed=seed,
                first=at,
                last=min(at + PART, first + count),
                polled=at // PART % POLLED == 0,
            )
            for at in range(first, first + count, PART)
        ]
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda part: search(part, figures), parts))
    return figures


def arguments() -> argparse.ArgumentParser:
    """Describe the command line of the campaign itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", nargs=5, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run a campaign and print its figures; 1 if there was any defect."""
    chosen = arguments().parse_args()
    if chosen.part:
        folder, *numbers_ = chosen.part
        seed, first, last, polled = map(int, numbers_)
        return child(Part(Path(folder), seed, first, last, bool(polled)))
    began = time.monotonic()
    figures = campaign(chosen.count, chosen.seed, chosen.first, chosen.processes)
    for name, number_ in sorted(figures.counts.items()):
        print(f"{name:24}{number_:>12,}")  # noqa: T201
    print(  # noqa: T201 (the result)
        f"{chosen.count:,} mutants, seed {chosen.seed}: "
        f"{len(figures.defects)} defects, peak {figures.peak / 10**6:.0f} MB, "
        f"{time.monotonic() - began:.0f} s"
    )
    return bool(figures.defects)


if __name__ == "__main__":
    sys.exit(main())
