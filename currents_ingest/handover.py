"""All that an operator needs to set a feed up in Amperity, as values.

Source of the rules: Amperity docs, "About couriers", "About feeds", "Amazon S3";
what the roles may do is what this package asks of S3.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from currents_ingest import amperity, api, config, parquet, policies, queries
from currents_ingest.feeds import show
from currents_ingest.manifest import refill_feed
from currents_ingest.privacy import PERSONAL
from currents_ingest.selection import select
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.config import Settings
    from currents_ingest.contracts import Contract
    from currents_ingest.selection import Selection
    from currents_ingest.unified import UnifiedColumn

SOURCE = "Braze"
"""Name of the data source in Amperity; domain tables are named Source:Feed."""
_WORDS = {
    "@brand": "[brands]",
    "@region": "[brands]",
    "@send_day": "day of the send",
    "@event_name": "event type",
    "@state_order": "time",
}
"""What stands for names that are no field."""
_ROWS = 20
"""Rows of a made-up sample, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverColumn:
    """One column as the feed editor asks for it."""

    name: str
    type: str
    """Amperity's name of the type."""
    key: bool
    last_updated: bool
    required: bool
    tag: str
    description: str
    origin: str
    """Where its values come from."""
    personal: dict[str, str]
    """What becomes of the personal fields behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverOption:
    """Something the settings decide about a unified feed."""

    name: str
    value: str
    values: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A feed's paper."""

    feed: str
    version: int
    description: str
    published: bool
    included: bool
    event_types: tuple[str, ...]
    columns: tuple[HandoverColumn, ...]
    key: tuple[str, ...]
    last_updated: str
    latest: bool
    """A table of states: the newest row of each key counts."""
    options: tuple[HandoverOption, ...]
    location: str
    """Where the objects go."""
    patterns: dict[str, str]
    """Courier file patterns, by what they find."""
    table: str
    """The domain table's name in SQL."""
    sample: str | None
    """Key of a published object to create the feed from."""
    queries: dict[str, str]
    """SQL to check it with, by what it shows."""
    policies: dict[str, str]
    """IAM policies as JSON, by whose they are; none where it is not S3."""
    notes: tuple[str, ...]


def handover(settings: Settings, feed: str) -> Handover:
    """Return a feed's paper; changes nothing.

    Raises:
        NotThereError: There is no such feed.
    """
    found = show(settings, feed)
    sample = _sample(settings, feed) if found.pinned else None
    return page(select(settings), found.contract, published=found.pinned, sample=sample)


def page(
    selection: Selection,
    contract: Contract | UnifiedContract,
    *,
    published: bool = False,
    sample: str | None = None,
) -> Handover:
    """Return the paper of a contract.

    Args:
        selection: What the settings say.
        contract: The one in force.
        published: The feed has objects.
        sample: Key of one of them.
    """
    settings, feed = selection.settings, contract.feed
    unified = contract if isinstance(contract, UnifiedContract) else None
    made = {one.feed for one in selection.included()}
    key = (contract.key,) if isinstance(contract.key, str) else contract.key
    table = f"{SOURCE}_{'_'.join(word.title() for word in feed.split('_'))}"
    return Handover(
        feed=feed,
        version=contract.version,
        description=unified.description if unified else f"Every {_event(contract)}",
        published=published,
        included=feed in made if unified else selection.writes_raw(feed),
        event_types=tuple(_event_types(selection, contract)),
        columns=tuple(_columns(selection, contract)),
        key=key,
        last_updated=contract.last_updated,
        latest=bool(unified and unified.latest),
        options=tuple(_options(selection, unified)) if unified else (),
        location=f"{settings.feeds.url.rstrip('/')}/{feed}/",
        patterns=_patterns(settings, feed, refilled=unified is None),
        table=table,
        sample=sample,
        queries=queries.of(contract, table, key),
        policies=policies.of(settings, contract.feed),
        notes=tuple(_notes(settings, contract)),
    )


def made_up(settings: Settings, feed: str) -> bytes:
    """Return an object of a feed with made-up rows, to create it from in Amperity.

    Raises:
        NotThereError: There is no such feed.
    """
    contract = show(settings, feed).contract
    events = tuple(_event_types(select(settings), contract))
    with tempfile.TemporaryDirectory() as scratch:
        simulate(scratch, Simulation(events=events, hours=1, files_per_hour=1, rows=5))
        made = settings.model_copy(
            update={
                "source": config.Source(url=f"{scratch}/currents"),
                "feeds": settings.feeds.model_copy(
                    update={
                        "url": f"{scratch}/feeds",
                        "include": (feed,),
                        "daily_copy": False,
                    }
                ),
                "ledger": config.LedgerSettings(
                    cache=Path(":memory:"), lease=timedelta(0)
                ),
            }
        )
        api.poll(made)
        store = Store.open(made.feeds.url)
        keys = [one.key for page in store.listing(feed) for one in page]
        return parquet.to_bytes(
            pl.concat(map(parquet.from_bytes, store.gather(keys))).head(_ROWS)
        )


