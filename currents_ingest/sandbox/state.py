"""All that a sandbox remembers while it runs; changed by `endpoints` alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.limits import Window
from currents_ingest.sandbox.profiles import Store

if TYPE_CHECKING:
    from currents_ingest.sandbox.cohorts import Cohorts
    from currents_ingest.sandbox.faults import Faults
    from currents_ingest.sandbox.options import SandboxOptions


@dataclass(slots=True, kw_only=True)
class State:
    """Profiles, cohorts, rate windows and what was counted."""

    windows: dict[str, tuple[Window, ...]]
    """By endpoint; without an entry it has no limit."""
    faults: Faults
    drawn: int = 0
    """Requests since the faults were set: the next one's number."""
    store: Store = field(default_factory=Store)
    cohorts: Cohorts = field(default_factory=dict)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By endpoint and status, or "reset" by us, or "gone" before any answer."""
    objects: Counter[str] = field(default_factory=Counter)
    """Accepted, by array."""
    given: Counter[str] = field(default_factory=Counter)
    """Faults, by kind."""
    most_objects: int = 0
    """Sent in one request."""
    cohort_ids: int = 0
    """Accepted, of all kinds: joins and leaves."""
    most_ids: int = 0
    """Of those in one request."""
    contradictions: int = 0
    """Ids that one request both added and removed."""
    pending: int = 0
    """Requests answered and not applied yet."""


def fresh(options: SandboxOptions) -> State:
    """Return the state of a sandbox that was just started."""
    return State(windows=_windows(options), faults=options.faults)


def summary(state: State) -> dict[str, Any]:
    """Return the counts as they are told: numbers only, no ids."""
    requests: dict[str, dict[str, int]] = {}
    for (path, status), number in sorted(state.requests.items()):
        requests.setdefault(path, {})[status] = number
    return {
        "requests": requests,
        "objects": {
            name: state.objects[name] for name in ("attributes", "events", "purchases")
        },
        "most_objects": state.most_objects,
        "profiles": len(state.store.profiles),
        "events": len(state.store.events),
        "cohorts": len(state.cohorts),
        "cohort_ids": state.cohort_ids,
        "most_ids": state.most_ids,
        "contradictions": state.contradictions,
        "pending": state.pending,
        "faults": dict(sorted(state.given.items())),
    }


def _windows(options: SandboxOptions) -> dict[str, tuple[Window, ...]]:
    cohorts = [(250_000, 3600.0)]
    limits = {
        "/users/track": [(options.requests, options.per), (options.hourly, 3600.0)],
        "/users/track/bulk": [(options.bulk_requests, 1.0)],
        "/users/track/sync": [(500, 60.0)],
        "/users/export/ids": [(options.export_requests, 1.0)],
        "/partners/{name}/cohorts": cohorts,
        "/partners/{name}/cohorts/users": cohorts,
    }
    windows = {
        path: tuple(Window(requests=r, per=per) for r, per in pairs if r)
        for path, pairs in limits.items()
    }
    return {path: found for path, found in windows.items() if found}
