"""What commands print: results on standard output, everything else on the other."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from currents_ingest.api import Outcome, Survey
    from currents_ingest.manifest import Drift
    from currents_ingest.reconcile import Reconciled
    from currents_ingest.status import Drifted, FeedStatus, Status
    from currents_ingest.verify import Verified

# Tables for programs and files are as wide as they need to be.
out = Console(
    soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 250
)
err = Console(stderr=True, soft_wrap=True, highlight=False)
_ROWS, _DRIFT = 12, 3
"""Event types and schemas that status shows without --all, so that it fits a screen."""


def show_outcome(outcome: Outcome) -> None:
    """Show what a poll, a load or a retry came to."""
    if not (outcome.files or outcome.quarantined or outcome.unread):
        out.print("nothing to do yet" if outcome.waiting else "nothing new")
    else:
        out.print(
            f"{outcome.files:,} files, {outcome.rows_in:,} rows in, "
            f"{outcome.rows_out:,} out, {outcome.duplicates:,} duplicates, "
            f"{outcome.rejects:,} rejects; {outcome.objects:,} objects published"
        )
    if outcome.unified_rejects:
        out.print(
            f"{outcome.unified_rejects:,} rows do not fit a unified feed: reasons are "
            "in _rejects/ beside the feeds"
        )
    if outcome.quarantined:
        out.print(
            f"{len(outcome.quarantined)} files quarantined: "
            "see `currents-ingest quarantine list`"
        )
    for one_ in outcome.drift:
        show_drift(one_)
    for one in outcome.unread:
        err.print(f"[red]left pending:[/] {escape(one)}")
    for told in outcome.warnings:
        err.print(f"[yellow]afterwards:[/] {escape(told)}")
    if unknown := outcome.messages.get("unknown"):
        err.print(f"[yellow]left in the queue:[/] {unknown:,} messages not S3's")
    if outcome.waiting:
        out.print(f"{outcome.waiting:,} files wait for more of their event type")
    if outcome.stopped:
        err.print("stopped before the end; run again to go on")


def show_drift(drift: Drift | Drifted, when: str = "", *, brief: bool = False) -> None:
    """Show one schema that its feed's contract does not know whole."""
    out.print(
        f"[bold]drift[/] ({drift.verdict}): "
        f"{drift.event_type} {drift.fingerprint}{when}"
    )
    if brief:
        return
    for difference in drift.differences:
        out.print(f"    {escape(difference)}")
    if drift.key:
        out.print(f"    in {escape(drift.key)}")


def show_survey(ahead: Survey) -> None:
    """Show what a load would read."""
    table = table_of("event type", "files", "bytes")
    for event_type, (files, size) in sorted(ahead.by_event_type.items()):
        table.add_row(event_type, f"{files:,}", f"{size:,}")
    out.print(table)
    out.print(f"{ahead.files:,} files, {ahead.bytes:,} bytes would be read")


def show_status(found: Status, *, whole: bool = False) -> None:
    """Show one screen of status; *whole*: a row for every event type."""
    sentinel = found.sentinel
    colour = "green" if sentinel.source == "ok" else "bold red"
    out.print(f"[{colour}]{escape(sentinel.told)}[/]\n")
    _show_feeds(found, whole=whole)
    if found.unified:
        table = table_of("unified feed", "objects", "rows", "rejects", "last commit")
        for each in found.unified:
            figures = each.objects, each.rows, each.rejects
            last = each.committed_at[:16].replace("T", " ")
            table.add_row(each.feed, *(f"{n:,}" for n in figures), last)
        out.print(table)
    if found.audiences:
        _show_audiences(found)
    _show_totals(found)
    few = whole or len(found.drift) <= _DRIFT
    for drift in found.drift if few else found.drift[:_DRIFT]:
        show_drift(drift, f", first seen {drift.seen:%Y-%m-%d %H:%M}", brief=not few)
    if not few:
        out.print(f"    and {len(found.drift) - _DRIFT} other schemas (--all)")
    if found.amperity:
        _show_reconciled(found.amperity)
    if found.lease:
        out.print(f"at work: {escape(found.lease)}")
    for told in found.look:
        if told != sentinel.told:
            out.print(f"[yellow]needs a look:[/] {escape(told)}")


