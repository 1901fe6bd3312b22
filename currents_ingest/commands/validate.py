"""``validate``: which schemas lie in a bucket, as a gate."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from currents_ingest.commands.shared import ConfigOption, one_of, settings_if_any
from currents_ingest.errors import SettingsError
from currents_ingest.output import err, out, print_json, table_of

if TYPE_CHECKING:
    from currents_ingest.compatibility import Verdict
    from currents_ingest.deep import DataReport
    from currents_ingest.validate import Report, SchemaReport

_COLOURS = {
    "known": "green",
    "compatible": "cyan",
    "additive": "yellow",
    "breaking": "bold red",
}
_FORMATS = ("text", "json", "junit", "html")
_FAIL_ON = ("additive", "breaking", "never")


def validate(
    urls: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or URLs (default: the configured source)."),
    ] = None,
    config: ConfigOption = None,
    deep: Annotated[
        bool, typer.Option(help="Read whole files and check what they hold, too.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, help="Look at so many files per event type, schema and day."
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="text, json, junit or html.")
    ] = "text",
    fail_on: Annotated[
        str, typer.Option(help="Exit with 3 on drift: additive, breaking or never.")
    ] = "additive",
) -> None:
    """Say which schemas the files have and what each means for its feed.

    Reads the head of each file only (--deep: all of it) and changes nothing.
    """
    from currents_ingest import validate as validate_

    one_of("--format", format_, _FORMATS)
    least = _least(one_of("--fail-on", fail_on, _FAIL_ON))
    settings = settings_if_any(config)
    if not urls and settings is None:
        raise SettingsError(("name files, folders or URLs, or write a currents.toml",))
    with err.status("looking") as status:
        looked = [0]

        def seen(files: int) -> None:
            looked[0] += files
            status.update(f"{looked[0]:,} files looked at")

        report = validate_.validate(
            settings, urls or (), sample=sample, deep=deep, seen=seen
        )
    _write(report, format_, least)
    if report.unread:
        raise typer.Exit(1)
    raise typer.Exit(3 if least and report.worst.rank >= least.rank else 0)


def _least(fail_on: str) -> Verdict | None:
    from currents_ingest.compatibility import Verdict

    return None if fail_on == "never" else Verdict(fail_on)


def _write(report: Report, format_: str, least: Verdict | None) -> None:
    from currents_ingest import validate_report

    match format_:
        case "json":
            print_json(report)
        case "junit":
            sys.stdout.write(validate_report.junit(report, least))
        case "html":
            sys.stdout.write(validate_report.html(report))
        case _:
            _show_report(report)


def _show_report(report: Report) -> None:
    table = table_of("event type", "schema", "verdict", "files", "first", "last")
    for one in report.schemas:
        version = f"v{one.version}" if one.version else "new"
        table.add_row(
            escape(one.event_type),
            f"{one.fingerprint} {version:>4}",
            f"[{_COLOURS[one.verdict]}]{one.verdict}[/]",
            f"{one.files:,}",
            *(f"{hour:%Y-%m-%d %H}" if hour else "?" for hour in (one.first, one.last)),
        )
    if report.schemas:
        out.print(table)
    for one in report.schemas:
        _show_schema(one)
    for title, found in (
        ("a poll would quarantine", report.troubles),
        ("not given by the bucket", report.unread),
    ):
        for trouble in found:
            files = f"{trouble.files:,} files"
            out.print(f"[red]{title}[/] {files}: {escape(trouble.reason)}")
            out.print(f"    such as {escape(trouble.example)}")
    out.print(f"{report.looked_at:,} of {report.listed:,} objects looked at")
    if report.passed_over:
        out.print(
            f"{report.passed_over:,} were not looked at: a sample of {report.sample} "
            "per event type, schema and day"
        )


def _show_schema(one: SchemaReport) -> None:
    if one.differences:
        out.print(f"{escape(one.event_type)} {one.fingerprint} ({one.verdict}):")
        for difference in one.differences:
            out.print(f"    {escape(difference)}")
        out.print(f"    in {escape(one.example)}")
    if one.data:
        _show_data(one, one.data)


def _show_data(one: SchemaReport, data: DataReport) -> None:
    out.print(
        f"{escape(one.event_type)} {one.fingerprint}: {data.rows:,} rows, "
        f"{data.fewest:,} to {data.most:,} a file; {data.repeated_ids:,} repeated ids, "
        f"{data.without_id:,} without id, {data.bad_time:,} bad times, "
        f"{data.late:,} late, {data.future:,} in the future"
    )
    for name, rows in data.no_json.items():
        out.print(f"    {name}: {rows:,} rows are no JSON")
    for name, words in data.new_words.items():
        told = ", ".join(f"{word} ({rows:,})" for word, rows in words.items())
        out.print(f"    {name}: not among the known values: {escape(told)}")
    empty = [name for name, share in data.nulls.items() if share == 1]
    if empty:
        out.print(f"    always null: {escape(', '.join(empty))}")
