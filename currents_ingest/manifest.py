"""What one batch took and gave, and what one ledger entry says."""

from __future__ import annotations

from collections import Counter
from datetime import datetime  # noqa: TC003 (pydantic reads it)
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from currents_ingest.compatibility import Verdict  # noqa: TC001 (pydantic reads it)
from currents_ingest.contracts import Contract  # noqa: TC001 (pydantic reads it)
from currents_ingest.unified import UnifiedContract  # noqa: TC001 (pydantic reads it)

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileId(_Frozen):
    """One Currents file as listed; written again with other content, it is another."""

    key: str
    """Relative to the source URL."""
    etag: str
    size: int

    @property
    def identity(self) -> tuple[str, str, int]:
        """Return what tells this file from any other."""
        return self.key, self.etag, self.size


class Input(FileId):
    """A file that was read whole."""

    hour: datetime
    """Queued hour, from the key."""
    rows: int
    """Counted from the block headers."""
    fingerprint: str


class SetAside(FileId):
    """A file that could not be read whole, kept in quarantine."""

    event_type: str | None = None
    hour: datetime | None = None
    reason: str
    fingerprint: str = ""
    """The writer schema that is the reason, if one is."""


class Output(_Frozen):
    """An object that the batch publishes."""

    kind: Literal["feed", "index", "rejects"]
    staged: str
    """Key below the feeds URL where it waits for the commit."""
    key: str = ""
    """Its final key; known once the ledger number is."""
    also: str = ""
    """Key of its copy in the day's directory, if there is one."""
    rows: int
    bytes: int
    sha256: str
    feed: str = ""
    """A unified feed; empty: the event type's own."""
    first_event: datetime | None = None
    last_event: datetime | None = None


class Share(_Frozen):
    """What a batch gave to a unified feed.

    The batch's rows_out = rows + rejects + passed_over + superseded.
    """

    feed: str
    contract_version: int
    rows: int
    rejects: int
    passed_over: int
    """Rows that the contract does not ask for."""
    superseded: int = 0
    """States that a newer one in the same batch replaces."""


class Manifest(_Frozen):
    """One batch: rows_in = rows_out + duplicates + rejects."""

    event_type: str
    feed: str
    contract_version: int
    planned_at: datetime
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    rows_in: int
    rows_out: int
    duplicates: int
    rejects: int
    hours: dict[int, int]
    """Rows delivered by event hour (hours since 1970, UTC)."""
    raw: bool = True
    """The event type's own feed is made; otherwise its rows went elsewhere alone."""
    shares: tuple[Share, ...] = ()
    joins: tuple[str, ...] = ()
    """Unified feeds that take its rows later, joined with another event type's."""

    @property
    def queued(self) -> tuple[datetime, datetime]:
        """Return the first and the last queued hour of the inputs."""
        hours = [one.hour for one in self.inputs]
        return min(hours), max(hours)


class Delivery(_Frozen):
    """An object of a feed that no single batch wrote."""

    feed: str
    contract_version: int
    planned_at: datetime
    superseded: int = 0
    """States that a newer one replaces, of those that the batches' shares count."""
    joined: int = 0
    """Rows that no share counts, for they were joined or filled in later."""
    outputs: tuple[Output, ...]


class Refill(_Frozen):
    """Rows delivered before a contract grew, whole again with its new columns."""

    feed: str
    contract_version: int
    planned_at: datetime
    sources: tuple[str, ...]
    """Feed objects that were read, below the feeds URL."""
    outputs: tuple[Output, ...]
    """One for each source that held values of new columns, in order."""


class Drift(_Frozen):
    """A writer schema that its feed's contract does not know whole, once for each."""

    fingerprint: str
    event_type: str
    avro: str
    """The schema in canonical form, with defaults."""
    verdict: Verdict
    differences: tuple[str, ...]
    """What breaks, or else what is new since the closest schema seen before."""
    key: str
    """The first file that had it, relative to the source URL."""


Done = TypeVar("Done", Manifest, Delivery, Refill)


class Joined(_Frozen):
    """A batch whose rows were joined for a unified feed."""

    feed: str
    index: str
    """Key of the batch's id index."""


class Backfilled(_Frozen):
    """Raw objects whose rows a unified feed got after the fact."""

    feed: str
    sources: tuple[str, ...]
    """Keys below the feeds URL."""


class Started(_Frozen):
    """A workflow of Amperity's that was started over delivered objects."""

    config_id: str
    run: str
    """Amperity's id of the run."""
    since: datetime
    until: datetime
    """Delivery days: the first, and the first that is left out."""
    again: bool = False
    """More was delivered while it was started, so it has to be started once more."""