def _event(contract: Contract | UnifiedContract) -> str:
    return "" if isinstance(contract, UnifiedContract) else contract.event_type


def _event_types(
    selection: Selection, contract: Contract | UnifiedContract
) -> Iterator[str]:
    if not isinstance(contract, UnifiedContract):
        yield contract.event_type
        return
    for event_type in selection.registry.event_types():
        if any(source.is_of(event_type) for source in contract.sources):
            yield event_type


def _columns(
    selection: Selection, contract: Contract | UnifiedContract
) -> Iterator[HandoverColumn]:
    privacy = selection.privacy(contract.feed)
    unified = isinstance(contract, UnifiedContract)
    about = {one.name: one for one in contract.columns} if unified else {}
    for name, kind in contract.types.items():
        column: Any = about.get(name)
        fields = set(_fields(column)) if column else {name}
        yield HandoverColumn(
            name=name,
            type=amperity.NAMES[kind],
            key=name == contract.key or name in contract.key,
            last_updated=name == contract.last_updated,
            required=column.required if column else name == contract.key,
            tag=(column.tag or "") if column else "",
            description=column.description if column else "",
            origin=_origin(contract, column) if column else name,
            personal={
                one: privacy.get(one, "keep") for one in sorted(fields & PERSONAL)
            },
        )


def _fields(column: UnifiedColumn) -> Iterator[str]:
    for choice in column.sources:
        yield from choice
    yield from column.which


def _origin(contract: Contract | UnifiedContract, column: UnifiedColumn) -> str:
    """Say in a few words where a column's values come from."""
    if isinstance(contract, UnifiedContract):
        constants = {
            str(one.set[column.name]): None
            for one in contract.sources
            if column.name in one.set
        }
        if constants:
            return " or ".join(f'"{one}"' for one in constants)
    choices = [
        ":".join(_WORDS.get(name, name) for name in one)
        for one in (*column.sources, *((name,) for name in column.which))
    ]
    steps = [name for name in ("trim", "lower", "sha256") if getattr(column, name)]
    steps += [f"at {column.pick}"] if column.pick else []
    steps += ["as a word for each value"] if column.values else []
    return ", ".join([" or ".join(choices), *steps])


def _options(
    selection: Selection, contract: UnifiedContract
) -> Iterator[HandoverOption]:
    decided = selection.decided(contract.feed).options
    for name, option in contract.options.items():
        yield HandoverOption(
            name=name,
            value=decided.get(name, option.default),
            values=option.values,
            description=option.description,
        )


def _patterns(settings: Settings, feed: str, *, refilled: bool) -> dict[str, str]:
    """Return file patterns: literals in quotes, dates in Joda-Time's letters."""
    below = policies.below(settings.feeds.url) if policies.bucket_of(settings) else ""
    found = {"objects": f"'{below}{feed}/'yyyy'/'MM'/'dd'/{feed}-*.parquet'"}
    if settings.feeds.daily_copy:
        found["a day's directory instead"] = f"'{below}{feed}_'yyyy-MM-dd'.parquet/'"
    if refilled:
        again = refill_feed(feed)
        name = "rows written again by `feeds refill`"
        found[name] = f"'{below}{again}/'yyyy'/'MM'/'dd'/{again}-*.parquet'"
    return found


def _sample(settings: Settings, feed: str) -> str | None:
    """Return the largest published object: it has rows, if any has."""
    pages = Store.open(settings.feeds.url).listing(feed)
    listed = [one for page in pages for one in page]
    return max(listed, key=lambda one: one.size).key if listed else None


def _notes(settings: Settings, contract: Contract | UnifiedContract) -> Iterator[str]:
    if not isinstance(contract, UnifiedContract):
        return
    tags = {amperity.family(one.tag) for one in contract.columns if one.tag}
    if "email-event" in tags:
        yield (
            "Amperity's raw route for email engagement needs fifteen months of events, "
            "and Currents cannot send again what was before it: until the feed has "
            "them, expect engagement frequency and status to be too low."
        )
        yield (
            "Tag either raw events or summaries in a tenant, never both: no other "
            "table may have email-summary/ tags."
        )
    if tags & {"email-opt", "sms-opt"}:
        yield (
            "Braze is the source of truth for consent; do not send this back to it. "
            "The table must have no foreign key and no profile tags."
        )
    names = settings.brands.names
    if any(one.sources == (("@brand",),) for one in contract.columns) and not names:
        yield (
            f'Every row has the brand "{settings.brands.default}": [brands] in '
            "currents.toml names brands by app group, sending domain or subscription "
            "group."
        )
