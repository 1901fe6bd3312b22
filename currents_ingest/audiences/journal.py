"""What Braze has acknowledged of one audience, beside the feeds, in numbered steps.

A step is created only if its number is free; that is the commit, and who comes second
stops. What a step says of people lies in Parquet objects that it names; now and then
they are folded into a snapshot, sorted by id. No disk is needed, and no lock: two runs
of one audience cannot cross.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 (pydantic reads it)
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from currents_ingest.audiences.blocks import RANGE, Blocks, in_range
from currents_ingest.audiences.mapping import AT, GONE, ID, RESERVED
from currents_ingest.errors import (
    AlreadyThereError,
    LedgerBrokenError,
    LedgerConflictError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.audiences.blocks import Range
    from currents_ingest.store import Store

FORMAT = 1
_STEPS, _MARKS = "_ledger", "_ledger/folded"
_FOLD_ROWS, _FOLD_OBJECTS = 100_000, 64
"""Fold when so much came since, and it is a fifth of the snapshot."""
_AT_ONCE = 32


class Step(BaseModel):
    """One step of an audience's ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    number: int = 0
    at: datetime
    run: str
    kind: Literal["begin", "doubt", "intent", "told", "fold", "end", "cohorts"]
    objects: tuple[str, ...] = ()
    """What the snapshot has to know; of a fold its parts, in order of ids."""
    unknown: tuple[str, ...] = ()
    """Objects with rows of which nobody knows whether they arrived, from here on; of an
    intent those that it announces."""
    settles: tuple[int, ...] = ()
    """Steps whose unknown rows this one knows more of."""
    rows: int = 0
    unknown_rows: int = 0
    about: dict[str, Any] = {}
    """Figures of the run; never of a person."""


