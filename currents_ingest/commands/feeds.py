"""``feeds``: contracts, how they grow, and what was delivered before."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path  # noqa: TC003 (typer reads it)
from typing import TYPE_CHECKING, Annotated

import typer

from currents_ingest.commands.shared import ConfigOption, JsonOption, settings_of
from currents_ingest.output import err, out, print_json, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from currents_ingest.config import Settings
    from currents_ingest.contracts import Column
    from currents_ingest.feeds import Feed, Refilled, Upgrade

app = typer.Typer(no_args_is_help=True, help="Feeds and their contracts.")

FeedArgument = Annotated[str, typer.Argument(help="Feed, as list shows it.")]
DryRunOption = Annotated[bool, typer.Option(help="Only say what would be done.")]


@app.command("list")
def list_(
    config: ConfigOption = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Also feeds that have not published.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """List feeds with their contract versions and columns that they could have."""
    from currents_ingest import feeds

    found = [one for one in feeds.feeds(settings_of(config)) if one.pinned or all_]
    if json_:
        print_json(found)
    else:
        _show_feeds(found)


@app.command()
def show(
    feed: FeedArgument, config: ConfigOption = None, json_: JsonOption = False
) -> None:
    """Show a feed's columns, and those that an upgrade would add."""
    from currents_ingest import feeds

    found = feeds.show(settings_of(config), feed)
    if json_:
        print_json(found)
    else:
        _show_feed(found)


@app.command()
def upgrade(
    feed: FeedArgument,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
) -> None:
    """Start a feed's next contract version, with a column for every known field."""
    from currents_ingest import feeds

    settings = settings_of(config)
    found = (feeds.preview if dry_run else feeds.upgrade)(settings, feed)
    if json_:
        print_json(found)
    else:
        _show_upgrade(found, settings, done=not dry_run)


@app.command()
def refill(
    feed: FeedArgument,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
) -> None:
    """Write rows delivered before an upgrade once more, with their new columns.

    They go to a folder of their own, <feed>_refill.
    """
    from currents_ingest import feeds

    settings = settings_of(config)
    found = (feeds.preview_refill if dry_run else feeds.refill)(settings, feed)
    if json_:
        print_json(found)
    else:
        _show_refilled(found, settings, done=not dry_run)


@app.command()
def backfill(
    feed: FeedArgument,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
) -> None:
    """Deliver to a unified feed what raw feeds published before it was made."""
    from currents_ingest import backfill as backfill_

    settings = settings_of(config)
    found = (backfill_.preview if dry_run else backfill_.backfill)(settings, feed)
    if json_:
        print_json(found)
    else:
        verb = "would be" if dry_run else "were"
        out.print(
            f"{found.objects:,} raw objects read, {found.rows:,} rows {verb} delivered "
            f"to {found.feed}, {found.rejects:,} rejected"
        )


class PageFormat(StrEnum):
    """How a feed's paper is written."""

    MD = "md"
    JSON = "json"
    HTML = "html"


@app.command()
def contract(
    feed: FeedArgument,
    config: ConfigOption = None,
    format_: Annotated[
        PageFormat, typer.Option("--format", help="How to write it.")
    ] = PageFormat.MD,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File instead of the screen.")
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(help="File for a Parquet object with made-up rows."),
    ] = None,
) -> None:
    """Write all that is needed to set a feed up in Amperity.

    Columns with types and tags, keys, courier, schedule, policies, queries.
    """
    from currents_ingest import handover, handover_page
    from currents_ingest.output import to_json

    settings = settings_of(config)
    page = handover.handover(settings, feed)
    write = {
        PageFormat.MD: handover_page.markdown,
        PageFormat.JSON: lambda one: to_json(one) + "\n",
        PageFormat.HTML: handover_page.html,
    }[format_]
    if output:
        output.write_text(write(page), "utf-8")
    else:
        sys.stdout.write(write(page))
    if sample:
        sample.write_bytes(handover.made_up(settings, feed))
        err.print(f"made-up rows of {feed} written to {sample}")


def _show_feeds(found: Sequence[Feed]) -> None:
    table = table_of("feed", "contract", "columns", "could be added")
    for one in found:
        contract = one.contract
        version = f"version {contract.version}" if one.pinned else "not published"
        new = f"{len(one.new)}" if one.new else ""
        table.add_row(contract.feed, version, str(len(contract.columns)), new)
    out.print(table)
    if any(one.new for one in found):
        out.print("`currents-ingest feeds upgrade FEED` adds columns")


def _show_feed(found: Feed) -> None:
    from currents_ingest.unified import UnifiedContract

    contract = found.contract
    state = f"contract version {contract.version}" if found.pinned else "not published"
    made = "" if found.included else ", not in feeds.include"
    if isinstance(contract, UnifiedContract):
        about, key = contract.description, ", ".join(contract.key)
        tags = {one.name: one.tag for one in contract.columns if one.tag}
    else:
        about, key = contract.event_type, contract.key
        tags = {one.name: f"from {one.field}" for one in contract.own if one.field}
    out.print(f"{contract.feed}: {about}, {state}{made}")
    out.print(f"key {key}, last updated {contract.last_updated}")
    for name, kind in contract.types.items():
        out.print(f"    {name} {kind}" + (f", {tags[name]}" if name in tags else ""))
    for column in found.new:
        out.print(f"[green]  + {column.name} {column.type}[/] (after an upgrade)")


def _show_upgrade(found: Upgrade, settings: Settings, *, done: bool) -> None:
    """Show new columns, and the edit of the feed in Amperity that they need."""
    if not found.columns:
        out.print(
            f"{found.feed} stays at contract version {found.before}: it has a column "
            "for every field in the registry (`schemas learn FILE` adds a schema), or, "
            "if it is unified, its file has no newer version."
        )
        return
    verb = "now has" if done else "would get"
    out.print(f"{found.feed} {verb} contract version {found.after}, with:")
    for column in found.columns:
        source = f", from {column.field}" if column.field else ""
        out.print(f"[green]  + {column.name}[/] {_amperity(column)}{source}")
    out.print(
        "In Amperity, edit the feed before the next object arrives (a file with "
        "columns that the feed does not have is refused): add these fields with "
        "Required unticked; key, last-updated field and courier stay."
    )
    if done:
        out.print(
            "Then: `currents-ingest quarantine retry --all` for files that waited for "
            f"this, and `currents-ingest feeds refill {found.feed}` for rows delivered "
            f"before. Objects go on to {settings.feeds.url}/{found.feed}/."
        )


def _show_refilled(found: Refilled, settings: Settings, *, done: bool) -> None:
    """Show where refilled rows went, and how Amperity takes them."""
    verb = "written" if done else "would be written"
    out.print(
        f"{found.objects:,} objects read, {found.rows:,} rows {verb} "
        f"with the columns of contract version {found.version}"
    )
    if found.rows:
        out.print(
            f"They lie in {settings.feeds.url}/{found.feed}/. In Amperity, give the "
            "courier a second file entry with the pattern "
            f"'<prefix>/{found.feed}/'yyyy'/'MM'/'dd'/{found.feed}-*.parquet' that "
            "loads into the same feed: it upserts on id, and these rows have the "
            "newer ingested_at."
        )


def _amperity(column: Column) -> str:
    from currents_ingest.amperity import NAMES

    return NAMES[column.type]