class Entry(_Frozen):
    """One ledger entry: any number of batches and decisions, all or nothing."""

    format: int = FORMAT
    number: int = 0
    at: datetime
    run: str
    """Token of the run that wrote it."""
    batches: tuple[Manifest, ...] = ()
    pinned: tuple[Contract, ...] = ()
    unified: tuple[UnifiedContract, ...] = ()
    """Contracts of unified feeds, pinned likewise."""
    deliveries: tuple[Delivery, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    released: tuple[FileId, ...] = ()
    """Quarantined files that the next poll reads again."""
    discarded: tuple[FileId, ...] = ()
    schemas: tuple[Drift, ...] = ()
    refills: tuple[Refill, ...] = ()
    joined: tuple[Joined, ...] = ()
    backfilled: tuple[Backfilled, ...] = ()
    started: Started | None = None
    reconciled: datetime | None = None
    """When a full listing began that this entry and those before it cover."""
    swept: bool = False
    """Staging left by dead runs is removed after this entry."""

    def numbered(self, number: int, *, daily: bool = False) -> Entry:
        """Return the entry with its number and its outputs' final keys.

        Args:
            number: In the ledger.
            daily: Feed objects are copied to the day's directory, too.
        """
        parts: Counter[str] = Counter()
        batches = []
        for batch in self.batches:
            feeds = [one.feed or batch.feed for one in batch.outputs]
            keyed = {
                feed: _name(feed, batch.planned_at, number, parts[feed])
                for feed in feeds
            }
            parts.update(keyed.keys())
            names = [(feed, keyed[feed]) for feed in feeds]
            batches.append(_keyed(batch, names, daily=daily))
        deliveries = []
        for each in self.deliveries:
            name = _name(each.feed, each.planned_at, number, parts[each.feed])
            parts[each.feed] += 1
            names = [(each.feed, name)] * len(each.outputs)
            deliveries.append(_keyed(each, names, daily=daily))
        refills = []
        for one in self.refills:
            feed = refill_feed(one.feed)
            rows = range(parts[feed], parts[feed] + len(one.outputs))
            names = [(feed, _name(feed, one.planned_at, number, n)) for n in rows]
            parts[feed] += len(names)
            refills.append(_keyed(one, names, daily=daily))
        return self.model_copy(
            update={
                "number": number,
                "batches": tuple(batches),
                "deliveries": tuple(deliveries),
                "refills": tuple(refills),
            }
        )

    def to_json(self) -> bytes:
        """Return the bytes that lie in the bucket; equal entries, equal bytes."""
        text = self.model_dump_json(exclude_defaults=True, exclude={"format"})
        return f'{{"format":{self.format},{text[1:]}\n'.encode()

    @property
    def outputs(self) -> Sequence[Output]:
        """Return every object that the entry publishes."""
        batches = [output for one in self.batches for output in one.outputs]
        others = [output for one in self.deliveries for output in one.outputs]
        refills = [output for one in self.refills for output in one.outputs]
        return batches + others + refills


def refill_feed(feed: str) -> str:
    """Return the folder of a feed's refills; no feed of an event type ends so."""
    return f"{feed}_refill"


def _keyed(done: Done, names: Sequence[tuple[str, str]], *, daily: bool) -> Done:
    """Return what was done with its outputs' final keys, from feeds and names."""
    day = done.planned_at
    outputs = tuple(
        one.model_copy(
            update={
                "key": _final_key(one.kind, feed, day, name),
                "also": _daily_key(feed, day, name)
                if daily and one.kind == "feed"
                else "",
            }
        )
        for one, (feed, name) in zip(done.outputs, names, strict=True)
    )
    return done.model_copy(update={"outputs": outputs})


def _name(feed: str, day: datetime, number: int, part: int) -> str:
    return f"{feed}-{day:%Y%m%d}-{number:010}-{part:05}"


def _daily_key(feed: str, day: datetime, name: str) -> str:
    return f"{feed}_{day:%Y-%m-%d}.parquet/{name}.parquet"


def _final_key(kind: str, feed: str, day: datetime, name: str) -> str:
    return {
        "feed": f"{feed}/{day:%Y/%m/%d}/{name}.parquet",
        "index": f"_index/{feed}/{name}.parquet",
        "rejects": f"_rejects/{feed}/{day:%Y/%m/%d}/{name}.jsonl",
    }[kind]
