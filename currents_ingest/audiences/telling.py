"""Rows to Braze, and into the audience's ledger what became of them.

What is about to be sent is written down first, range by range. What may be sent twice
is in doubt then: unless its acknowledgement is written down as well, it is sent again.
What must not (events, purchases, increments) is announced in small chunks: a run that
is killed leaves them *unknown*, for a person to decide, and no later run sends them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
import structlog

from currents_ingest.audiences.batches import (
    Batch,
    cut,
    doubtful,
    left,
    news,
    once,
    only_once,
)
from currents_ingest.audiences.braze import endpoint
from currents_ingest.audiences.client import connected
from currents_ingest.audiences.cohorts import ids_of, name_of
from currents_ingest.audiences.journal import Step
from currents_ingest.audiences.mapping import COHORT
from currents_ingest.audiences.pace import Pace
from currents_ingest.audiences.requests import Request, grouped
from currents_ingest.audiences.sending import Outcome, Sender, Tally, send_all
from currents_ingest.errors import (
    BrazeRefusedError,
    CurrentsError,
    LeaseLostError,
    LedgerConflictError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from currents_ingest.audience_config import Audience, Braze
    from currents_ingest.audiences.braze import Endpoint
    from currents_ingest.audiences.client import Key
    from currents_ingest.audiences.journal import Journal
    from currents_ingest.audiences.sending import Note

log = structlog.get_logger()

_CHUNK = 50
"""Requests that are written down together before they are sent, if they must not be
sent twice: what a killed run leaves unknown."""
_SLICE = 15_000
"""Rows that become requests at once: more would keep answers waiting."""
_HOPELESS = 1000
"""Failed objects after which a run stops, if they are most of all."""
_SOONEST, _LATEST = 0.25, 10.0
"""Seconds between two steps; a long run makes fewer."""


@dataclass(slots=True)
class Told:
    """What Braze made of what was sent."""

    taken: int = 0
    failed: int = 0
    unknown: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why objects failed or are unknown."""
    stopped: bool = False
    """Asked to stop before the end."""


