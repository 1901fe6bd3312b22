"""What a sync would send: range by range, counted, and kept as a plan if asked to."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

import polars as pl

from currents_ingest.audiences import cohorts
from currents_ingest.audiences.braze import facts
from currents_ingest.audiences.difference import cells_of, difference, unsent
from currents_ingest.audiences.mapping import COHORT, OBJECT, PERSON, SEPARATOR, WHAT
from currents_ingest.audiences.masking import masked
from currents_ingest.audiences.pace import Pace
from currents_ingest.audiences.requests import with_objects
from currents_ingest.errors import ExportError, GuardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.braze import Endpoint
    from currents_ingest.audiences.difference import Difference
    from currents_ingest.audiences.gathering import Gathered, Target
    from currents_ingest.audiences.journal import Snapshot

_REJECTS = "rejects.jsonl"
_CHURNY, _ENOUGH = 0.5, 20
"""An attribute that changes for so large a share of so many people is churny."""


@dataclass(slots=True)
class Figures:
    """What is to be sent, counted."""

    people: int = 0
    """Distinct people, or events, of the export."""
    new: int = 0
    changed: int = 0
    left: int = 0
    unchanged: int = 0
    silent: int = 0
    """People of whom the export says nothing."""
    repeated: int = 0
    """Rows that a later row of the same id took the place of."""
    known: int = 0
    objects: int = 0
    requests: int = 0
    bytes: int = 0
    data_points: int = 0
    """What a contract that is billed by data points would be billed; an estimate where
    arrays and objects are changed."""
    attributes: dict[str, int] = field(default_factory=dict)
    """Objects that say something of it, by attribute."""
    again: dict[str, int] = field(default_factory=dict)
    """The same, of people that were known."""
    cohorts: dict[str, list[int]] = field(default_factory=dict)
    """Joins and leaves by cohort."""

    def churny(self) -> dict[str, float]:
        """Return attributes that change for most people, with their share."""
        if self.known < _ENOUGH:
            return {}
        shares = {name: count / self.known for name, count in self.again.items()}
        return {name: one for name, one in shares.items() if one > _CHURNY}

    def add(self, found: Difference, audience: Audience, end: Endpoint) -> None:
        """Count one range."""
        what = dict(found.send[WHAT].value_counts().iter_rows())
        self.people += found.people
        self.repeated += found.repeated
        self.known += found.known
        self.silent += found.silent
        for name in ("new", "changed", "left"):
            setattr(self, name, getattr(self, name) + what.get(name, 0))
        self.unchanged = self.people - self.new - self.changed - self.silent
        sent = len(found.send)
        size = int(found.send[OBJECT].str.len_bytes().sum()) + sent
        self.objects += sent
        self.bytes += size
        self.data_points += data_points(found.send)
        if COHORT in found.send.columns:
            self._count_cohorts(found.send, audience, end)
        else:
            self.requests += max(-(-sent // end.most), -(-size // end.room))
            self._count_attributes(found.send)

    def _count_cohorts(
        self, send: pl.DataFrame, audience: Audience, end: Endpoint
    ) -> None:
        """Count members."""
        add_cohorts(self.cohorts, send, audience)
        for count in send[COHORT].value_counts()["count"]:
            self.requests += -(-count // end.most)

    def _count_attributes(self, send: pl.DataFrame) -> None:
        names = cells_of(send)
        known = send.filter(pl.col(WHAT) == "changed")
        for name in names:
            self.attributes[name] = self.attributes.get(name, 0) + send[name].count()
            self.again[name] = self.again.get(name, 0) + known[name].count()


def data_points(send: pl.DataFrame) -> int:
    """Count what is billed where a contract says so; events and members one each.

    Source: Braze docs, "Data points (Legacy)", of partners' cohorts as well.
    """
    names = [] if COHORT in send.columns else cells_of(send)
    fields = facts().fields
    billed = [one for one in names if one not in fields or fields[one].billable]
    counted = sum(send.select(_points(name)).item() for name in billed)
    return counted if names else len(send)


def add_cohorts(
    found: dict[str, list[int]], send: pl.DataFrame, audience: Audience
) -> None:
    """Count joins and leaves of rows to send, by the cohort's name."""
    counts = send.group_by(COHORT, WHAT).len().sort(COHORT)
    for key, what, count in counts.iter_rows():
        name = cohorts.name_of(audience, key) or key
        found.setdefault(name, [0, 0])[what == "left"] += count


def _points(name: str) -> pl.Expr:
    """Count data points of cells: one each, of an object one for each name in it.

    Items that are added to an array count one each, a whole array one.
    Source: Braze docs, "Data points (Legacy)".
    """
    cells = pl.col(name)
    items = cells.str.contains(r'^\{"(add|remove)":')
    nested = cells.str.starts_with("{") & ~cells.str.starts_with('{"inc"')
    return (
        pl.when(cells.is_null())
        .then(0)
        .when(items)
        .then(cells.str.count_matches(",", literal=True) + 1)
        .when(nested)
        .then(cells.str.count_matches('":', literal=True))
        .otherwise(1)
        .sum()
    )


