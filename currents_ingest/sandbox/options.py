"""How a sandbox is set up."""

from __future__ import annotations

from dataclasses import dataclass, field

from currents_ingest.sandbox.faults import Faults

PERMISSIONS = (
    "users.track",
    "users.track.bulk",
    "users.track.sync",
    "users.export.ids",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOptions:
    """Everything that can be chosen; the defaults are a new Braze workspace."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 is any free one."""
    api_key: str = field(default="", repr=False)
    """Empty: any key is taken, but one must be sent."""
    permissions: tuple[str, ...] = PERMISSIONS
    """Of the key."""
    delay: float = 0.05
    """Seconds from an answer to its effect."""
    batch_limit: int = 75
    """Objects of one `/users/track` request."""
    legacy_batches: bool = False
    """Count that limit in each array by itself, as old contracts do."""
    requests: int = 3000
    """To `/users/track` in `per` seconds; 0 is no limit."""
    per: float = 3.0
    hourly: int = 0
    """Requests to `/users/track` in a clock hour; 0 is no limit."""
    mau_headers: bool = False
    """Tell rate limits as contracts by monthly active users do."""
    bulk_requests: int = 50
    """To `/users/track/bulk` in a second; 0 is no limit."""
    export_requests: int = 40
    """To `/users/export/ids` in a second; 0 is no limit."""
    blocked_ids: frozenset[str] = frozenset()
    """External ids that Braze would take for dummy users."""
    partner_key: str = field(default="", repr=False)
    data_import_key: str = field(default="", repr=False)
    """Of the cohort endpoints; empty: any is taken, but one must be sent."""
    faults: Faults = field(default_factory=Faults)
