"""What goes into one call, and what an answer means; no wire, no clock.

Source: Braze docs, POST /users/track, "Errors" and "API limits".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
import polars as pl

from currents_ingest.audiences.mapping import (
    OBJECT,
    PERSON,
    RESERVED,
    fragment,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from currents_ingest.audience_config import Audience

_EPOCH = 1_000_000_000
"""A reset above it is a time, below it seconds to wait: Braze documents both."""
_PASSING = (408, 423, 425)
"""Answers below 500 that another try may change."""
_person = attrgetter("person")
_MARK = 17
"""Characters after an increment's cell that say which delivery it came with."""
TEXTS = {
    401: "the key is wrong, lacks users.track, or belongs to another instance: check "
    "braze.instance and the key's variable (braze.api_key_env)",
    403: "the account or the key may not do this: give the key users.track (and "
    "users.track.bulk with braze.bulk), or ask Braze",
    404: "there is no such address: check braze.instance or braze.url",
    415: "it did not take our content type: something between us and Braze changes "
    "requests",
}
"""What to do about answers that stop a run."""


class Item(NamedTuple):
    """One object of a request, and the row of its batch that it came from."""

    at: int
    person: str
    json: str
    size: int
    """Bytes of the JSON and a comma."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call carries."""

    array: Literal["attributes", "events", "purchases"]
    items: tuple[Item, ...]
    safe: bool = True
    """Sending it twice does no harm."""

    @property
    def body(self) -> bytes:
        """Return it as Braze wants it."""
        inner = ",".join([one.json for one in self.items])
        return f'{{"{self.array}":[{inner}]}}'.encode()

    def halves(self) -> tuple[Request, Request]:
        """Cut it in two."""
        middle = len(self.items) // 2
        first, second = self.items[:middle], self.items[middle:]
        return replace(self, items=first), replace(self, items=second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer means for a request."""

    kind: Literal["taken", "split", "again", "unknown", "refused"]
    failed: Mapping[int, str] = field(default_factory=dict)
    """Of a request that was taken: objects that were not, with Braze's reason."""
    reason: str = ""


def with_objects(send: pl.DataFrame, audience: Audience) -> pl.DataFrame:
    """Add the object of each person to what is to be sent."""
    cells = [one for one in send.columns if one not in RESERVED]
    counted = changing(audience, "inc")
    pairs = [
        pl.concat_str(
            pl.lit(orjson.dumps(one).decode() + ":"),
            pl.col(one).str.head(-_MARK) if one in counted else pl.col(one),
        )
        for one in cells
    ]
    flags = {
        "_update_existing_only": audience.update_existing_only,
        "_merge_objects": audience.merge_objects or None,
    }
    told = [
        pl.lit(f'"{name}":{orjson.dumps(value).decode()}')
        for name, value in flags.items()
        if value is not None
    ]
    inner = pl.concat_str(
        [fragment(audience.identifier, pl.col(PERSON)), *told, *pairs],
        separator=",",
        ignore_nulls=True,
    )
    return send.with_columns(
        pl.concat_str(pl.lit("{"), inner, pl.lit("}")).alias(OBJECT)
    )


def marked(rows: pl.DataFrame, audience: Audience, delivery: str) -> pl.DataFrame:
    """Note at increments which delivery they came with: each counts once."""
    return rows.with_columns(
        (pl.col(one) + f"@{delivery}")
        for one in changing(audience, "inc")
        if one in rows.columns
    )


def changing(audience: Audience, *operations: str) -> list[str]:
    """Return the attributes that certain operations change, sorted."""
    names = {source.lower(): name for source, name in audience.columns.items()}
    return sorted(
        names.get(source.lower(), source)
        for source, what in audience.operations.items()
        if what in operations
    )


def unsafe(audience: Audience) -> list[str]:
    """Return the attributes whose update must not arrive twice."""
    return changing(audience, "inc", "add")


def items(rows: pl.DataFrame) -> Iterator[Item]:
    """Yield the objects of rows, in their order."""
    sizes = rows[OBJECT].str.len_bytes() + 1
    columns = rows[PERSON].to_list(), rows[OBJECT].to_list(), sizes.to_list()
    return map(Item, range(len(rows)), *columns)


def grouped(
    found: Iterable[Item], array: Any, *, most: int, size: int, safe: bool
) -> Iterator[Request]:
    """Put objects into as few requests as may be, one person's into one.

    Args:
        found: Objects; one person's follow each other.
        array: Which array they go into.
        most: Objects in a request.
        size: Bytes in a request.
        safe: Whether they may be sent twice.
    """
    taken: list[Item] = []
    room = size
    for _, several in groupby(found, _person):
        together = list(several)
        fits = len(taken) + len(together) <= most and _size(together) <= room
        pieces = (
            [together] if fits or len(together) == 1 else _pieces(together, most, size)
        )
        for piece in pieces:
            need = _size(piece)
            if taken and (len(taken) + len(piece) > most or need > room):
                yield Request(array=array, items=tuple(taken), safe=safe)
                taken, room = [], size
            taken += piece
            room -= need
    if taken:
        yield Request(array=array, items=tuple(taken), safe=safe)


def _pieces(together: list[Item], most: int, size: int) -> Iterator[list[Item]]:
    """Cut one person's objects into pieces that fit a request each."""
    piece: list[Item] = []
    for one in together:
        if piece and (len(piece) == most or _size(piece) + one.size > size):
            yield piece
            piece = []
        piece.append(one)
    yield piece


def _size(several: list[Item]) -> int:
    return several[0].size if len(several) == 1 else sum(one.size for one in several)


def verdict(request: Request, answer: Answer) -> Verdict:
    """Say what an answer means.

    A 2xx without ``message: success`` is none: such answers have been seen. Where
    nobody knows whether the request was applied, only a safe one is sent again.
    """
    if answer.status in TEXTS:
        return Verdict(kind="refused", reason=TEXTS[answer.status])
    if answer.status == 429:
        return Verdict(kind="again", reason="429 too many requests")
    if answer.status in {400, 413}:
        return _bad_request(request, answer)
    if 200 <= answer.status < 300:
        return _success(request, answer)
    if answer.status >= 500 or answer.status in _PASSING:
        return _perhaps(request, f"{answer.status}")
    return Verdict(kind="refused", reason="we do not know why; check braze.url")


def lost(request: Request, cause: str) -> Verdict:
    """Say what it means that no answer came, though the request may have arrived."""
    return _perhaps(request, cause)


def wait(answer: Answer, now: float) -> float | None:
    """Return the seconds that an answer asks us to wait; None if it names none.

    Args:
        answer: One that said 429, or whose window is used up.
        now: Seconds since 1970.

    Source: Braze docs, "API limits": ``X-Ratelimit-Retry-After`` in seconds on
    accounts billed by active users, else ``X-RateLimit-Reset`` as a time; there are
    accounts where it is a number of seconds.
    """
    for name in ("x-ratelimit-retry-after", "retry-after"):
        if (seconds := _number(answer.headers.get(name))) is not None:
            return max(0.0, seconds)
    reset = _number(answer.headers.get("x-ratelimit-reset"))
    if reset is None:
        return None
    return max(0.0, reset - now if reset > _EPOCH else reset)


def used_up(answer: Answer) -> bool:
    """Tell whether nothing is left of the window that the headers describe."""
    left = _number(answer.headers.get("x-ratelimit-remaining"))
    return left is not None and left <= 0


def _success(request: Request, answer: Answer) -> Verdict:
    told = _json(answer.body)
    message = told.get("message")
    if answer.status == 202 and message == "queued":
        return Verdict(kind="taken")
    if message != "success":
        return _perhaps(request, f"{answer.status} without success")
    failed, nameless = _errors(request, told)
    if nameless:
        return _nameless(request, failed, nameless)
    return Verdict(kind="taken", failed=failed)


def _nameless(request: Request, failed: Mapping[int, str], reason: str) -> Verdict:
    """Errors that name no object: one alone is meant itself, else nobody knows who."""
    if len(request.items) == 1:
        return Verdict(kind="taken", failed={0: reason})
    if request.safe:
        return Verdict(kind="split", reason=reason)
    told = f"{reason} (Braze did not say of which object)"
    return Verdict(kind="unknown", failed=failed, reason=told)


def _bad_request(request: Request, answer: Answer) -> Verdict:
    """Nothing of it was taken: the objects named are bad, or it is cut in two."""
    told = _json(answer.body)
    failed, _ = _errors(request, told)
    if failed and len(failed) == len(request.items):
        return Verdict(kind="taken", failed=failed)
    return _split(request, f"{answer.status} {told.get('message') or 'bad request'}")


def _split(request: Request, reason: str) -> Verdict:
    if len(request.items) == 1:
        return Verdict(kind="taken", failed={0: reason})
    return Verdict(kind="split", reason=reason)


def _perhaps(request: Request, cause: str) -> Verdict:
    if request.safe:
        return Verdict(kind="again", reason=cause)
    return Verdict(kind="unknown", reason=f"{cause}: nobody knows whether it arrived")


def _errors(request: Request, told: Mapping[str, Any]) -> tuple[dict[int, str], str]:
    """Return errors by object, and one that names none."""
    failed: dict[int, list[str]] = {}
    nameless = ""
    for error in told.get("errors") or ():
        reason = error.get("type") if isinstance(error, dict) else error
        index = error.get("index") if isinstance(error, dict) else None
        if isinstance(index, int) and 0 <= index < len(request.items):
            failed.setdefault(index, []).append(str(reason))
        else:
            nameless = str(reason)
    return {at: "; ".join(all_) for at, all_ in failed.items()}, nameless


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