def differences(
    snapshot: Snapshot, gathered: Gathered, audience: Audience
) -> Iterator[Difference]:
    """Yield what is to be sent, range by range; each row with its object."""
    there = pl.concat(gathered.there) if gathered.there else None
    if gathered.mirrored and gathered.nameless:
        audience = audience.model_copy(update={"mode": "upsert"})
    for span, old in snapshot.beside(gathered.rows):
        new = gathered.rows.between(span)
        if new is None and (old is None or audience.mode != "mirror"):
            continue
        if not audience.of_people:
            yield unsent(old, new)
            continue
        found = difference(
            cohorts.of_these(old, gathered.cohorts) if audience.cohort_file else old,
            new,
            audience,
            there,
        )
        if audience.kind == "cohort":
            send = cohorts.with_changes(found.send, audience, snapshot.journal.cohorts)
        else:
            send = with_objects(found.send, audience)
        yield replace(found, send=send)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a plan says of itself; its rows are beside."""

    audience: str
    destination: str
    digest: str
    """Of the audience's settings."""
    head: int
    """Last step of the audience's ledger when it was made."""
    delivery: str
    rows: int
    """Of the export."""
    accepted: int
    """Of them those that say who is meant, and were not rejected."""
    rejected: int
    skipped: int
    guard: str
    """Why a person should look at the export first; empty: nobody need to."""
    warnings: tuple[str, ...]


def digest(audience: Audience) -> str:
    """Return 16 hex digits that change with the settings of an audience."""
    return sha256(audience.model_dump_json().encode()).hexdigest()[:16]


def write_plan(
    path: Path, plan: Plan, found: Iterator[pl.DataFrame], rejects: pl.DataFrame
) -> None:
    """Write a plan, for its owner only: it holds what will be sent.

    Args:
        path: A new file.
        plan: What it says of itself.
        found: Rows to send, range by range.
        rejects: Rows that are not sent, and why.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as whole:
        for number, frame in enumerate(found):
            body = BytesIO()
            frame.write_parquet(body, compression="zstd", compression_level=1)
            whole.writestr(f"{number:05}.parquet", body.getvalue())
        whole.writestr(_REJECTS, rejects.write_ndjson())
        whole.writestr("plan.json", json.dumps(asdict(plan)))


def read_plan(path: Path) -> Plan:
    """Read what a plan says of itself, and see that it is whole.

    Raises:
        ExportError: It is no plan, or not as it was written.
    """
    try:
        with zipfile.ZipFile(path) as whole:
            if whole.testzip():
                raise ExportError(str(path), "the plan is damaged; make a new one")
            told = json.loads(whole.read("plan.json"))
        return Plan(**told | {"warnings": tuple(told["warnings"])})
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = f"it is no plan of `audience preview -o` ({type(error).__name__})"
        raise ExportError(str(path), reason) from None


def plan_rows(path: Path) -> Iterator[pl.DataFrame]:
    """Yield the rows of a plan, as they were written."""
    with zipfile.ZipFile(path) as whole:
        for name in sorted(whole.namelist()):
            if name.endswith(".parquet"):
                yield pl.read_parquet(BytesIO(whole.read(name)))


def plan_rejects(path: Path) -> bytes:
    """Return the rows that a plan does not send, as JSON lines."""
    with zipfile.ZipFile(path) as whole:
        return whole.read(_REJECTS)


def fits(plan: Plan, target: Target, destination: str, head: int) -> None:
    """See that a plan still says what would be sent.

    Raises:
        GuardError: It is another audience's, or something was sent since.
    """
    problem = ""
    if (plan.audience, plan.destination) != (target.name, destination):
        problem = f"the plan is for {plan.audience} at {plan.destination}"
    elif plan.digest != digest(target.audience):
        problem = "the audience's settings have changed since the plan was made"
    elif plan.head != head:
        problem = "something was sent since the plan was made"
    if problem:
        raise GuardError(target.name, problem, "Make a new one: audience preview -o.")


def samples(send: pl.DataFrame, count: int) -> list[dict[str, str]]:
    """Return a few rows as they would be sent, values masked."""
    shown = send.head(count)
    return [
        {
            "why": row[WHAT],
            "person": masked(row[PERSON].replace(SEPARATOR, " ")),
            "object": masked_object(row[OBJECT]),
        }
        for row in shown.iter_rows(named=True)
    ]


def masked_object(text: str) -> str:
    """Mask the values of an object, not its names."""
    whole = json.loads(text)
    return json.dumps(_masked(whole), ensure_ascii=False)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _masked(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one) for one in value]
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 9
    return value


def seconds_at_limit(figures: Figures, end: Endpoint) -> float:
    """Return how long the requests take at the configured rate."""
    return Pace.of(end.pace).seconds_for(figures.requests)
