"""Whether a delivery is complete, by its marker or by its age; pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from currents_ingest.audiences.deliveries import modified
from currents_ingest.errors import ExportError, ExportNotReadyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from currents_ingest.audiences.deliveries import Part


def refuse_incomplete(
    url: str,
    parts: Sequence[Part],
    markers: Sequence[Part],
    *,
    settle: timedelta | None,
    now: datetime,
) -> None:
    """Raise unless a marker or the time that passed says that no part will follow.

    Args:
        url: Where the parts are, for errors.
        parts: One write.
        markers: The ``.DONE`` objects that belong to it.
        settle: How old every part must be where there is no marker; None where time
            alone does not count.
        now: The time of the listing.

    Raises:
        ExportNotReadyError: There is no marker, or parts are newer than it, or they
            are too young; says how long to wait.
        ExportError: Only time would count, and the store tells none.
    """
    newest = max(map(modified, parts))
    if any(modified(one) >= newest or one.modified is None for one in markers):
        return
    if markers:
        raise ExportNotReadyError(
            url,
            "is being written again: parts are newer than the .DONE marker (remove the "
            "marker if none is written any more)",
        )
    if settle is None:
        raise ExportNotReadyError(url, "has no .DONE marker yet")
    _refuse_young(url, parts, newest + settle - now, settle)


def _refuse_young(
    url: str, parts: Sequence[Part], wait: timedelta, settle: timedelta
) -> None:
    if settle and any(part.modified is None for part in parts):
        raise ExportError(
            url,
            "the store does not say when its objects were written, so a settle time "
            "cannot be kept; set it to 0 if the export is complete",
        )
    if settle and wait > timedelta(0):
        seconds = -(-wait // timedelta(seconds=1))
        raise ExportNotReadyError(
            url,
            f"was written to just now and has no .DONE marker; it counts as complete "
            f"in {seconds} s",
        )


def markers_of(
    parts: Sequence[Part], objects: Iterable[Part], markers: Iterable[Part]
) -> list[Part]:
    """Return the ``.DONE`` objects that speak of these parts.

    Amperity does not document the marker's key. We take ``<key>.DONE``,
    ``<key without extensions>.DONE``, the same of the folder beside it, and any other
    in the folder unless it is named after an object that is not one of the parts.

    Args:
        parts: One write, all in one folder.
        objects: Other data objects in that folder.
        markers: All markers in it and beside it.
    """
    folder = parts[0].key.rpartition("/")[0]
    own = {stem for part in parts for stem in stems(part.key)} | stems(folder)
    foreign = {stem for one in objects for stem in stems(one.key)} - own
    found = []
    for marker in markers:
        stem = marker.key[: -len(".DONE")]
        beside = marker.key.rpartition("/")[0] == folder
        if stem in own or (beside and stem not in foreign):
            found.append(marker)
    return found


def stems(key: str) -> set[str]:
    """Return a key, and the key without each of its extensions."""
    folder, _, name = key.rpartition("/")
    pieces = name.split(".")
    return {f"{folder}/{'.'.join(pieces[:n])}" for n in range(1, len(pieces) + 1)}
