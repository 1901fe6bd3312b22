"""What whole files hold: ids, times, JSON in text, known words, nulls, rows.

Source of the rules: Braze docs, "Event delivery semantics", and the event glossaries.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import polars as pl

from currents_ingest import avro, conform, keys, parquet, reading
from currents_ingest.codecs import MAX_UNPACKED
from currents_ingest.errors import (
    CorruptObjectError,
    CurrentsError,
    ForeignKeyError,
)
from currents_ingest.privacy import REDACTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from currents_ingest.avro import Container
    from currents_ingest.schemas import Field
    from currents_ingest.store import Store, StoredObject

    Tell = Callable[[str, str, str], None]
    Key = tuple[str, str]
    """Event type and fingerprint."""

JSON_FIELDS = frozenset(
    {
        "answer_multiple_strings",
        "conversion_behavior",
        "custom_attributes",
        "data_object_provenance",
        "flow_response_json",
        "message_extras",
        "properties",
        "tool_arguments",
    }
)
"""Text fields that hold JSON."""
WORDS: dict[str, frozenset[str]] = {
    "action": frozenset({"subscribed", "unsubscribed", "none"}),
    "live_activity_event_type": frozenset({"start", "update", "end"}),
    "machine_open": frozenset({"true"}),
    "platform": frozenset({"ios", "android", "kindle", "web", "tvos", "roku"}),
    "push_token_state_change_type": frozenset({"add", "update", "remove"}),
    "state_change_source": frozenset(
        {
            "sdk",
            "dashboard",
            "subscription page",
            "rest api",
            "csv import",
            "preference center",
            "inbound message",
            "migration",
            "user merge",
            "canvas user update step",
        }
    ),
    "subscription_status": frozenset({"subscribed", "unsubscribed", "opted in"}),
}
"""Known values by field, lower case: Braze's own differ in it."""
LATE, EARLY = 24 * 3600, 3600
"""Seconds before and after its queued hour at which an event counts as late, and as
one that lies in the future."""
_AT_ONCE = 64 << 20
"""Bytes of files held at a time."""
_HELD_IDS = 4_000_000
"""Hashes of ids in memory, eight bytes each; more go to a temporary folder."""
_BUCKETS = 64
_SHOWN, _WORDS_KEPT = 5, 100
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,39}")
"""A value that may be shown; an address or a hash does not look like one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What the files of one schema hold."""

    files: int
    rows: int
    fewest: int
    most: int
    """Rows of a file."""
    repeated_ids: int
    """Rows whose id an earlier row of the event type has; Currents delivers at least
    once, so a few are normal. Counted by 64-bit hash."""
    without_id: int
    bad_time: int
    """Rows whose time is missing or not between 1970 and 2100: rejected by a poll."""
    late: int
    """Rows queued more than a day after they happened."""
    future: int
    """Rows that happened more than an hour after their queued hour."""
    nulls: dict[str, float]
    """Share of rows without a value, for each field that may have none."""
    no_json: dict[str, int]
    """Rows whose text should be JSON and is not, by field."""
    new_words: dict[str, dict[str, int]]
    """Values that are not among the known ones, by field, with their rows."""


@dataclass(slots=True)
class _Counts:
    number: int
    files: int = 0
    rows: int = 0
    fewest: int = 0
    most: int = 0
    without_id: int = 0
    bad_time: int = 0
    late: int = 0
    future: int = 0
    nulls: Counter[str] = field(default_factory=Counter)
    no_json: Counter[str] = field(default_factory=Counter)
    new_words: dict[str, Counter[str]] = field(default_factory=dict)