@dataclass(slots=True)
class Teller:
    """Tells Braze, and the ledger what Braze said; one for each run."""

    journal: Journal
    audience: Audience
    braze: Braze
    run: str
    stop: Callable[[], bool]
    check: Callable[[], None] = lambda: None
    """Raises if another run may have taken over."""
    told: Told = field(default_factory=Told)
    tally: Tally = field(default_factory=Tally)
    _batches: list[Batch] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _written: float = field(default_factory=time.monotonic)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _end: Endpoint = field(init=False)
    _lists: int = 0
    _objects: int = 0

    def __post_init__(self) -> None:
        """Find where it goes."""
        self._end = endpoint(self.braze, self.audience)

    def tell(
        self,
        frames: Iterator[pl.DataFrame],
        base: str,
        key: Key,
        again: Sequence[Step] = (),
    ) -> None:
        """Send rows with their objects; returns when all is written down.

        Args:
            frames: Rows, range by range.
            base: REST endpoint.
            key: What opens it.
            again: Intents whose rows a person wants sent once more.

        Raises:
            BrazeRefusedError: Nothing more can be sent until a person acts.
            BrazeDownError: Braze did not answer for too long.
            LedgerConflictError, LeaseLostError: Another run may have taken over.
        """
        asyncio.run(self._tell(frames, base, key, again))

    async def _tell(
        self,
        frames: Iterator[pl.DataFrame],
        base: str,
        key: Key,
        again: Sequence[Step],
    ) -> None:
        async with connected(
            base,
            key,
            patience=self.braze.timeout.total_seconds(),
            connections=self.braze.concurrency,
        ) as client:
            sender = Sender(
                client=client,
                pace=Pace.of(self._end.pace),
                patience=self.braze.patience.total_seconds(),
                stop=self.stop,
                check=self.check,
                tally=self.tally,
            )
            try:
                requests = self._requests(sender, frames, again)
                all_went = await send_all(sender, requests, self.braze.concurrency)
            except (LedgerConflictError, LeaseLostError):
                raise  # it is no longer ours to write down
            except CurrentsError:
                await self._finish()
                raise
            await self._finish()
            self.told.stopped = not all_went

    async def _requests(
        self,
        sender: Sender,
        frames: Iterator[pl.DataFrame],
        again: Sequence[Step],
    ) -> AsyncIterator[tuple[Note, Request]]:
        await self._name(sender, list(self.journal.cohorts))
        for step in again:
            rows = pl.concat(map(self.journal.read, step.unknown))
            for one in self._of(await self._announced(rows, (step.number,))):
                yield one
        coming = asyncio.create_task(asyncio.to_thread(next, frames, None))
        while (frame := await coming) is not None:
            coming = asyncio.create_task(asyncio.to_thread(next, frames, None))
            if self.audience.of_people:
                await self._written_down(partial(self._doubt, frame))
            alone = once(frame, self.audience)
            for rows in _slices(frame.filter(~alone)):
                if COHORT in rows.columns:
                    await self._name(sender, rows[COHORT].head(1))
                for one in self._of(Batch(rows)):
                    yield one
            for rows in cut(frame.filter(alone), _CHUNK * self._end.most):
                for one in self._of(await self._announced(rows)):
                    yield one

    def _of(self, batch: Batch) -> Iterator[tuple[Note, Request]]:
        self._batches.append(batch)
        end = self._end
        like = Request(path=end.path, array=end.array, safe=batch.intent is None)
        if self.audience.to_partner:
            cohort, _ = self.journal.cohorts[batch.rows[COHORT][0]]
            like = replace(like, cohort=cohort)
        found = grouped(batch.rows, like, most=end.most, size=end.room)
        note = partial(self._note, batch)
        return ((note, one) for one in found)

    async def _name(self, sender: Sender, keys: Iterable[str]) -> None:
        """See that Braze knows cohorts by their names; ids are written down first."""
        known = self.journal.cohorts
        ids = ids_of(self.audience, keys, known)
        if new := {key: (one, "") for key, one in ids.items() if key not in known}:
            await self._written_down(partial(self._know, new))
        for key in keys:
            cohort, told = known[key]
            name = name_of(self.audience, key) or told
            if self.audience.to_partner and name != told:
                await self._define(sender, cohort, name)
                named = {key: (cohort, name)}
                await self._written_down(partial(self._know, named))
                log.info("cohort named", cohort=cohort, name=name)

    async def _define(self, sender: Sender, cohort: str, name: str) -> None:
        """Create a cohort, or give it another name."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        body = {"cohort_id": cohort, "name": name, "created_at": now}
        request = Request(
            path=self._end.path.removesuffix("/users"),
            array="",
            rows=(0,),
            objects=(orjson.dumps(body).decode(),),
        )
        outcomes: list[Outcome] = []

        async def note(found: list[Outcome]) -> None:
            outcomes.extend(found)

        await sender.deliver(request, note)
        if outcomes[0].state == "failed":
            reason = f"it does not take the cohort {name!r} ({outcomes[0].reason})"
            raise BrazeRefusedError(400, reason)

    async def _announced(
        self, rows: pl.DataFrame, settles: tuple[int, ...] = ()
    ) -> Batch:
        """Write down what is about to be sent, in place of what was before."""
        step = await self._written_down(partial(self._announce, rows, settles))
        return Batch(rows, intent=step.number)

    async def _written_down(self, write: Callable[[], Step]) -> Step:
        async with self._writing:
            return await asyncio.to_thread(write)

    def _doubt(self, rows: pl.DataFrame) -> Step:
        void = doubtful(rows, self.audience)
        return self._commit("doubt", (self._object("doubt", void),), len(void))

    def _know(self, cohorts: dict[str, tuple[str, str]]) -> Step:
        return self._commit("cohorts", (), 0, about=cohorts)

    def _announce(self, rows: pl.DataFrame, settles: tuple[int, ...]) -> Step:
        lost = only_once(rows, self.audience)
        key = (self._object("unknown", lost),)
        step = {"unknown": key, "unknown_rows": len(lost), "settles": settles}
        return self._commit("intent", key, len(lost), **step)

    async def _note(self, batch: Batch, outcomes: list[Outcome]) -> None:
        batch.outcomes += outcomes
        for one in outcomes:
            batch.decided.update(one.rows)
            self._count(one)
        now = time.monotonic()
        pause = min(_LATEST, max(_SOONEST, (now - self._started) / 50))
        if now - self._written > pause and not self._writing.locked():
            await self._write_down()

    def _count(self, one: Outcome) -> None:
        told, count = self.told, len(one.rows)
        if one.state == "taken":
            told.taken += count
            return
        if one.state == "failed":
            told.failed += count
        else:
            told.unknown += count
        told.reasons[one.reason] = told.reasons.get(one.reason, 0) + count
        if told.failed >= _HOPELESS and told.failed > told.taken:
            raise BrazeRefusedError(400, f"it refuses most objects ({one.reason})")

    async def _finish(self) -> None:
        """Write down the rest: what was announced and never sent was not sent."""
        for batch in self._batches:
            if batch.intent is not None:
                rest = set(range(len(batch.rows))) - batch.decided
                batch.outcomes.append(Outcome(sorted(rest), "unsent"))
                batch.decided |= rest
        try:
            await self._write_down()
        except StoreError:  # it is the last chance
            await asyncio.sleep(1)
            await self._write_down()

    async def _write_down(self) -> None:
        """Write down what became of rows; what cannot be written stays to be."""
        async with self._writing:
            ripe = [one for one in self._batches if one.ripe]
            now = [Batch(one.rows, one.intent, one.outcomes) for one in ripe]
            for one in ripe:
                one.outcomes = []
            try:
                if now:
                    await asyncio.to_thread(self._write, now)
            except CurrentsError:
                for one, before in zip(ripe, now, strict=True):
                    one.outcomes = before.outcomes + one.outcomes
                raise
            self._batches = [
                one for one in self._batches if one.outcomes or not one.whole
            ]
            self._written = time.monotonic()

    def _write(self, batches: list[Batch]) -> None:
        found = [one for one in (news(b, self.audience) for b in batches) if len(one)]
        settles = tuple(one.intent for one in batches if one.intent is not None)
        rest = [one for one in map(left, batches) if len(one)]
        if rest:
            name = f"runs/{self.run}/left-{self._lists + 1:05}.parquet"
            self.journal.write(name, pl.concat(rest, how="diagonal"))
        lost = pl.concat([one.these("unknown") for one in batches], how="diagonal")
        told = pl.concat(found, how="diagonal") if found else None
        step = None
        if told is not None or settles:
            step = self._settle(told, only_once(lost, self.audience), settles)
        self._lists += bool(rest)
        log.info(
            "audience told",
            batch=step and step.number,
            taken=self.told.taken,
            failed=self.told.failed,
            unknown=self.told.unknown,
        )

    def _settle(
        self, told: pl.DataFrame | None, lost: pl.DataFrame, settles: tuple[int, ...]
    ) -> Step:
        objects = () if told is None else (self._object("told", told),)
        return self._commit(
            "told",
            objects,
            0 if told is None else len(told),
            unknown=(self._object("unknown", lost),) if len(lost) else (),
            unknown_rows=len(lost),
            settles=settles,
        )

    def _object(self, folder: str, rows: pl.DataFrame) -> str:
        """Write what the next step will name; no object is written twice."""
        self._objects += 1
        name = f"{folder}/{self.run}-{self._objects:05}.parquet"
        return self.journal.write(name, rows)

    def _commit(
        self, kind: Any, objects: tuple[str, ...], rows: int, **more: Any
    ) -> Step:
        now = datetime.now(UTC)
        step = Step(at=now, run=self.run, kind=kind, objects=objects, rows=rows, **more)
        return self.journal.commit(step)


def _slices(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut rows into what becomes requests at once, of one cohort if any."""
    whole = [rows]
    if COHORT in rows.columns:
        whole = rows.partition_by(COHORT, maintain_order=True)
    for one in whole:
        yield from one.iter_slices(_SLICE)
