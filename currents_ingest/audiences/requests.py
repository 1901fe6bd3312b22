"""What goes into one call, and what an answer means; no wire, no clock.

Source: Braze docs, POST /users/track, "Errors" and "API limits".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import polars as pl

from currents_ingest.audiences.columns import changing
from currents_ingest.audiences.mapping import (
    OBJECT,
    PERSON,
    RESERVED,
    fragment,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from currents_ingest.audience_config import Audience

_EPOCH = 1_000_000_000
"""A reset above it is a time, below it seconds to wait: Braze documents both."""
_PASSING = (408, 423, 425)
"""Answers below 500 that another try may change."""
_MARK = "@[0-9a-f]{16}$"
"""What follows an increment's cell and says which delivery it came with."""
PARTNERS = "/partners/"
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
_PARTNER_TEXTS = TEXTS | {
    401: "a key is wrong, or belongs to another instance: check braze.instance, "
    "braze.partner, the partner key (braze.partner_key_env) and the data import key "
    "(braze.data_import_key_env)",
    403: "the partner may not do this: ask Braze",
    404: "there is no such address: check braze.instance (or braze.url) and "
    "braze.partner",
}
"""The same, of partner cohorts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call carries."""

    array: str
    """What its objects are; empty: the one object is the whole."""
    rows: Sequence[int] = ()
    """Which row of its batch each object came from."""
    objects: Sequence[str] = ()
    """JSON."""
    path: str = "/users/track"
    cohort: str = ""
    """Id of the cohort that changes."""
    safe: bool = True
    """Sending it twice does no harm."""

    @property
    def body(self) -> bytes:
        """Return it as Braze wants it."""
        if not self.array:
            return self.objects[0].encode()
        if self.cohort:
            changes = joined_changes(map(orjson.loads, self.objects))
            return orjson.dumps({"cohort_id": self.cohort, self.array: changes})
        return f'{{"{self.array}":[{",".join(self.objects)}]}}'.encode()

    def halves(self) -> tuple[Request, Request]:
        """Cut it in two."""
        middle, end = len(self.rows) // 2, len(self.rows)
        return self.only(range(middle)), self.only(range(middle, end))

    def only(self, places: Iterable[int]) -> Request:
        """Return it with some of its objects."""
        chosen = list(places)
        return replace(
            self,
            rows=[self.rows[at] for at in chosen],
            objects=[self.objects[at] for at in chosen],
        )


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

    kind: Literal["taken", "split", "rest", "again", "unknown", "refused"]
    """split: in two, sent again; rest: without those that failed, sent again."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Objects that Braze did not take, with its reason."""
    reason: str = ""


def with_objects(send: pl.DataFrame, audience: Audience) -> pl.DataFrame:
    """Add the object of each person to what is to be sent."""
    cells = [one for one in send.columns if one not in RESERVED]
    counted = changing(audience, "inc")
    pairs = [
        pl.concat_str(
            pl.lit(orjson.dumps(one).decode() + ":"),
            pl.col(one).str.replace(_MARK, "") if one in counted else pl.col(one),
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


def joined_changes(changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put changes of one id each into one that adds and one that removes."""
    found: dict[bool, dict[str, Any]] = {}
    for change in changes:
        removes = change.pop("should_remove", False)
        whole = found.setdefault(removes, {"should_remove": True} if removes else {})
        for kind, ids in change.items():
            whole.setdefault(kind, []).extend(ids)
    return list(found.values())


def marked(rows: pl.DataFrame, audience: Audience, delivery: str) -> pl.DataFrame:
    """Note at increments which delivery they came with: each counts once."""
    return rows.with_columns(
        (pl.col(one) + f"@{delivery}")
        for one in changing(audience, "inc")
        if one in rows.columns
    )


def grouped(
    batch: pl.DataFrame, like: Request, *, most: int, size: int
) -> Iterator[Request]:
    """Put objects into as few requests as may be, one person's into one.

    Args:
        batch: Rows with PERSON and OBJECT; one person's follow each other.
        like: A request without objects.
        most: Objects in a request.
        size: Bytes in a request.
    """
    objects = batch[OBJECT].to_list()
    for start, end in _cuts(batch, most, size):
        yield replace(like, rows=range(start, end), objects=objects[start:end])


def _cuts(batch: pl.DataFrame, most: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where requests begin and end."""
    sizes = (batch[OBJECT].str.len_bytes() + 1).to_list()
    if batch[PERSON].is_unique().all() and max(sizes, default=0) * most <= size:
        for start in range(0, len(batch), most):
            yield start, min(start + most, len(batch))
        return
    begins = batch[PERSON].ne_missing(batch[PERSON].shift()).to_list()
    yield from _careful_cuts(begins, sizes, most, size)


def _careful_cuts(
    begins: list[bool], sizes: list[int], most: int, size: int
) -> Iterator[tuple[int, int]]:
    """Cut before a person whose objects would not fit; within one only if it must be.

    Args:
        begins: Whether a row is the first of its person.
        sizes: Bytes of each row's object.
        most: Objects in a request.
        size: Bytes in a request.
    """
    start = person = 0
    taken = 0
    for at, need in enumerate(sizes):
        if begins[at]:
            person = at
        if at - start == most or (at > start and taken + need > size):
            end = person if person > start else at
            yield start, end
            start, taken = end, sum(sizes[end:at])
            if at - start == most or (at > start and taken + need > size):
                yield start, at  # one person has more than a request takes
                start, taken = at, 0
        taken += need
    if start < len(sizes):
        yield start, len(sizes)


def verdict(request: Request, answer: Answer) -> Verdict:
    """Say what an answer means.

    A 2xx without ``message: success`` is none: such answers have been seen. Where
    nobody knows whether the request was applied, only a safe one is sent again.
    """
    texts = _PARTNER_TEXTS if request.path.startswith(PARTNERS) else TEXTS
    if answer.status in texts:
        return Verdict(kind="refused", reason=texts[answer.status])
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


def poisoned(request: Request, cause: str) -> Verdict:
    """Say what to do with a request that alone is never answered: narrow it down."""
    return _split(request, f"{cause}, again and again")


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
    if request.path.startswith(PARTNERS) and isinstance(message, str):
        return Verdict(kind="taken")  # it says no more of any id
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
    if len(request.rows) == 1:
        return Verdict(kind="taken", failed={0: reason})
    if request.safe:
        return Verdict(kind="split", reason=reason)
    told = f"{reason} (Braze did not say of which object)"
    return Verdict(kind="unknown", failed=failed, reason=told)


def _bad_request(request: Request, answer: Answer) -> Verdict:
    """Nothing of it was taken: without the objects named it may be, or in two."""
    told = _json(answer.body)
    failed, _ = _errors(request, told)
    if failed:
        whole = len(failed) == len(request.rows)
        return Verdict(kind="taken" if whole else "rest", failed=failed)
    return _split(request, f"{answer.status} {told.get('message') or 'bad request'}")


def _split(request: Request, reason: str) -> Verdict:
    if len(request.rows) == 1:
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
    errors = told.get("errors")
    for error in errors if isinstance(errors, list) else ():
        reason = error.get("type") if isinstance(error, dict) else error
        index = error.get("index") if isinstance(error, dict) else None
        if isinstance(index, int) and 0 <= index < len(request.rows):
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
