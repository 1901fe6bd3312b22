"""Rows to Braze, and into the audience's ledger what became of them.

What may be sent twice is sent, then written down. What must not (events, purchases,
increments) is written down first: a run that is killed leaves it as *unknown*, for a
person to decide, and no later run sends it again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import polars as pl
import structlog

from currents_ingest.audiences.client import connected
from currents_ingest.audiences.difference import cells_of
from currents_ingest.audiences.journal import Step
from currents_ingest.audiences.mapping import GONE, ID, PERSON, REASON, STATE
from currents_ingest.audiences.pace import Pace
from currents_ingest.audiences.requests import grouped, unsafe, with_objects
from currents_ingest.audiences.sending import Outcome, Sender, Tally, send_all
from currents_ingest.errors import CurrentsError, LedgerConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from currents_ingest.audience_config import Audience, Braze
    from currents_ingest.audiences.journal import Journal
    from currents_ingest.audiences.requests import Request
    from currents_ingest.audiences.sending import Note

log = structlog.get_logger()

_CHUNK = 50
"""Requests that are written down together before they are sent, if they must not be
sent twice: what a killed run leaves unknown."""
_SLICE = 15_000
"""Rows that become requests at once: more would keep answers waiting."""
_SOONEST, _LATEST = 1.0, 10.0
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
class _Batch:
    """Rows that are on their way."""

    rows: pl.DataFrame
    intent: int | None = None
    """The step that wrote them down before they were sent; None: they are safe."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Those that are not written down yet."""
    decided: set[int] = field(default_factory=set)
    """Rows of which something is known."""

    @property
    def whole(self) -> bool:
        """Tell whether something is known of every row."""
        return len(self.decided) == len(self.rows)

    @property
    def ripe(self) -> bool:
        """Tell whether there is something to write down."""
        return bool(self.outcomes) and (self.intent is None or self.whole)

    def these(self, state: str) -> pl.DataFrame:
        """Return the rows that came to a state."""
        chosen = [one.rows for one in self.outcomes if one.state == state]
        return self.rows[list(chain.from_iterable(chosen))]


