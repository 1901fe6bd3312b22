"""How many requests an endpoint takes, and the headers that say so.

Source: Braze docs, "API limits" and "POST /users/track" (limits by MAU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A fixed window: it starts at a multiple of its length, as a clock hour does."""

    requests: int
    """Allowed in one window."""
    per: float
    """Seconds."""
    number: int = 0
    """Of the current window, counted from the epoch."""
    used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a request may pass, and what its headers tell."""

    allowed: bool
    limit: int
    remaining: int
    reset: float
    """Epoch seconds at which the window ends."""


def take(windows: Sequence[Window], now: float) -> tuple[Verdict, tuple[Window, ...]]:
    """Count one request against every window, if all have room.

    Args:
        windows: At least one. The last is the one that headers describe, unless
            another is used up.
        now: Epoch seconds.

    Returns:
        The verdict, and the windows afterwards; a refused request counts nowhere.
    """
    current = [_at(window, now) for window in windows]
    full = [window for window in current if window.used >= window.requests]
    if full:
        return _verdict(full[-1], allowed=False), tuple(current)
    counted = tuple(replace(window, used=window.used + 1) for window in current)
    return _verdict(counted[-1], allowed=True), counted


def epoch_headers(verdict: Verdict) -> dict[str, str]:
    """Return the headers of most contracts: the reset is a time, in epoch seconds."""
    return {
        "X-RateLimit-Limit": str(verdict.limit),
        "X-RateLimit-Remaining": str(verdict.remaining),
        "X-RateLimit-Reset": str(math.ceil(verdict.reset)),
    }


def mau_headers(verdict: Verdict, now: float) -> dict[str, str]:
    """Return the headers of contracts by MAU: seconds; a refusal says nothing else."""
    seconds = str(max(1, math.ceil(verdict.reset - now)))
    if not verdict.allowed:
        return {"X-Ratelimit-Retry-After": seconds}
    return epoch_headers(verdict) | {"X-RateLimit-Reset": seconds}


def _at(window: Window, now: float) -> Window:
    number = int(now // window.per)
    return window if number == window.number else replace(window, number=number, used=0)


def _verdict(window: Window, *, allowed: bool) -> Verdict:
    return Verdict(
        allowed=allowed,
        limit=window.requests,
        remaining=window.requests - window.used,
        reset=(window.number + 1) * window.per,
    )
