"""When the next request may go: Braze's limits, kept from our side; pure but the clock.

Source: Braze docs, "API limits": so many requests in so many seconds, and for some
contracts an hourly window that turns on the clock hour.
"""

from __future__ import annotations

import re
from collections import deque

_UNITS = {"s": 1, "m": 60, "h": 3600}


class Pace:
    """At most so many requests in any window of so many seconds."""

    def __init__(self, requests: int, seconds: float) -> None:
        self.requests, self.seconds = requests, seconds
        self._gone: deque[float] = deque()
        self._held = 0.0

    @staticmethod
    def of(text: str) -> Pace:
        """Read ``3000/3s`` or ``250000/1h``."""
        match = re.fullmatch(r"(\d+)/(\d+(?:\.\d+)?)([smh])", text)
        if not match:
            raise ValueError(text)
        return Pace(int(match[1]), float(match[2]) * _UNITS[match[3]])

    def delay(self, now: float) -> float:
        """Return the seconds until a request may go; 0: it goes now, and is counted."""
        if now < self._held:
            return self._held - now
        while self._gone and self._gone[0] + self.seconds <= now:
            self._gone.popleft()
        if len(self._gone) < self.requests:
            self._gone.append(now)
            return 0.0
        return self._gone[0] + self.seconds - now

    def hold(self, until: float) -> None:
        """Let nothing go before a moment."""
        self._held = max(self._held, until)

    def seconds_for(self, requests: int) -> float:
        """Return how long so many requests take at this pace."""
        full = max(0, -(-requests // self.requests) - 1)
        return full * self.seconds


def to_next_hour(now: float) -> float:
    """Return the seconds until the clock hour turns (*now*: seconds since 1970)."""
    return 3600 - now % 3600