@dataclass(slots=True)
class Teller:
    """Tells Braze, and the ledger what Braze said; one for each run."""

    journal: Journal
    audience: Audience
    braze: Braze
    run: str
    stop: Callable[[], bool]
    told: Told = field(default_factory=Told)
    tally: Tally = field(default_factory=Tally)
    _batches: list[_Batch] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _written: float = field(default_factory=time.monotonic)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _lists: int = 0

    def tell(
        self,
        frames: Iterator[pl.DataFrame],
        base: str,
        key: str,
        again: Sequence[Step] = (),
    ) -> None:
        """Send rows with their objects; returns when all is written down.

        Args:
            frames: Rows, range by range.
            base: REST endpoint.
            key: REST API key.
            again: Intents whose rows a person wants sent once more.

        Raises:
            BrazeRefusedError: Nothing more can be sent until a person acts.
            BrazeDownError: Braze did not answer for too long.
            LedgerConflictError: Another run of this audience took over.
        """
        asyncio.run(self._tell(self._requests(frames, again), base, key))

    async def _tell(
        self, requests: AsyncIterator[tuple[Note, Request]], base: str, key: str
    ) -> None:
        async with connected(
            base,
            "/users/track/bulk" if self.braze.bulk else "/users/track",
            key,
            patience=self.braze.timeout.total_seconds(),
            connections=self.braze.concurrency,
        ) as client:
            sender = Sender(
                client=client,
                pace=Pace.of(self.braze.pace),
                patience=self.braze.patience.total_seconds(),
                stop=self.stop,
                tally=self.tally,
            )
            try:
                all_went = await send_all(sender, requests, self.braze.concurrency)
            except LedgerConflictError:
                raise  # it is no longer ours to write down
            except CurrentsError:
                await self._finish()
                raise
            await self._finish()
            self.told.stopped = not all_went

    async def _requests(
        self, frames: Iterator[pl.DataFrame], again: Sequence[Step]
    ) -> AsyncIterator[tuple[Note, Request]]:
        for step in again:
            rows = pl.concat(map(self.journal.read, step.unknown))
            for one in self._of(await self._announced(rows, settles=step.number)):
                yield one
        coming = asyncio.create_task(asyncio.to_thread(next, frames, None))
        while (frame := await coming) is not None:
            coming = asyncio.create_task(asyncio.to_thread(next, frames, None))
            once = self._once(frame)
            for rows in frame.filter(~once).iter_slices(_SLICE):
                for one in self._of(_Batch(rows)):
                    yield one
            for chunk in _cut(frame.filter(once), _CHUNK * self.braze.most):
                batch = await self._announced(chunk)
                for one in self._of(batch):
                    yield one

    def _once(self, frame: pl.DataFrame) -> pl.Expr:
        """Tell which rows must not be sent twice."""
        if self.audience.kind != "attributes":
            return pl.lit(value=True)
        names = [one for one in unsafe(self.audience) if one in frame.columns]
        said = [pl.col(one).is_not_null() for one in names]
        return pl.any_horizontal(said) if said else pl.lit(value=False)

    def _of(self, batch: _Batch) -> Iterator[tuple[Note, Request]]:
        self._batches.append(batch)
        found = grouped(
            batch.rows,
            self.audience.kind,
            most=self.braze.most,
            size=self.braze.room,
            safe=batch.intent is None,
        )
        note = partial(self._note, batch)
        return ((note, one) for one in found)

    async def _announced(
        self, rows: pl.DataFrame, *, settles: int | None = None
    ) -> _Batch:
        """Write down what is about to be sent, in place of what was before."""
        before = () if settles is None else (settles,)
        async with self._writing:
            step = await asyncio.to_thread(
                self._step, "intent", None, self._only_once(rows), settles=before
            )
        return _Batch(rows, intent=step.number)

    def _only_once(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return rows with those cells and objects alone that must not arrive twice.

        What else a person's object holds is safe: if nobody knows what became of it,
        the next run sends it again.
        """
        if self.audience.kind != "attributes":
            return rows
        safe = [one for one in cells_of(rows) if one not in unsafe(self.audience)]
        return with_objects(rows.drop(safe), self.audience)

    async def _note(self, batch: _Batch, outcomes: list[Outcome]) -> None:
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

    async def _finish(self) -> None:
        """Write down the rest: what was announced and never sent was not sent."""
        for batch in self._batches:
            if batch.intent is not None:
                rest = set(range(len(batch.rows))) - batch.decided
                batch.outcomes.append(Outcome(sorted(rest), "unsent"))
                batch.decided |= rest
        await self._write_down()

    async def _write_down(self) -> None:
        async with self._writing:
            ripe = [one for one in self._batches if one.ripe]
            now = [(one, _Batch(one.rows, one.intent, one.outcomes)) for one in ripe]
            for batch, _ in now:
                batch.outcomes = []
            self._batches = [
                one for one in self._batches if one.outcomes or not one.whole
            ]
            if now:
                await asyncio.to_thread(self._write, [one for _, one in now])
            self._written = time.monotonic()

    def _write(self, batches: list[_Batch]) -> None:
        frames = [_news(one, self.audience) for one in batches]
        news = [one for one in frames if len(one)]
        settles = tuple(one.intent for one in batches if one.intent is not None)
        left = [one for one in map(_left, batches) if len(one)]
        if left:
            self._lists += 1
            name = f"runs/{self.run}/left-{self._lists:05}.parquet"
            self.journal.write(name, pl.concat(left, how="diagonal"))
        lost = pl.concat([one.these("unknown") for one in batches], how="diagonal")
        told = pl.concat(news, how="diagonal") if news else None
        if told is not None or settles:
            self._step("told", told, self._only_once(lost), settles=settles)
        log.info(
            "audience told",
            taken=self.told.taken,
            failed=self.told.failed,
            unknown=self.told.unknown,
        )

    def _step(
        self,
        kind: Any,
        rows: pl.DataFrame | None,
        unknown: pl.DataFrame,
        *,
        settles: tuple[int, ...],
    ) -> Step:
        """Write objects, then the step that names them."""
        name = f"{self.journal.head + 1:010}-{self.run}"
        lost: tuple[str, ...] = ()
        told: tuple[str, ...] = ()
        if len(unknown):
            lost = (self.journal.write(f"unknown/{name}.parquet", unknown),)
        if rows is not None:
            told = (self.journal.write(f"{kind}/{name}.parquet", rows),)
        return self.journal.commit(
            Step(
                at=datetime.now(UTC),
                run=self.run,
                kind=kind,
                objects=lost if kind == "intent" else told,
                rows=len(unknown) if rows is None else len(rows),
                unknown=lost,
                unknown_rows=len(unknown),
                settles=settles,
            )
        )


def _cut(rows: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    """Cut rows into chunks of about a size, one person's into one."""
    persons, start = rows[PERSON], 0
    while start < len(rows):
        end = min(start + size, len(rows))
        while start < end < len(rows) and persons[end] == persons[end - 1]:
            end -= 1
        if end == start:  # one person has more than a chunk
            end = min(start + size, len(rows))
        yield rows[start:end]
        start = end


def _news(batch: _Batch, audience: Audience) -> pl.DataFrame:
    """Return what the snapshot has to know of a batch.

    Of what was taken all cells; of what was announced and not taken that it was not.
    """
    taken = batch.these("taken")
    if batch.intent is None:
        return taken.select(ID, *cells_of(taken))
    back = pl.concat([batch.these("failed"), batch.these("unsent")])
    if audience.kind != "attributes":
        return back.select(ID, pl.lit(value=True).alias(GONE))
    once = unsafe(audience)
    cells = cells_of(back)
    void = [
        pl.when(pl.col(one).is_not_null()).then(pl.lit("")).alias(one)
        for one in cells
        if one in once
    ]
    safe = [one for one in cells if one not in once]
    return pl.concat([taken.select(ID, *safe), back.select(ID, *void)], how="diagonal")


def _left(batch: _Batch) -> pl.DataFrame:
    """Return the rows that were not taken, with what became of them and why."""
    told = [
        (row, one.state, one.reason)
        for one in batch.outcomes
        if one.state in {"failed", "unknown"}
        for row in one.rows
    ]
    return batch.rows[[row for row, _, _ in told]].with_columns(
        pl.Series(STATE, [state for _, state, _ in told], pl.String),
        pl.Series(REASON, [reason for _, _, reason in told], pl.String),
    )
