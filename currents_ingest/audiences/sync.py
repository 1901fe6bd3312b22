"""``audience preview|sync|retry``: the order of the steps, and what came of a run."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from currents_ingest import memory
from currents_ingest.audiences import cohorts, gathering, planning
from currents_ingest.audiences.braze import endpoint
from currents_ingest.audiences.client import PartnerKeys
from currents_ingest.audiences.gathering import gathered
from currents_ingest.audiences.journal import Journal
from currents_ingest.audiences.planning import Figures, Plan
from currents_ingest.audiences.work import (
    SUMMARIES,
    Run,
    at_work,
    look,
    rejects_of,
    room,
    summary,
)
from currents_ingest.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import polars as pl

    from currents_ingest.audience_config import Audience
    from currents_ingest.audiences.braze import Endpoint
    from currents_ingest.audiences.client import Key
    from currents_ingest.audiences.difference import Difference
    from currents_ingest.audiences.exports import Delivery
    from currents_ingest.audiences.gathering import Target
    from currents_ingest.config import Settings

_SHOWN = 20
"""Runs that are listed."""
_SAMPLES = 3
_PARTNER_KEY = (
    "key that Braze gave the partner (if you are none: without_partner keeps members "
    "in an attribute)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a sync would do; nothing was changed, and no value is shown."""

    audience: str
    destination: str
    delivery: str
    parts: int
    rows: int
    rejected: int
    skipped: int
    """Rows that are nobody's, or in no cohort."""
    reasons: dict[str, int]
    figures: Figures
    seconds: float
    """At the configured rate, at least."""
    samples: list[dict[str, str]]
    churny: dict[str, float]
    warnings: tuple[str, ...]
    guard: str
    """Why sync would refuse it; empty: it would not."""


def preview(settings: Settings, target: Target, plan: Path | None = None) -> Preview:
    """Say what a sync would send; with *plan*, keep it in a new file.

    Raises:
        ExportError: The export cannot be read.
        MappingError: Its columns do not fit.
    """
    memory.return_what_is_freed()
    target = effective(settings, target)
    store, where = look(settings, target)
    journal = Journal.open(store)
    end = endpoint(settings.braze, target.audience)
    figures, shown = Figures(), list[dict[str, str]]()
    with (
        gathered(target, _delivery(target), room(settings)) as found,
        journal.snapshot(room(settings)) as snapshot,
    ):
        refused = gathering.unbearable(target, found)
        odd = gathering.suspicious(target, found, journal.last.get("accepted"))
        differences = planning.differences(snapshot, found, target.audience)
        frames = _counted(differences, figures, target.audience, end, shown)
        if plan and not refused:
            kept = Plan(
                audience=target.name,
                destination=where,
                digest=planning.digest(target.audience),
                head=journal.head,
                delivery=found.delivery.id,
                rows=found.read,
                accepted=found.read - found.rejected - found.skipped,
                rejected=found.rejected,
                skipped=found.skipped,
                guard=odd,
                warnings=found.warnings,
            )
            planning.write_plan(plan, kept, frames, rejects_of(found))
        else:
            deque(frames, maxlen=0)
    return Preview(
        audience=target.name,
        destination=where,
        delivery=found.delivery.id,
        parts=len(found.delivery.parts),
        rows=found.read,
        rejected=found.rejected,
        skipped=found.skipped,
        reasons=found.reasons(),
        figures=figures,
        seconds=planning.seconds_at_limit(figures, end),
        samples=shown,
        churny=figures.churny(),
        warnings=found.warnings,
        guard=refused or odd,
    )


def key(settings: Settings, target: Target) -> Key:
    """Return Braze's key; secrets come from the environment alone.

    Raises:
        SettingsError: There is none.
    """
    braze = settings.braze
    if not effective(settings, target).audience.to_partner:
        return _secret((braze.api_key_env, "Braze REST API key"))[0]
    partner, secret = _secret(
        (braze.partner_key_env, _PARTNER_KEY),
        (braze.data_import_key_env, "data import key of the workspace"),
    )
    return PartnerKeys(partner, secret)


