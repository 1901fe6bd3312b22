"""Which feeds are made, under which contracts, and what the user decided about each."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

from currents_ingest.contracts import column_type, feed_name
from currents_ingest.errors import NotThereError, SettingsError
from currents_ingest.privacy import FOLLOWS, PERSONAL, STRICTNESS
from currents_ingest.registry import open_registry
from currents_ingest.schemas import FEEDS, schemas_root
from currents_ingest.store import Store
from currents_ingest.unified_toml import load
from currents_ingest.unify import Decided

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from currents_ingest.config import Settings
    from currents_ingest.privacy import Choice
    from currents_ingest.schemas import Registry
    from currents_ingest.unified import Join, UnifiedContract

RAW = "raw"
"""In ``feeds.include``: every event type's own feed."""


@dataclass(frozen=True)
class Selection:
    """The registry, the contracts of unified feeds, and what the settings say."""

    settings: Settings
    registry: Registry
    contracts: Mapping[str, UnifiedContract]
    """Every unified contract there is, by feed, included or not."""

    def included(self) -> tuple[UnifiedContract, ...]:
        """Return the contracts of the unified feeds that are made, by name."""
        return tuple(
            self.contracts[feed]
            for feed in sorted(self.contracts)
            if any(fnmatchcase(feed, one) for one in self.settings.feeds.include)
        )

    def writes_raw(self, feed: str) -> bool:
        """Tell whether an event type's own feed is made."""
        return any(
            one == RAW or fnmatchcase(feed, one) for one in self.settings.feeds.include
        )

    def privacy(self, feed: str) -> dict[str, Choice]:
        """Return what becomes of personal fields in a feed."""
        chosen = self.settings.privacy
        found = {**chosen.fields, **chosen.feeds.get(feed, {})}
        for name, others in FOLLOWS.items():
            choices = [found.get(other, "keep") for other in others]
            found.setdefault(name, max(choices, key=STRICTNESS.index))
        return {name: choice for name, choice in found.items() if choice != "keep"}

    def decided(self, feed: str) -> Decided:
        """Return what the user decided about a unified feed."""
        return Decided(
            brand=self.settings.brands.default,
            brands=self._brands,
            region=self.settings.brands.region or None,
            regions=self._regions,
            options=self.settings.feeds.options.get(feed, {}),
            privacy=self.privacy(feed),
        )

    @cached_property
    def _brands(self) -> dict[str, str]:
        return _lower(self.settings.brands.names)

    @cached_property
    def _regions(self) -> dict[str, str]:
        return _lower(self.settings.brands.regions)


def _lower(names: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): one for name, one in names.items()}


def select(settings: Settings) -> Selection:
    """Read the registry and the contracts, and check what the settings name.

    Raises:
        SettingsError: A contract cannot be used, or a setting names no feed, field
            or option; with every problem.
    """
    registry = open_registry(settings.schemas)
    contracts = {one.feed: one for one in _contracts(settings, registry)}
    selection = Selection(settings, registry, contracts)
    if problems := list(_problems(selection)):
        raise SettingsError(tuple(problems))
    return selection


def in_force(
    selection: Selection, pinned: Mapping[str, UnifiedContract]
) -> dict[str, UnifiedContract]:
    """Return the contracts of the feeds that are made: pinned ones as they are.

    Raises:
        SettingsError: A contract is not what was pinned under its version.
    """
    found = {one.feed: pinned.get(one.feed, one) for one in selection.included()}
    problems = [
        f"the contract of {feed} is not the one that was published as version "
        f"{one.version}: give it version {one.version + 1}, then `feeds upgrade {feed}`"
        for feed, one in found.items()
        if one.version == selection.contracts[feed].version
        and one.plain() != selection.contracts[feed].plain()
    ]
    if problems:
        raise SettingsError(tuple(problems))
    return found


def _contracts(settings: Settings, registry: Registry) -> Iterator[UnifiedContract]:
    """Return the shipped contracts, then the user's: of one name, the user's counts."""
    for path in sorted((schemas_root() / FEEDS).glob("*.toml")):
        yield load(path.read_text("utf-8"), path.name, path.stem, None)
    for url in settings.feeds.contracts:
        store = Store.open(url)
        try:
            keys = [one.key for page in store.listing() for one in page]
        except NotThereError:
            keys = []
        found = sorted(key for key in keys if key.endswith(".toml"))
        if not found:
            raise SettingsError((f"feeds.contracts: {url} holds no .toml file",))
        for key, body in zip(found, store.gather(found), strict=True):
            name = key.rsplit("/", 1)[-1].removesuffix(".toml")
            text = body.decode("utf-8", "replace")
            yield load(text, f"{store.url}/{key}", name, registry)