def _show_totals(found: Status) -> None:
    out.print(
        f"{found.entries} ledger entries, {found.quarantined} files in quarantine; "
        f"{sum(one.files for one in found.feeds):,} files and "
        f"{sum(one.rows_out for one in found.feeds):,} rows delivered in all"
    )
    if found.queue:
        waiting, in_work = found.queue
        out.print(f"{waiting:,} messages wait in the queue, {in_work:,} are in work")


def _show_feeds(found: Status, *, whole: bool) -> None:
    """Show event types, those that need a look first; the others added up."""
    feeds = sorted(found.feeds, key=lambda one: (one.rank, one.event_type))
    shown = feeds if whole or len(feeds) <= _ROWS else feeds[:_ROWS]
    if shown is not feeds:
        shown = [one for one in shown if one.needs_a_look]
    names = "newest hour", "rows 24 h", "delay", "duplicates", "rejects", "aside", ""
    table = table_of("event type", *names)
    for one in shown:
        table.add_row(one.event_type, *_cells([one]), one.verdict)
    if others := feeds[len(shown) :]:
        word = "others" if shown else "event types"
        table.add_row(f"{len(others)} {word} (--all)", *_cells(others), "")
    table.add_row(f"{len(feeds)} in all", *_cells(feeds), style="bold")
    out.print(table if feeds else "nothing was delivered yet")


def _cells(feeds: Sequence[FeedStatus]) -> tuple[str, ...]:
    """Return figures of the last 24 hours, added up; the median of the delays."""
    from currents_ingest.units import span

    delays = [one.delay for one in feeds if one.delay is not None]
    rows = sum(one.rows_24h for one in feeds)
    more = (
        sum(one.duplicates_24h for one in feeds),
        sum(one.rejects_24h for one in feeds),
        sum(one.quarantined for one in feeds),
    )
    newest = max(one.newest_hour for one in feeds) if feeds else None
    return (
        f"{newest:%Y-%m-%d %H:00}" if newest else "",
        f"{rows:,}",
        span(median(delays)) if delays else "",
        *(f"{count:,}" for count in more),
    )


def _show_audiences(found: Status) -> None:
    table = table_of("audience", "last run", "state", "taken", "failed", "rejected")
    for one in found.audiences:
        for run in one.runs:
            figures = (f"{n:,}" for n in (run.taken, run.failed, run.rejected))
            ended = (run.ended or run.began)[:16].replace("T", " ")
            table.add_row(one.audience, ended, run.state, *figures)
        if not one.runs:
            table.add_row(one.audience, "", "not known" if one.told else "never sent")
    out.print(table)


def _show_reconciled(found: Reconciled) -> None:
    """Show what Amperity read of each feed, and where it is not what was written."""
    table = table_of(
        f"read by Amperity since {found.since:%Y-%m-%d}",
        *("objects", "of", "rows", "inserted", "updated", "rejected", "errors"),
    )
    for one in found.feeds:
        figures = one.objects_read, one.objects, one.rows_read, one.inserted
        more = one.updated, one.rejected, one.errors
        table.add_row(one.feed, *(f"{n:,}" for n in (*figures, *more)))
    out.print(table)
    for told in found.differences:
        out.print(f"[yellow]differs:[/] {escape(told)}")


def show_verified(found: Verified) -> None:
    """Show what verify found."""
    out.print(
        f"{found.entries} ledger entries, {found.objects} objects, {found.rows:,} "
        f"rows; {found.pending:,} of {found.source_files:,} source files pending"
    )
    for one in found.differences:
        out.print(f"[red]{escape(one.about)}[/] {escape(one.what)}")
    count = len(found.differences)
    out.print(f"{count} differences" if count else "no differences")


def print_json(value: Any) -> None:
    """Write a value as one line of JSON."""
    sys.stdout.write(to_json(value) + "\n")


def to_json(value: Any) -> str:
    """Return a value as JSON, dataclasses and models within it as objects."""
    plain = (
        asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    )
    return json.dumps(plain, default=_jsonable)


def _jsonable(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table_of(first: str, *others: str) -> Table:
    """Return an empty table: a first column of names, others of figures."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table