def _secret(*wanted: tuple[str, str]) -> list[str]:
    """Return what environment variables hold; of each, what it should be."""
    found = [os.environ.get(variable, "").strip() for variable, _ in wanted]
    problems = tuple(
        f"the environment variable {variable} holds no {what}"
        for (variable, what), one in zip(wanted, found, strict=True)
        if not one
    )
    if problems:
        raise SettingsError(problems)
    return found


def effective(settings: Settings, target: Target) -> Target:
    """Return an audience as it is sent; see ``cohorts.effective``."""
    audience = cohorts.effective(settings, target.name, target.audience)
    return replace(target, audience=audience)


def sync(  # noqa: PLR0913 (four of them are options)
    settings: Settings,
    target: Target,
    key: Key,
    *,
    force: bool = False,
    plan: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Send the difference, and write down what Braze acknowledged.

    Args:
        settings: Where everything is.
        target: Whose export.
        key: What ``key`` returns.
        force: Send what looks wrong as a whole, too, and what was sent already.
        plan: What ``preview`` kept: exactly that is sent, or nothing.
        stop: Asked while the export is read, and before every request.

    Raises:
        GuardError: The export looks wrong as a whole, or the plan is not up to date.
        BrazeRefusedError: Braze takes nothing until a person acts.
        BrazeDownError: Braze did not answer for too long.
        LeaseHeldError: Another run of this audience is at work.
        LedgerConflictError: Another run of this audience was first.
    """
    memory.return_what_is_freed()
    target = effective(settings, target)
    with at_work(settings, target) as work:
        if plan:
            return work.by_plan(plan, key, stop, force=force)
        delivery = _delivery(target)
        seen = work.journal.last
        digest = planning.digest(target.audience)
        if seen.get("sent") == [delivery.id, digest] and not force:
            return work.nothing_new(delivery.id)
        with gathered(target, delivery, room(settings), stop) as found:
            if found.stopped:
                return work.stopped_reading(delivery.id)
            return work.by_export(found, key, stop, force=force)


def retry(  # noqa: PLR0913 (two of them are options)
    settings: Settings,
    target: Target,
    run: str,
    key: Key,
    *,
    unknown: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Send once more what a run could not.

    Args:
        settings: Where everything is.
        target: Whose run.
        run: Its name, as ``status`` shows it.
        key: What ``key`` returns.
        unknown: What to do with objects of which nobody knows whether they arrived:
            ``send`` them again, ``keep`` them as sent, or leave them.
        stop: Asked before every request.

    Raises:
        GuardError: There is no such run, or a later one tried the same people again.
    """
    memory.return_what_is_freed()
    target = effective(settings, target)
    with at_work(settings, target) as work:
        return work.again(run, key, stop, unknown)


def runs(settings: Settings, target: Target, run: str = "") -> list[Run]:
    """Return the last runs of an audience, the newest first, or one by its name."""
    store, _ = look(settings, effective(settings, target))
    listed = [one.key for page in store.listing(SUMMARIES) for one in page]
    chosen = [one for one in listed if not run or one == summary(run)]
    bodies = store.gather(sorted(chosen, reverse=True)[:_SHOWN])
    return [Run(**json.loads(one)) for one in bodies]


def undecided(settings: Settings, target: Target) -> dict[str, int]:
    """Return how many objects of which run nobody knows the outcome of."""
    store, _ = look(settings, effective(settings, target))
    found: dict[str, int] = {}
    for step in Journal.open(store).undecided.values():
        found[step.run] = found.get(step.run, 0) + step.unknown_rows
    return found


def _counted(
    found: Iterator[Difference],
    figures: Figures,
    audience: Audience,
    end: Endpoint,
    shown: list[dict[str, str]],
) -> Iterator[pl.DataFrame]:
    """Count what goes by; yields the rows to send."""
    for one in found:
        figures.add(one, audience, end)
        if len(shown) < _SAMPLES:
            shown += planning.samples(one.send, _SAMPLES - len(shown))
        if len(one.send):
            yield one.send


def _delivery(target: Target) -> Delivery:
    return gathering.find(target, datetime.now(UTC))