def _problems(selection: Selection) -> Iterator[str]:
    feeds = selection.settings.feeds
    raw = {feed_name(one) for one in selection.registry.event_types()}
    for pattern in feeds.include:
        names = raw | selection.contracts.keys()
        if pattern != RAW and not any(fnmatchcase(name, pattern) for name in names):
            yield f"feeds.include: there is no feed {pattern}; `feeds list --all`"
    for feed in sorted(raw & selection.contracts.keys()):
        yield f"feeds.contracts: {feed} is the name of an event type's own feed"
    for feed, options in feeds.options.items():
        yield from _option_problems(selection, feed, options)
    yield from _join_problems(selection)
    yield from _privacy_problems(selection, raw)
    yield from _tag_problems(selection)


def _option_problems(
    selection: Selection, feed: str, options: Mapping[str, str]
) -> Iterator[str]:
    contract = selection.contracts.get(feed)
    for name, value in options.items():
        where = f"feeds.options.{feed}.{name}"
        option = contract.options.get(name) if contract else None
        if option is None:
            yield f"{where}: there is no such option"
        elif value not in option.values:
            yield f"{where}: {value!r} is none of {', '.join(option.values)}"


def _join_problems(selection: Selection) -> Iterator[str]:
    """Joins read what the raw feeds of both event types published."""
    for contract in selection.included():
        options = selection.decided(contract.feed).options
        for source in contract.sources:
            if source.join and contract.joins_of(source.event, options):
                for event in (source.event, source.join.event):
                    if not selection.writes_raw(feed_name(event)):
                        yield (
                            f"feeds.options.{contract.feed}: it needs the raw feed "
                            f"{feed_name(event)}, which feeds.include leaves out"
                        )
                yield from _unlike(selection, source.event, source.join)


def _unlike(selection: Selection, event: str, join: Join) -> Iterator[str]:
    """Both sides of a join must hold the same, so the same must become of it."""
    names = [feed_name(one) for one in (event, join.event)]
    for field in join.on:
        choices = {selection.privacy(name).get(field, "keep") for name in names}
        if len(choices) > 1 or "drop" in choices:
            yield (
                f"privacy: {field} must be kept or hashed alike in {names[0]} and "
                f"{names[1]}, which are joined by it"
            )


def _privacy_problems(selection: Selection, raw: set[str]) -> Iterator[str]:
    chosen = selection.settings.privacy
    if not (chosen.fields or chosen.feeds):
        return  # the schemas need not be read
    types = _types(selection.registry)
    for feed, fields in {"": chosen.fields, **chosen.feeds}.items():
        where = f"privacy.feeds.{feed}" if feed else "privacy.fields"
        if feed and feed not in raw | selection.contracts.keys():
            yield f"{where}: there is no such feed"
        for name, choice in fields.items():
            if told := _no_choice(name, choice, types):
                yield f"{where}.{name}: {told}"


def _types(registry: Registry) -> dict[str, set[str]]:
    """Return the column types of every field that an event may have."""
    known: dict[str, set[str]] = {name: set() for name in PERSONAL}
    for event_type in registry.event_types():
        for writer in registry.writers(event_type):
            for field in writer.fields:
                known.setdefault(field.name, set()).add(column_type(field))
    return known


def _no_choice(name: str, choice: Choice, types: Mapping[str, set[str]]) -> str | None:
    """Say why a field cannot be treated so, or None."""
    if name in ("id", "time"):
        return "no event can be delivered without it"
    if name not in types:
        return "no event has such a field"
    if choice == "hash" and types[name] - {"string", "json"}:
        return "it is no text; drop or keep it"
    return None


def _tag_problems(selection: Selection) -> Iterator[str]:
    """Email engagement comes from events or from summaries, never from both."""
    tagged = {
        prefix: [
            one.feed
            for one in selection.included()
            if any((column.tag or "").startswith(prefix) for column in one.columns)
        ]
        for prefix in ("email-event/", "email-summary/")
    }
    if all(tagged.values()):
        feeds = ", ".join(sorted({feed for held in tagged.values() for feed in held}))
        yield (
            "feeds.include: email-event/ and email-summary/ tags exclude each other, "
            f"and {feeds} have both"
        )
