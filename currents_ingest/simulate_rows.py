"""The encoded rows of a simulated file: new, repeated, late and bad ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

from currents_ingest import simulate_values
from currents_ingest.schemas import Field
from currents_ingest.simulate_values import encode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from currents_ingest.simulate_files import File

Pool = Callable[[Field], Sequence[bytes]]
"""Encoded values of a field, to choose from."""

_LATE_MINUTES = 45 * 24 * 60
_ABSURD = (2**62, -(2**62), 1_789_000_000_000)
"""Seconds far from any event; the last would do as milliseconds."""
_PERSON = (
    "*user_id",
    "email_address",
    "*phone_number",
    "channel_identifier",
    "native_line_id",
    "bsuid",
    "timezone",
    "gender",
    "country",
    "language",
    "dob",
    "device_*",
    "os_version",
    "platform",
    "ad_id*",
    "push_token",
)
"""Fields of one person, by glob: all from one entry of their pools."""
_MESSAGE = ("campaign_*", "canvas_*", "message_variation_*", "dispatch_id", "send_id")
"""Fields of one message, likewise."""
_ENTRIES = 10_000
"""People and messages; a smaller pool gives several of them one entry."""
_ID_SIZE = encode("string", "-" * 36)[:1]
_EMPTY_ID = encode("string", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How many of the rows are out of the ordinary; see ``Simulation``."""

    redelivered: float = 0.0
    late: float = 0.0
    bad: float = 0.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What a file holds, and what a feed gets from it."""

    encoded: list[bytes]
    ids: list[str]
    """One a row; those of copies and of bad rows mean nothing."""
    new: list[int]
    """Positions of the rows that a feed gets from this file."""
    copies: int

    def counts(self) -> Counter[str]:
        """Return how many rows there are of each sort."""
        rows, new = len(self.encoded), len(self.new)
        rejects = rows - new - self.copies
        return Counter(rows=rows, distinct=new, duplicates=self.copies, rejects=rejects)


def rows(
    file: File, recent: Sequence[bytes], shares: Shares, pool: Pool, rng: Random
) -> Rows:
    """Make a file's rows: new ones, copies of *recent* ones, and bad ones."""
    copies = min(_some(file.rows, shares.redelivered, rng), len(recent))
    bad = min(_some(file.rows, shares.bad, rng), file.rows - copies)
    chosen = rng.sample(range(file.rows), copies + bad)
    ids, times = _ids(file.rows, rng), _times(file, shares.late, rng)
    coded = [_ID_SIZE + each.encode() for each in ids]
    columns = file.version.writer.fields
    _spoil(columns, coded, times, chosen[copies:], rng)
    encoded = _joined(columns, coded, times, pool, rng)
    encoded[: file.tests] = _joined(
        columns,
        coded[: file.tests],
        times[: file.tests],
        lambda field: [simulate_values.placeholder(field, rng)],
        rng,
    )
    for at, row in zip(chosen, rng.sample(recent, copies), strict=False):
        encoded[at] = row
    new = sorted(set(range(file.rows)) - set(chosen))
    return Rows(encoded, ids, new, copies)


def _some(rows: int, share: float, rng: Random) -> int:
    """Return a share of *rows* that is right on average, also for a few rows."""
    return min(rows, int(rows * share + rng.random()))


def _ids(count: int, rng: Random) -> list[str]:
    digits = rng.randbytes(16 * count).hex()
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-{digits[at + 12 : at + 16]}"
        f"-{digits[at + 16 : at + 20]}-{digits[at + 20 : at + 32]}"
        for at in range(0, 32 * count, 32)
    ]


def _times(file: File, late: float, rng: Random) -> list[int]:
    start = int(file.hour.timestamp())
    times = rng.choices(range(start, start + 3600), k=file.rows)
    for at in rng.sample(range(file.rows), _some(file.rows, late, rng)):
        times[at] = start - int(60 * _LATE_MINUTES ** rng.random())
    return times


def _spoil(
    columns: Iterable[Field],
    ids: list[bytes],
    times: list[int],
    rows: Iterable[int],
    rng: Random,
) -> None:
    """Make each of *rows* break one rule, in place."""
    long_time = any(each.name == "time" and each.type == "long" for each in columns)
    for at in rows:
        if long_time and rng.random() < 0.5:
            times[at] = rng.choice(_ABSURD)
        else:
            ids[at] = _EMPTY_ID


def _joined(
    columns: Iterable[Field],
    ids: Sequence[bytes],
    times: Sequence[int],
    pool: Pool,
    rng: Random,
) -> list[bytes]:
    """Encode rows column by column, which is many times faster than row by row."""
    entries = {
        group: rng.choices(range(_ENTRIES), k=len(ids))
        for group in ("person", "message")
    }
    coded: list[Sequence[bytes]] = []
    for column in columns:
        group = _group(column.name)
        if column.name == "id":
            coded.append(ids)
        elif column.name in _TIMES:
            coded.append(_coded_times(column, times, rng))
        elif group:
            coded.append(_entries(pool(column), entries[group]))
        else:
            coded.append(rng.choices(pool(column), k=len(ids)))
    return list(map(b"".join, zip(*coded, strict=True)))


@cache
def _group(name: str) -> str:
    """Say whom a field belongs to: a person, a message or (``""``) nobody."""
    groups = {"person": _PERSON, "message": _MESSAGE}
    return next((group for group in groups if _any(groups[group], name)), "")


def _any(globs: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _entries(values: Sequence[bytes], numbers: Iterable[int]) -> list[bytes]:
    size = len(values)
    return [values[number % size] for number in numbers]


_TIMES: dict[str, Callable[[int, Random], int]] = {
    "time": lambda seconds, _rng: seconds,
    "time_ms": lambda seconds, rng: seconds * 1000 + rng.randrange(1000),
}


def _coded_times(column: Field, times: Sequence[int], rng: Random) -> list[bytes]:
    coded = {
        each: encode(column.schema, _TIMES[column.name](each, rng))
        for each in sorted(set(times))
    }
    if column.name == "time" or not column.nullable:
        return [coded[each] for each in times]
    null = encode(column.schema, None)
    return [
        null if rng.random() < simulate_values.NULLS else coded[each] for each in times
    ]
