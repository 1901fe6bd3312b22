"""Which of the objects that were listed are one delivery; pure.

The rule: **a pause longer than the settle time, and than a quarter of an hour, ends a
write; the newest write is the delivery.** Names are cross-checked. They may differ in
the part's number or in generated ids, and an id that all parts of a job share holds its
parts together across pauses. Where two days, folders or kinds of names were written
without a pause between them, a day that began after all others had ended is taken; in
every other case we refuse, rather than mix two deliveries. A pattern says that whatever
it matches is of one kind.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from currents_ingest.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

_PAUSE = timedelta(minutes=15)
"""The shortest pause that ends a write; parts of 2 GB may take minutes each."""
_NEVER = datetime.min.replace(tzinfo=UTC)
_ID = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?<![^\W_])(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}(?![^\W_])",
    re.IGNORECASE,
)
"""A UUID, or hexadecimal digits: what a writer generates."""
_DAY = re.compile(
    r"(?<!\d)"
    r"(?:(?:19|20)\d{2}(?P<s>[-_./ ]?)(?:0[1-9]|1[0-2])(?P=s)(?:0[1-9]|[12]\d|3[01])"
    r"|\d{1,2}(?P<t>[-_./ ])\d{1,2}(?P=t)(?:19|20)\d{2})"
    r"(?!\d(?!\d{3}(?:\d\d)?(?!\d)))"
)
"""A day as filename templates write it, maybe with four or six digits of time after."""
_TIME = re.compile(r"(?<=<day>)[-_T ]?\d{4}(?:\d\d)?(?!\d)")
"""The time of day after it, which is no part's number."""
_LETTERS = str.maketrans("0123456789", "abcdefghij")
_NUMBERED = re.compile(r"(?:.*/)?(?:part[-_]?\d|[\d_]+(?:\.|$))", re.IGNORECASE)
"""A name that begins with a part's number, or has nothing else."""
_PART = re.compile(r"(?:.*/)?part[-_]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_PADDED = re.compile(r"(?<!\d)\d{3,7}(?!\d)")
"""A part's number amid other text; ``group_1`` and ``group_2`` are two groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One object of a delivery, as it was listed."""

    key: str
    """Its path in the store, or its URL without query and credentials."""
    size: int
    """Bytes; 0 too where the store does not tell."""
    etag: str
    """What changes when the object does."""
    modified: datetime | None = None
    path: str = field(default="", repr=False, compare=False)
    """How the store opens it; may hold a signature, so it is never shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The parts of one export."""

    url: str
    """Where it was looked for, without credentials."""
    parts: tuple[Part, ...]
    """In the order of their keys."""
    address: str = field(default="", repr=False, compare=False)
    """The URL with credentials; ``""`` if it is ``url``."""

    @property
    def id(self) -> str:
        """Return 16 hex digits that differ when any part does."""
        lines = [f"{part.key}\0{part.etag}\0{part.size}" for part in self.parts]
        return sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Name:
    """What a part's name tells of the write that it is from."""

    folder: str
    kind: str
    """The name without what may differ from part to part and from day to day."""
    day: str
    """The dates in folder and name, as they are written; ``""`` without any."""
    ids: tuple[str, ...]
    number: int | None
    """The part's number, where it is the name's only or last one."""


def newest_write(
    url: str, parts: Sequence[Part], root: str, settle: timedelta
) -> tuple[Part, ...]:
    """Return the parts of the newest write, by key.

    Args:
        url: Where they were found, for errors.
        parts: All data objects there.
        root: What their keys begin with; a difference in it means nothing.
        settle: The pause after which a write is held to be over.

    Raises:
        ExportError: Two deliveries cannot be told apart.
    """
    names = {part.key: _name(part.key.removeprefix(root)) for part in parts}
    kept = _after_last_pause(parts, max(settle, _PAUSE))
    if "*" not in url:
        _refuse_kinds(url, kept, names)
    kept = _of_one_day(url, kept, names)
    kept = _of_one_job(url, kept, names)
    kept += _rest_of_job(kept, parts, names)
    _refuse_gap(url, kept, parts, names)
    return tuple(sorted(kept, key=lambda part: part.key))


def _after_last_pause(parts: Iterable[Part], pause: timedelta) -> list[Part]:
    """Return what was written up to the newest part without a longer pause."""
    newest_first = sorted(parts, key=modified, reverse=True)
    kept = newest_first[:1]
    for part in newest_first[1:]:
        if modified(kept[-1]) - modified(part) > pause:
            break
        kept.append(part)
    return kept


def _refuse_kinds(url: str, parts: list[Part], names: dict[str, _Name]) -> None:
    kinds = {names[part.key].kind for part in parts}
    if len(kinds) > 1:
        raise ExportError(
            url,
            f"holds {len(kinds)} kinds of files that were written together, whose "
            "names differ by more than a date, a number or an id; give the URL of one, "
            "or a pattern (with *) that only its parts match",
        )


def _of_one_day(url: str, parts: list[Part], names: dict[str, _Name]) -> list[Part]:
    days = _grouped(parts, lambda part: names[part.key].day)
    kept = _last_alone(url, days, "days")
    folders = {names[part.key].folder for part in kept}
    if len(folders) > 1:
        raise ExportError(
            url,
            f"holds {len(folders)} folders that were written together; give the URL of "
            "one",
        )
    return kept


def _of_one_job(url: str, parts: list[Part], names: dict[str, _Name]) -> list[Part]:
    """Part two jobs that both wrote a part of the same number."""
    numbers = [names[part.key].number for part in parts]
    if None in numbers or len(set(numbers)) == len(numbers):
        return parts
    return _last_alone(url, _grouped(parts, lambda one: names[one.key].ids), "jobs")


def _last_alone(url: str, groups: dict[T, list[Part]], what: str) -> list[Part]:
    """Return the group that began when all others had ended."""
    *others, last = sorted(groups.values(), key=lambda one: max(map(modified, one)))
    began = min(map(modified, last))
    if any(max(map(modified, other)) >= began for other in others):
        raise ExportError(
            url,
            f"holds the parts of {len(groups)} {what}, written at the same time; give "
            "the URL of one, or remove the others",
        )
    return last


def _rest_of_job(
    kept: list[Part], parts: Iterable[Part], names: dict[str, _Name]
) -> list[Part]:
    """Return older parts whose id says that they are from the same job."""
    jobs = {names[part.key].ids for part in kept} - {()}
    folders = {names[part.key].folder for part in kept}
    return [
        part
        for part in parts
        if part not in kept
        and names[part.key].ids in jobs
        and names[part.key].folder in folders
    ]


def _refuse_gap(
    url: str, kept: list[Part], parts: Sequence[Part], names: dict[str, _Name]
) -> None:
    """Raise if older parts may be the lower numbers of the same slow write."""
    rows = {(names[part.key].folder, names[part.key].kind) for part in kept}
    days = {names[part.key].day for part in kept}
    older = [
        part
        for part in parts
        if part not in kept
        and (names[part.key].folder, names[part.key].kind) in rows
        and names[part.key].day in days
        and not names[part.key].ids
    ]
    numbers = sorted(n for part in kept if (n := names[part.key].number) is not None)
    if not older or not numbers:
        return
    first = numbers[0]
    if first > 1 or numbers != list(range(first, first + len(numbers))):
        raise ExportError(
            url,
            f"holds {len(kept)} new and {len(older)} older parts, and the new ones do "
            "not number all from the first; remove what is left of an older export, or "
            "set a longer settle time if it is one slow write",
        )


def _grouped(parts: Iterable[Part], by: Callable[[Part], T]) -> dict[T, list[Part]]:
    groups: dict[T, list[Part]] = defaultdict(list)
    for part in parts:
        groups[by(part)].append(part)
    return dict(groups)


def _name(relative: str) -> _Name:
    """Take a key apart, below the folder that was asked for."""
    undated = _TIME.sub(
        lambda time: time[0].translate(_LETTERS), _DAY.sub("<day>", relative)
    )
    bare = _ID.sub("<id>", undated)
    numbers = _PART.findall(bare) or _NUMBER.findall(bare)
    masked = _NUMBER if _NUMBERED.match(bare) else _PADDED
    return _Name(
        folder=relative.rpartition("/")[0],
        kind=masked.sub("<n>", bare),
        day=" ".join(found[0] for found in _DAY.finditer(relative)),
        ids=tuple(_ID.findall(undated)),
        number=int(numbers[-1][:18]) if numbers else None,
    )


def modified(part: Part) -> datetime:
    """Return when a part was written; long ago where the store does not tell."""
    return part.modified or _NEVER
