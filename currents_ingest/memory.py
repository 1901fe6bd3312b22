"""Keep freed memory from staying with the process."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_LARGE = 1 << 20


def return_what_is_freed() -> None:
    """Let glibc give large blocks back to the system as soon as they are freed.

    By default it learns to keep blocks of up to 32 MiB, so that a process that works
    through many batches holds about twice the memory that it uses. Elsewhere than on
    glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _LARGE)
