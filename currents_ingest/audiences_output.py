"""What ``audience`` commands print for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from currents_ingest.output import out, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from currents_ingest.audiences.csv_import import Written
    from currents_ingest.audiences.sync import Preview
    from currents_ingest.audiences.work import Run

_REASONS = 10


def show_preview(found: Preview) -> None:
    """Show what a sync would do."""
    one = found.figures
    out.print(
        f"{found.audience} to {found.destination}: {found.rows:,} rows in "
        f"{found.parts} parts, delivery {found.delivery}"
    )
    if found.rejected:
        out.print(f"[yellow]{found.rejected:,} rows would be rejected:[/]")
        _show_reasons(found.reasons)
    out.print(
        f"{one.new:,} new, {one.changed:,} changed, {one.left:,} left, "
        f"{one.unchanged:,} as Braze has them, {one.silent:,} with nothing to say, "
        f"{one.repeated:,} repeated rows"
    )
    out.print(
        f"{one.objects:,} objects in {one.requests:,} requests ({one.bytes:,} bytes): "
        f"{_time(found.seconds)} at the rate limit; {one.data_points:,} data points "
        "on contracts that are billed by them"
    )
    if found.skipped:
        out.print(f"{found.skipped:,} rows without an id or a cohort are left out")
    _show_cohorts(one.cohorts)
    if one.attributes:
        table = table_of("attribute", "objects", "of known people")
        for name, count in sorted(one.attributes.items(), key=lambda it: -it[1]):
            table.add_row(escape(name), f"{count:,}", f"{one.again.get(name, 0):,}")
        out.print(table)
    for name, share in found.churny.items():
        out.print(
            f"[yellow]churny:[/] {escape(name)} changes for {share:.0%} of people; "
            "round it or put it into buckets"
        )
    for told in found.warnings:
        out.print(f"[yellow]warning:[/] {escape(told)}")
    for sample in found.samples:
        out.print(f"{sample['why']}: {escape(sample['object'])}")
    if found.guard:
        out.print(f"[red]sync would refuse it:[/] {escape(found.guard)}")


def show_run(run: Run) -> None:
    """Show what a run came to."""
    if run.state == "nothing new":
        out.print(
            f"{run.audience}: nothing new, Braze has delivery {run.delivery} "
            "(--force sends it)"
        )
        _show_undecided(run)
        return
    out.print(
        f"{run.audience} {run.run} {run.state}: {run.new:,} new, {run.changed:,} "
        f"changed, {run.left:,} left; {run.taken:,} objects acknowledged, "
        f"{run.failed:,} failed, {run.unknown:,} unknown; {run.requests:,} requests"
    )
    if run.rejected:
        out.print(f"{run.rejected:,} rows rejected: see {run.rejects}")
    if run.skipped:
        out.print(f"{run.skipped:,} rows without an id or a cohort were left out")
    _show_cohorts(run.cohorts)
    for told in run.warnings:
        out.print(f"[yellow]warning:[/] {escape(told)}")
    _show_reasons(run.reasons)
    if run.failed:
        out.print(f"to send them once more: audience retry {run.audience} {run.run}")
    _show_undecided(run)


def _show_cohorts(cohorts: Mapping[str, Sequence[int]]) -> None:
    """Show joins and leaves by cohort, where there are several."""
    if len(cohorts) < 2:
        return
    table = table_of("cohort", "join", "leave")
    for name, (joins, leaves) in cohorts.items():
        table.add_row(escape(name), f"{joins:,}", f"{leaves:,}")
    out.print(table)


def _show_undecided(run: Run) -> None:
    if run.undecided:
        out.print(
            f"[yellow]{run.undecided:,} objects may have arrived or not:[/] "
            f"see audience status {run.audience}"
        )


def show_runs(runs: Sequence[Run], undecided: Mapping[str, int]) -> None:
    """Show an audience's last runs, or one with its reasons."""
    table = table_of(
        "run", "state", "rows", "rejected", "new", "changed", "left", "taken", "failed"
    )
    for one in runs:
        counts = one.rows, one.rejected, one.new, one.changed, one.left
        more = one.taken, one.failed
        table.add_row(one.run, one.state, *(f"{n:,}" for n in (*counts, *more)))
    out.print(table if runs else "no runs yet")
    for one in runs[:1]:
        if one.cause:
            out.print(f"[red]{escape(one.cause)}[/]")
        _show_reasons(one.reasons)
    for run, count in undecided.items():
        out.print(
            f"[yellow]unknown:[/] {count:,} objects of {run} may have arrived; "
            "audience retry --unknown send|keep decides"
        )


def show_csv(found: Written) -> None:
    """Show which files were written."""
    for path in found.files:
        out.print(path)
    out.print(
        f"{found.people:,} people in {len(found.files)} files; "
        f"{found.rejected:,} rows rejected"
    )
    _show_reasons(found.reasons)
    for told in found.left_out:
        out.print(f"[yellow]left out:[/] {escape(told)}")


def _show_reasons(reasons: Mapping[str, int]) -> None:
    for reason, count in list(reasons.items())[:_REASONS]:
        out.print(f"    {count:,}: {escape(reason)}")
    if len(reasons) > _REASONS:
        out.print(f"    and {len(reasons) - _REASONS} other reasons")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