class Checks:
    """The checks of a whole run; memory is bounded, ids go to a temporary folder."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._wanted: list[tuple[Key, StoredObject]] = []
        self._counts: dict[Key, _Counts] = {}
        self._ids = _Ids()

    def close(self) -> None:
        """Remove the temporary folder."""
        self._ids.close()

    def want(self, at: Key, stored: StoredObject) -> None:
        """Note a file of a schema, to be read next."""
        self._wanted.append((at, stored))

    def read(self, store: Store, trouble: Tell, unread: Tell) -> None:
        """Read and check the files noted.

        Args:
            store: Where they are.
            trouble: Told of each file that is damaged: event type, reason, URL.
            unread: Told of each that the store did not give, likewise.
        """
        for at, stored in self._wanted:
            if stored.size > self._max_bytes:
                reason = reading.too_large(stored.size, self._max_bytes)
                trouble(at[0], reason, f"{store.url}/{stored.key}")
        fitting = [one for one in self._wanted if one[1].size <= self._max_bytes]
        for part in _parts(fitting):
            bodies = store.read([stored for _, stored in part])
            groups: dict[Key, list[_Whole]] = {}
            unpacked = 0
            for (at, stored), body in zip(part, bodies, strict=True):
                url = f"{store.url}/{stored.key}"
                if isinstance(body, CurrentsError):
                    unread(at[0], body.told().replace(stored.key, "the object"), url)
                    continue
                try:
                    whole = _Whole(url, avro.walk(memoryview(body)))
                except CorruptObjectError as error:
                    trouble(at[0], str(error), url)
                    continue
                unpacked += whole.container.size
                if unpacked > MAX_UNPACKED:
                    self._decode_all(groups, trouble)
                    unpacked = whole.container.size
                groups.setdefault(at, []).append(whole)
            self._decode_all(groups, trouble)
        self._wanted.clear()

    def _decode_all(self, groups: dict[Key, list[_Whole]], trouble: Tell) -> None:
        for at, files in groups.items():
            self._decode(at, files, trouble)
        groups.clear()

    def _decode(self, at: Key, files: list[_Whole], trouble: Tell) -> None:
        containers = [file.container for file in files]
        for where, frame in reading.decode_apart(containers):
            if isinstance(frame, CorruptObjectError):
                for file in files[where]:
                    trouble(at[0], str(frame), file.url)
            else:
                self._check(at, files[where], frame)

    def _check(self, at: Key, files: list[_Whole], frame: pl.DataFrame) -> None:
        counts = self._counts.setdefault(at, _Counts(number=len(self._counts)))
        fields = {each.name: each for each in files[0].container.schema.fields}
        rows = [file.container.rows for file in files]
        counts.fewest = min([*rows, counts.fewest or rows[0]])
        counts.most = max(*rows, counts.most)
        counts.files += len(files)
        counts.rows += frame.height
        counts.nulls.update(
            {n: frame[n].null_count() for n, one in fields.items() if one.nullable}
        )
        _check_times(counts, frame, fields, files)
        for name in sorted(JSON_FIELDS & fields.keys()):
            if fields[name].type == "string":
                counts.no_json[name] += sum(map(_is_no_json, frame[name]))
        for name in sorted(WORDS.keys() & fields.keys()):
            if fields[name].type == "string":
                new = counts.new_words.setdefault(name, Counter())
                _check_words(new, name, frame[name])
        if "id" in fields and fields["id"].type == "string":
            held = (frame["id"] != "").fill_null(value=False)
            counts.without_id += frame.height - int(held.sum())
            self._ids.add(at[0], counts.number, frame["id"].filter(held))

    def reports(self) -> dict[Key, DataReport]:
        """Return what was found, by schema."""
        repeated = self._ids.repeated()
        return {
            at: DataReport(
                files=one.files,
                rows=one.rows,
                fewest=one.fewest,
                most=one.most,
                repeated_ids=repeated.get(one.number, 0),
                without_id=one.without_id,
                bad_time=one.bad_time,
                late=one.late,
                future=one.future,
                nulls={name: n / one.rows for name, n in one.nulls.items()},
                no_json={name: n for name, n in one.no_json.items() if n},
                new_words={
                    name: dict(words.most_common(_SHOWN))
                    for name, words in one.new_words.items()
                    if words
                },
            )
            for at, one in self._counts.items()
        }


@dataclass(frozen=True, slots=True)
class _Whole:
    """A file that was walked."""

    url: str
    container: Container

    @property
    def queued(self) -> datetime | None:
        try:
            return keys.parse(keys.path_of(self.url)).hour
        except ForeignKeyError:
            return None


def _parts(
    wanted: Sequence[tuple[Key, StoredObject]],
) -> Iterable[list[tuple[Key, StoredObject]]]:
    """Split files so that what is held at a time stays small."""
    part: list[tuple[Key, StoredObject]] = []
    size = 0
    for one in wanted:
        if part and size + one[1].size > _AT_ONCE:
            yield part
            part, size = [], 0
        part.append(one)
        size += one[1].size
    if part:
        yield part


def _check_times(
    counts: _Counts,
    frame: pl.DataFrame,
    fields: dict[str, Field],
    files: Sequence[_Whole],
) -> None:
    if "time" not in fields or fields["time"].type not in ("int", "long"):
        counts.bad_time += frame.height
        return
    queued = [file.queued for file in files]
    hours = [hour and int(hour.timestamp()) for hour in queued]
    repeated = pl.DataFrame(
        {"hour": hours, "rows": [file.container.rows for file in files]},
        schema={"hour": pl.Int64, "rows": pl.Int64},
    ).select(pl.col("hour").repeat_by("rows").explode())
    seconds, hour = frame["time"].cast(pl.Int64), repeated["hour"]
    earliest, latest = (
        int(edge.timestamp()) for edge in (conform.EARLIEST, conform.LATEST)
    )
    good = seconds.is_between(earliest, latest, closed="left").fill_null(value=False)
    counts.bad_time += frame.height - int(good.sum())
    counts.late += int((good & (seconds < hour - LATE)).sum())
    counts.future += int((good & (seconds >= hour + 3600 + EARLY)).sum())


def _is_no_json(text: str | None) -> bool:
    if text is None or text == REDACTED:
        return False
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return True
    return False


def _check_words(new: Counter[str], name: str, values: pl.Series) -> None:
    """Count values that are not known. Only what looks like a word is ever shown."""
    counted = values.drop_nulls().value_counts()
    for text, rows in counted.iter_rows():
        if text == REDACTED or text.lower() in WORDS[name]:
            continue
        shown = text if _WORD.fullmatch(text) else "(no plain word)"
        new[shown if shown in new or len(new) < _WORDS_KEPT else "(others)"] += rows


class _Ids:
    """Counts repeated ids in bounded memory."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._held: list[pl.DataFrame] = []
        self._rows = self._flushed = 0
        self._events: dict[str, int] = {}

    def close(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, event_type: str, group: int, ids: pl.Series) -> None:
        event = self._events.setdefault(event_type, len(self._events))
        self._held.append(
            pl.DataFrame({"hash": ids.hash()}).with_columns(
                pl.lit(event, pl.UInt32).alias("event"),
                pl.lit(group, pl.UInt32).alias("group"),
            )
        )
        self._rows += len(ids)
        if self._rows >= _HELD_IDS:
            self._flush()

    def repeated(self) -> dict[int, int]:
        """Return how many rows of each group have an id that came before."""
        counts: Counter[int] = Counter()
        for bucket in self._buckets():
            again = bucket.filter(~pl.struct("hash", "event").is_first_distinct())
            counts.update(dict(again["group"].value_counts().iter_rows()))
        return dict(counts)

    def _buckets(self) -> Iterable[pl.DataFrame]:
        if not self._folder:
            yield pl.concat(self._held) if self._held else _NO_IDS
            return
        self._flush()
        for bucket in range(_BUCKETS):
            names = (f"{n}-{bucket}.parquet" for n in range(self._flushed))
            yield parquet.from_bytes([(self._folder / n).read_bytes() for n in names])

    def _flush(self) -> None:
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="currents-ids-"))
        whole = pl.concat(self._held) if self._held else _NO_IDS
        for bucket in range(_BUCKETS):
            part = whole.filter(pl.col("hash") % _BUCKETS == bucket)
            path = self._folder / f"{self._flushed}-{bucket}.parquet"
            path.write_bytes(parquet.index_to_bytes(part))
        self._held, self._rows, self._flushed = [], 0, self._flushed + 1


_NO_IDS = pl.DataFrame(
    schema={"hash": pl.UInt64, "event": pl.UInt32, "group": pl.UInt32}
)
