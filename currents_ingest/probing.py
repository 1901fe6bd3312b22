"""Attempts on the feeds bucket, each told by itself; the probe object goes again."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from currents_ingest.errors import AlreadyThereError, CurrentsError
from currents_ingest.ledger import PROBE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from currents_ingest.store import Store

State = Literal["ok", "warning", "problem", "skipped"]
_SKEW, _TOO_SKEW = timedelta(seconds=60), timedelta(minutes=5)
"""S3 refuses requests whose time is off by more than 15 minutes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one attempt came to."""

    state: State
    tried: str
    came: str
    mend: str = ""


def written(store: Store) -> Iterator[Finding]:
    """Write a probe object, do with it all that a run does, and remove it."""
    key = f"{PROBE}/{secrets.token_hex(8)}"
    made = attempt(
        f"write {store.url}/{PROBE}/...", lambda: store.create(key, b"probe")
    )
    yield made
    if made.state != "ok":
        return
    yield _conditional(store, key)
    yield attempt("read it again", lambda: store.get(key))
    yield attempt("copy it on the server", lambda: store.copy(key, f"{key}-copy"))
    yield _clock(store, key)
    yield attempt("remove it", lambda: store.delete([key, f"{key}-copy"]))


def attempt(tried: str, call: Callable[[], object]) -> Finding:
    """Try something that raises if it does not work."""
    try:
        call()
    except CurrentsError as error:
        return Finding("problem", tried, error.told(), mend_of(error.told()))
    return Finding("ok", tried, "it works")


def _conditional(store: Store, key: str) -> Finding:
    tried = "create it once more, on the condition that it is new"
    try:
        store.create(key, b"again")
    except AlreadyThereError:
        return Finding("ok", tried, "refused, as it must be")
    except CurrentsError as error:
        return Finding("problem", tried, error.told(), mend_of(error.told()))
    return Finding(
        "warning",
        tried,
        "the store ignores the condition (If-None-Match)",
        "Let one process at a time write: only the lease keeps two apart here.",
    )


def _clock(store: Store, key: str) -> Finding:
    """Compare our clock with the store's."""
    tried, there = "compare clocks with the store", store.stat(key)
    if there is None or there.modified is None:
        return Finding("skipped", tried, "it tells no time")
    off = datetime.now(UTC) - there.modified
    told = f"{abs(off).total_seconds():.0f} s apart"
    if abs(off) < _SKEW:
        return Finding("ok", tried, told)
    state: State = "problem" if abs(off) > _TOO_SKEW else "warning"
    return Finding(state, tried, told, "Set this machine's clock by NTP.")


def mend_of(told: str) -> str:
    """Say what to do about what a store said."""
    low = told.lower()
    if any(one in low for one in ("403", "denied", "forbidden", "unauthor")):
        return "Allow it: the policy below has all that is needed."
    if "nosuchbucket" in low or "404" in low:
        return "Look at the URL in the settings: there is no such bucket."
    return "Look at the URL in the settings, and at the network."
