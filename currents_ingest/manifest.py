"""What one batch took and gave, and what one ledger entry says."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 (pydantic reads it)
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from currents_ingest.compatibility import Verdict
from currents_ingest.contracts import Contract  # noqa: TC001 (pydantic reads it)

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
    rows: int
    bytes: int
    sha256: str
    first_event: datetime | None = None
    last_event: datetime | None = None


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

    @property
    def queued(self) -> tuple[datetime, datetime]:
        """Return the first and the last queued hour of the inputs."""
        hours = [one.hour for one in self.inputs]
        return min(hours), max(hours)


class Drift(_Frozen):
    """A writer schema that its feed's contract does not know whole, once for each."""

    fingerprint: str
    event_type: str
    canonical: str
    verdict: Verdict = Verdict.ADDITIVE
    differences: tuple[str, ...] = ()
    """From the contract as it was then."""
    key: str = ""
    """The first file that had it, relative to the source URL."""


class Entry(_Frozen):
    """One ledger entry: any number of batches and decisions, all or nothing."""

    format: int = FORMAT
    number: int = 0
    at: datetime
    run: str
    """Token of the run that wrote it."""
    batches: tuple[Manifest, ...] = ()
    pinned: tuple[Contract, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    released: tuple[FileId, ...] = ()
    """Quarantined files that the next poll reads again."""
    discarded: tuple[FileId, ...] = ()
    schemas: tuple[Drift, ...] = ()
    reconciled: datetime | None = None
    """When a full listing began that this entry and those before it cover."""
    swept: bool = False
    """Staging left by dead runs is removed after this entry."""

    def numbered(self, number: int) -> Entry:
        """Return the entry with its number and its outputs' final keys."""
        parts: dict[str, int] = {}
        batches = []
        for batch in self.batches:
            part = parts[batch.feed] = parts.get(batch.feed, -1) + 1
            outputs = tuple(
                output.model_copy(
                    update={"key": _final_key(batch, output, number, part)}
                )
                for output in batch.outputs
            )
            batches.append(batch.model_copy(update={"outputs": outputs}))
        return self.model_copy(update={"number": number, "batches": tuple(batches)})

    def to_json(self) -> bytes:
        """Return the bytes that lie in the bucket; equal entries, equal bytes."""
        text = self.model_dump_json(exclude_defaults=True, exclude={"format"})
        return f'{{"format":{self.format},{text[1:]}\n'.encode()

    @property
    def outputs(self) -> Sequence[Output]:
        """Return every object that the entry publishes."""
        return [output for batch in self.batches for output in batch.outputs]


def _final_key(batch: Manifest, output: Output, number: int, part: int) -> str:
    day = batch.planned_at
    name = f"{batch.feed}-{day:%Y%m%d}-{number:010}-{part:05}"
    match output.kind:
        case "feed":
            return f"{batch.feed}/{day:%Y/%m/%d}/{name}.parquet"
        case "index":
            return f"_index/{batch.feed}/{name}.parquet"
        case "rejects":
            return f"_rejects/{batch.feed}/{day:%Y/%m/%d}/{name}.jsonl"