@dataclass(slots=True)
class Journal:
    """An audience's steps and snapshot at one destination."""

    store: Store
    head: int = 0
    parts: tuple[str, ...] = ()
    """The snapshot, in order of ids."""
    told: list[Step] = field(default_factory=list)
    """What was said since the snapshot: told and intent."""
    undecided: dict[int, Step] = field(default_factory=dict)
    """Steps with unknown rows that no later step settles."""
    rows: int = 0
    """Rows of the snapshot."""
    last: dict[str, Any] = field(default_factory=dict)
    """What the last run that ended said of itself."""
    retired: tuple[str, ...] = ()
    """Objects that nothing names since the last fold."""
    cohorts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Id and name of cohorts, by what the export calls them; the name is empty until
    Braze has acknowledged one."""

    @staticmethod
    def open(store: Store) -> Journal:
        """Read what there is; changes nothing.

        Raises:
            LedgerBrokenError: A step cannot be understood.
        """
        journal = Journal(store)
        marks = [one.key for page in store.listing(_MARKS) for one in page]
        if marks:
            journal._take(_read_at(_key(_number(marks[-1])), store))
        journal.catch_up()
        return journal

    def catch_up(self) -> None:
        """Take in steps that were created since."""
        while True:
            numbers = range(self.head + 1, self.head + 1 + _AT_ONCE)
            bodies = self.store.find([_key(one) for one in numbers])
            for number, body in zip(numbers, bodies, strict=True):
                if body is None:
                    return
                self._take(_read(_key(number), body))

    def commit(self, step: Step) -> Step:
        """Create the next step.

        Raises:
            LedgerConflictError: Another run was first; this one has to stop.
        """
        numbered = step.model_copy(update={"number": self.head + 1})
        body = numbered.model_dump_json().encode()
        try:
            self.store.create(_key(numbered.number), body)
        except AlreadyThereError:
            there = _read_at(_key(numbered.number), self.store)
            if there.run != step.run:
                raise LedgerConflictError(numbered.number) from None
            self._take(there)  # our own, of which we were told that it failed
            return self.commit(_again(step, there))
        self._take(numbered)
        return numbered

    def write(self, name: str, frame: pl.DataFrame) -> str:
        """Write an object that a step will name; returns its key."""
        body = BytesIO()
        frame.write_parquet(body, compression="zstd", compression_level=1)
        self.store.put(name, body.getvalue())
        return name

    def read(self, key: str) -> pl.DataFrame:
        """Read an object that a step names."""
        return pl.read_parquet(BytesIO(self.store.get(key)))

    @contextmanager
    def snapshot(self, memory: int) -> Iterator[Snapshot]:
        """Give what is known of people now, for the block.

        Args:
            memory: Bytes of compressed rows to hold before a file takes them.
        """
        with closing(Blocks(memory)) as since:
            for step in self.told:
                for key in step.objects:
                    frame = self.read(key)
                    kept = [one for one in frame.columns if _is_state(one)]
                    at = pl.lit(step.number, pl.Int64).alias(AT)
                    since.add(frame.select(*kept, at))
            yield Snapshot(self, since)

    @property
    def worth_folding(self) -> bool:
        """Tell whether enough came since the last fold."""
        rows = sum(one.rows for one in self.told)
        objects = sum(len(one.objects) for one in self.told)
        enough = rows >= max(_FOLD_ROWS, self.rows // 5)
        return bool(self.told) and (enough or objects >= _FOLD_OBJECTS)

    def fold(self, run: str, now: datetime, memory: int) -> None:
        """Write the snapshot anew, part by part; what it replaces goes a fold later.

        Intents that are not settled stay as steps do, for they are named by number.
        """
        old = [*self.parts, *(key for one in self.told for key in one.objects)]
        keys, rows = [], 0
        with self.snapshot(memory) as snapshot:
            for number, part in enumerate(_even(snapshot.frames())):
                name = f"snapshot/{self.head + 1:010}-{number:05}.parquet"
                keys.append(self.write(name, part))
                rows += len(part)
        kept = {key for one in self.undecided.values() for key in one.unknown}
        about = {
            "retired": [one for one in old if one not in kept],
            "open": sorted(self.undecided),
            "last": self.last,
            "cohorts": self.cohorts,
        }
        gone = self.retired
        step = Step(
            at=now, run=run, kind="fold", objects=tuple(keys), rows=rows, about=about
        )
        done = self.commit(step)
        self.store.put(f"{_MARKS}/{done.number:010}", b"")
        self.store.delete(gone)

    def _take(self, step: Step) -> None:
        self.head = step.number
        if step.kind == "fold":
            self.parts, self.rows = step.objects, step.rows
            self.retired, self.told = tuple(step.about["retired"]), []
            self.last = step.about["last"]
            self._know(step.about.get("cohorts", {}))
            for number in set(step.about["open"]) - self.undecided.keys():
                self.undecided[number] = _read_at(_key(number), self.store)
        elif step.kind in {"doubt", "intent", "told"}:
            self.told.append(step)
        if step.kind == "end":
            self.last = step.about
        if step.kind == "cohorts":
            self._know(step.about)
        if step.unknown:
            self.undecided[step.number] = step
        for number in step.settles:
            self.undecided.pop(number, None)

    def _know(self, cohorts: dict[str, Any]) -> None:
        self.cohorts |= {key: (one, name) for key, (one, name) in cohorts.items()}


@dataclass(slots=True)
class Snapshot:
    """The last snapshot and what was said since, as one table by ranges of ids."""

    journal: Journal
    since: Blocks

    def frames(self) -> Iterator[pl.DataFrame]:
        """Yield all of it, range by range."""
        for _, frame in self.beside(Blocks(0)):
            if frame is not None and len(frame):
                yield frame

    def beside(self, rows: Blocks) -> Iterator[tuple[Range, pl.DataFrame | None]]:
        """Yield ranges that cover every id of both, each with what is known in it.

        The parts of the snapshot are read once, in order, as their turn comes.
        """
        after: str | None = None
        fences = [upto for _, upto in rows.ranges() if upto is not None]
        fences += [upto for _, upto in self.since.ranges() if upto is not None]
        for key in self.journal.parts:
            part = self.journal.read(key)
            last = part[ID][-1]
            ends = sorted({one for one in fences if one < last and _above(one, after)})
            for upto in (*ends, last):
                span = (after, upto)
                yield span, self._merged(part.filter(in_range(span)), span)
                after = upto
        ends = sorted({one for one in fences if _above(one, after)})
        for end in (*ends, None):
            span = (after, end)
            yield span, self._merged(None, span)
            after = end

    def _merged(self, base: pl.DataFrame | None, span: Range) -> pl.DataFrame | None:
        return merged(base, self.since.between(span))


def merged(
    base: pl.DataFrame | None, since: pl.DataFrame | None
) -> pl.DataFrame | None:
    """Put what was said later over what was known.

    Args:
        base: ID and cells, each id once; None where nothing is known.
        since: ID, cells, GONE if any, and AT: of each cell the latest that says
            something counts; GONE takes back all that was said before.

    Returns:
        ID and cells, each id once, sorted; None if there is nothing.
    """
    if since is None:
        return base
    later = since.sort(ID, AT)
    if GONE in later.columns:
        forgotten = pl.col(AT).filter(pl.col(GONE)).max().over(ID).fill_null(-1)
        marked = later.with_columns(forgotten.alias("__forgotten__"))
        gone = marked.filter(pl.col("__forgotten__") >= 0).select(ID).unique()
        later = marked.filter(pl.col(AT) > pl.col("__forgotten__"))
        later = later.drop("__forgotten__", GONE)
        base = None if base is None else base.join(gone, on=ID, how="anti")
    if base is not None and len(base):
        first = base.with_columns(pl.lit(-1, pl.Int64).alias(AT))
        touched = first.join(later.select(ID).unique(), on=ID, how="semi")
        rest = base.join(later.select(ID).unique(), on=ID, how="anti")
        later = pl.concat([touched, later], how="diagonal").sort(ID, AT)
    else:
        rest = None
    cells = [one for one in later.columns if one not in {ID, AT}]
    if not later[ID].is_unique().all():
        last = [pl.col(one).drop_nulls().last() for one in cells]
        later = later.group_by(ID, maintain_order=True).agg(last)
    told = later.select(ID, *cells)
    whole = told if rest is None else pl.concat([rest, told], how="diagonal")
    return whole.sort(ID) if len(whole) else None


def _even(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Cut sorted frames into parts of one size, whatever came."""
    rest: pl.DataFrame | None = None
    for frame in frames:
        whole = frame if rest is None else pl.concat([rest, frame], how="diagonal")
        while len(whole) > RANGE:
            yield whole[:RANGE]
            whole = whole[RANGE:]
        rest = whole
    if rest is not None:
        yield rest


def _again(step: Step, there: Step) -> Step:
    """Return a step after one of ours that seemed to fail, and did not.

    What became of rows is said once more and whole, so its unknown rows take the place
    of those before. An announcement stays: nobody knows what followed it.
    """
    if step.kind == there.kind == "told":
        return step.model_copy(update={"settles": (*step.settles, there.number)})
    return step


def _is_state(column: str) -> bool:
    return column in {ID, GONE} or column not in RESERVED


def _above(one: str, after: str | None) -> bool:
    return after is None or one > after


def _key(number: int) -> str:
    return f"{_STEPS}/{number:010}.json"


def _number(key: str) -> int:
    return int(re.sub(r"\D", "", key.rpartition("/")[2]))


def _read_at(key: str, store: Store) -> Step:
    return _read(key, store.get(key))


def _read(key: str, body: bytes) -> Step:
    try:
        step = Step.model_validate_json(body)
    except ValidationError as error:
        kind = error.errors()[0]["type"]
        raise LedgerBrokenError(key, f"it is no step of an audience ({kind})") from None
    if step.format != FORMAT or _key(step.number) != key:
        raise LedgerBrokenError(key, "it is another version's, or another number's")
    return step
