"""Rows on their way to Braze: what is known of them, what the snapshot must know."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest.audiences.columns import unsafe
from currents_ingest.audiences.difference import cells_of
from currents_ingest.audiences.mapping import GONE, ID, PERSON, REASON, STATE
from currents_ingest.audiences.requests import with_objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.sending import Outcome


@dataclass(slots=True)
class Batch:
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


def cut(rows: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
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


def news(batch: Batch, audience: Audience) -> pl.DataFrame:
    """Return what the snapshot has to know of a batch.

    Of what was taken all cells; of what was announced and not taken that it was not.
    """
    taken = batch.these("taken")
    if batch.intent is None:
        return taken.select(ID, *cells_of(taken))
    back = pl.concat([batch.these("failed"), batch.these("unsent")])
    if not audience.of_people:
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


def left(batch: Batch) -> pl.DataFrame:
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


def once(rows: pl.DataFrame, audience: Audience) -> pl.Expr:
    """Tell which rows must not be sent twice."""
    if not audience.of_people:
        return pl.lit(value=True)
    names = [one for one in unsafe(audience) if one in rows.columns]
    said = [pl.col(one).is_not_null() for one in names]
    return pl.any_horizontal(said) if said else pl.lit(value=False)


def only_once(rows: pl.DataFrame, audience: Audience) -> pl.DataFrame:
    """Return rows with those cells and objects alone that must not arrive twice.

    What else a person's object holds is safe: if nobody knows what became of it, the
    next run sends it again.
    """
    if not audience.of_people:
        return rows
    safe = [one for one in cells_of(rows) if one not in unsafe(audience)]
    return with_objects(rows.drop(safe), audience)


def doubtful(rows: pl.DataFrame, audience: Audience) -> pl.DataFrame:
    """Return what the snapshot has to know before rows are sent.

    The cells that may be sent twice become void: they differ from whatever an export
    says, so that they are sent again unless Braze acknowledges them.
    """
    safe = [one for one in cells_of(rows) if one not in unsafe(audience)]
    void = [
        pl.when(pl.col(one).is_not_null()).then(pl.lit("")).alias(one) for one in safe
    ]
    return rows.select(ID, *void)
