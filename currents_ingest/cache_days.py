"""Which days of old entries the cache holds whole; the others lie in checkpoints.

Rows of entries after the checkpoint ``base`` are always in. Of older ones a day of an
event type is in whole, and listed in the table ``loaded``, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Sequence

Day = tuple[str, int]
"""An event type and a day, counted since 1970: queued day of a file, day of events."""

LAST_DAY = 99_999
"""Days of clocks that are wrong lie under the first or this last one."""
_IN_A_DAY = {"files": 86_400, "hours": 24}
"""What the column ``hour`` counts."""
FOLDED = {
    "files": "state in ('done', 'discarded') "
    "and event_type is not null and hour is not null",
    "hours": "true",
}
"""Rows that checkpoints hold by day; of the others they hold all."""


def filed(kind: str, hour: int) -> int:
    """Return the day under which a row lies, from its column ``hour``."""
    return min(max(hour // _IN_A_DAY[kind], 0), LAST_DAY)


def day_of(kind: str) -> str:
    """Return ``filed`` as SQL."""
    return f"min(max(hour / {_IN_A_DAY[kind]}, 0), {LAST_DAY})"


def missing(db: sqlite3.Connection, kind: str, days: Iterable[Day]) -> list[Day]:
    """Return the days that are not in whole."""
    query = "select 1 from loaded where kind = ? and event_type = ? and day = ?"
    return [
        one for one in sorted(days) if not db.execute(query, (kind, *one)).fetchone()
    ]


def begin_from(
    db: sqlite3.Connection, number: int, months: Iterable[Sequence[Any]], *, whole: bool
) -> None:
    """Leave the rows of entries up to *number* to its checkpoint.

    Args:
        db: The cache, in a transaction.
        number: An entry that is in, and that a checkpoint covers.
        months: Rows of the table ``months``, as the checkpoint has them.
        whole: Everything since the first entry is in so far.
    """
    db.execute("delete from months")
    db.executemany("insert into months values (?, ?, ?, ?, ?)", months)
    for kind, folded in FOLDED.items():
        day = day_of(kind)
        all_days = f"select distinct '{kind}', event_type, {day}, 0 from {kind}"  # noqa: S608 (our names)
        if whole:
            db.execute(f"insert or ignore into loaded {all_days} where {folded}")
        old = f"from {kind} where entry <= {number:d} and {folded}"
        loaded = f"(select event_type, day from loaded where kind = '{kind}')"  # noqa: S608 (our names)
        db.execute(f"delete {old} and (event_type, {day}) not in {loaded}")
        counts = f"select count(*), '{kind}', event_type, {day} {old} group by 3, 4"
        db.executemany(
            "update loaded set rows = ? where kind = ? and event_type = ? and day = ?",
            db.execute(counts).fetchall(),
        )


def drop(db: sqlite3.Connection, kind: str, base: int, days: Collection[Day]) -> None:
    """Forget days of entries up to *base*; they are fetched when asked for again."""
    db.execute("create temp table if not exists dropped (event_type text, day integer)")
    db.execute("delete from dropped")
    db.executemany("insert into dropped values (?, ?)", days)
    chosen = "in (select event_type, day from dropped)"
    db.execute(
        f"delete from {kind} where entry <= ? and {FOLDED[kind]} "  # noqa: S608 (our names)
        f"and (event_type, {day_of(kind)}) {chosen}",
        (base,),
    )
    db.execute(
        f"delete from loaded where kind = '{kind}' and (event_type, day) {chosen}"  # noqa: S608 (our names)
    )
