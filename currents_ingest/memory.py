"""What becomes of memory that is freed: kept for the next batch, or the system's again.

The system hands memory out page by page and clears each: a load that gave everything
back would spend a tenth of its time on that.
"""

from __future__ import annotations

import ctypes
import os
import sys

_ARENAS = max(1, (os.cpu_count() or 1) // 2)
"""Few, for what one of them has freed no other uses."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_KEEP = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 1 << 26}
_RETURN = {_MMAP_THRESHOLD: 1 << 20, _TRIM_THRESHOLD: 1 << 20, _TOP_PAD: 0}
"""Parameters of mallopt(3)."""
_POLARS = f"narenas:{_ARENAS},dirty_decay_ms:5000,muzzy_decay_ms:5000"
"""Options of jemalloc, Polars' own allocator: seconds, and not half of one, until what
nobody uses is given back."""


def keep_what_is_freed() -> None:
    """Keep what is freed for the next batch.

    Polars' memory is kept if it is not imported yet, and the environment does not say
    otherwise; all else where there is glibc.
    """
    os.environ.setdefault("_RJEM_MALLOC_CONF", _POLARS)
    _mallopt({_ARENA_MAX: _ARENAS} | _KEEP)


def return_what_is_freed() -> None:
    """Let glibc give large blocks back to the system as soon as they are freed."""
    _mallopt(_RETURN)


def _mallopt(parameters: dict[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
