"""After delivery: Amperity's workflow is started, and what it read is compared."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from currents_ingest import reconcile
from currents_ingest.amperity_api import Client
from currents_ingest.errors import AmperityError
from currents_ingest.manifest import Entry, Started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.session import Session

log = structlog.get_logger()


def follow_up(session: Session, now: datetime, *, compare: bool) -> tuple[str, ...]:
    """Do what the settings ask for after delivery; return what went wrong.

    Args:
        session: The run that has delivered.
        now: The time.
        compare: Compare what Amperity read as well, if the settings want it.
    """
    settings = session.settings.amperity
    if not settings.tenant:
        return ()
    try:
        start(session, now)
        found = tuple(_differences(session, now)) if compare else ()
    except AmperityError as error:
        found = (str(error),)
    for told in found:
        log.warning("amperity", told=told)
    return found


def start(session: Session, now: datetime) -> Entry | None:
    """Start the workflow over the delivery days that none has run over yet.

    The ledger remembers, so what could not be started is started by a later run.

    Raises:
        AmperityError: It was not started.
    """
    settings, cache = session.settings.amperity, session.ledger.cache
    waiting, last = cache.waiting(), cache.started()
    early = last is not None and now - last < settings.start_every
    if not settings.workflow or waiting is None or early:
        return None
    since, until = (reconcile.midnight(day) for day in waiting)
    until += timedelta(days=1)
    head = session.ledger.cache.head
    run = Client(settings).start(since, until)
    log.info("workflow started", config_id=settings.workflow, run=run)

    def draft() -> Entry:
        made = Started(
            config_id=settings.workflow,
            run=run,
            since=since,
            until=until,
            again=session.ledger.cache.head != head,
        )
        return Entry(at=now, run=session.token, started=made)

    return session.decide(draft)


def _differences(session: Session, now: datetime) -> Iterator[str]:
    settings = session.settings.amperity
    if settings.reconcile:
        yield from reconcile.reconcile(settings, session.ledger, now).differences
