"""One run at a time: a numbered object that is renewed while the run is alive.

The ledger needs no lease to be right; the lease saves work that would be lost. It
uses conditional creation alone (a folder has no conditional update): each renewal
creates the next number and removes the one before.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from currents_ingest.errors import (
    AlreadyThereError,
    LeaseHeldError,
    LeaseLostError,
    NotThereError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from currents_ingest.store import Store

log = structlog.get_logger()

FOLDER = "_ledger/lease"


class Lease:
    """A lease that is held; a thread renews it three times per period."""

    def __init__(
        self, store: Store, holder: str, period: timedelta, number: int
    ) -> None:
        self._store, self._holder, self._period = store, holder, period
        self._number = number
        self._since = datetime.now(UTC)
        self._renewed = time.monotonic()
        self._lost = False
        self._wake = threading.Event()

    def check(self) -> None:
        """Make sure, before a commit, that nobody else can have taken over.

        Raises:
            LeaseLostError: We slept or were cut off for longer than the period.
        """
        idle = time.monotonic() - self._renewed
        if self._lost or idle > self._period.total_seconds():
            raise LeaseLostError(idle)

    def keep(self) -> None:
        """Renew until the lease is lost or ended; the renewing thread's work."""
        while not self._wake.wait(self._period.total_seconds() / 3):
            try:
                self._renew()
            except AlreadyThereError:
                self._lost = True
                return
            except (StoreError, NotThereError) as error:
                log.warning("lease not renewed", cause=error.told())

    def stop(self) -> None:
        """Stop renewing."""
        self._wake.set()

    def give_back(self) -> None:
        """Let the next run begin at once."""
        if not self._lost:
            now = datetime.now(UTC)
            _replace(self._store, self._number, self._body(now - self._period))

    def begin(self) -> None:
        """Create the first object; raises AlreadyThereError if a rival did."""
        self._store.create(_key(self._number), self._body(self._since))

    def _renew(self) -> None:
        started = time.monotonic()
        body = self._body(datetime.now(UTC))
        _replace(self._store, self._number, body)
        self._number += 1
        if max(_numbers(self._store), default=0) != self._number:
            raise AlreadyThereError(_key(self._number))
        self._renewed = started

    def _body(self, now: datetime) -> bytes:
        return json.dumps(
            {
                "holder": self._holder,
                "since": _text(self._since),
                "expires": _text(now + self._period),
            }
        ).encode()


@contextmanager
def hold(store: Store, holder: str, period: timedelta) -> Iterator[Lease | None]:
    """Hold the lease for the block; a period of zero holds none.

    Raises:
        LeaseHeldError: Someone else has it; says who and since when.
    """
    if not period:
        yield None
        return
    lease = _taken(store, holder, period)
    keep = partial(copy_context().run, lease.keep)  # its warnings name the run
    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        try:
            lease.stop()
            thread.join()
            lease.give_back()
        except (StoreError, AlreadyThereError) as error:
            log.warning("lease not given back; it will expire", cause=error.told())


def holder(store: Store) -> str | None:
    """Say who holds the lease and since when; None if nobody does."""
    last = max(_numbers(store), default=0)
    held = _read(store, last) if last else None
    if held is None or datetime.fromisoformat(held["expires"]) <= datetime.now(UTC):
        return None
    return f"{held['holder']}, since {held['since']}"


def _taken(store: Store, holder: str, period: timedelta) -> Lease:
    for _ in range(3):
        numbers = _numbers(store)
        last = max(numbers, default=0)
        held = _read(store, last) if last else None
        if held and datetime.fromisoformat(held["expires"]) > datetime.now(UTC):
            raise LeaseHeldError(held["holder"], held["since"], held["expires"])
        lease = Lease(store, holder, period, last + 1)
        try:
            lease.begin()
        except AlreadyThereError:
            continue
        store.delete(map(_key, numbers))
        return lease
    raise LeaseHeldError("another run", "a moment ago", "unknown")


def _replace(store: Store, number: int, body: bytes) -> None:
    store.create(_key(number + 1), body)
    store.delete([_key(number)])


def _numbers(store: Store) -> list[int]:
    return [
        int(one.key.rsplit("/", 1)[-1].removesuffix(".json"))
        for page in store.listing(FOLDER)
        for one in page
    ]


def _read(store: Store, number: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(store.get(_key(number)))
    except NotThereError:  # renewed or given back this moment
        return None
    return found


def _key(number: int) -> str:
    return f"{FOLDER}/{number:010}.json"


def _text(time_: datetime) -> str:
    return time_.isoformat(timespec="milliseconds")
