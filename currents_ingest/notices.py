"""What a message says that S3 sent, however it is wrapped.

S3 notifies a queue directly, through SNS (with or without its envelope) or through
EventBridge. Source: Amazon S3 User Guide, "Event message structure" and "EventBridge
event message structure"; Amazon SNS Developer Guide, "Raw message delivery".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_plus

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Other = Literal["test event", "other event", "not understood"]
"""What is no new object: S3's question whether we are there, a removal and the like."""
_DEEPEST = 6
"""Wrappings within each other; a real message has four."""
_LARGEST = 2**53
_ETAG = re.compile(r'"?([0-9A-Za-z+/=_.-]{8,})"?')
"""Hexadecimal, with -<parts> after an upload in parts. It becomes a header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An object was written."""

    bucket: str
    key: str
    etag: str
    """In quotes, as a listing has it."""
    size: int
    at: datetime | None
    """When; None if that cannot be read."""


def read(body: str) -> list[Notice | Other]:
    """Read a message; there is at least one thing in it, and no text is an error."""
    return list(_unwrapped(body, _DEEPEST))


def _unwrapped(told: Any, depth: int) -> Iterator[Notice | Other]:
    match told if depth else None:
        case str():
            yield from _unwrapped(_parsed(told), depth - 1)
        case {"Type": "Notification", "Message": str(text)}:
            yield from _unwrapped(text, depth - 1)
        case {"Records": [_, *_] as records}:
            for one in records:
                yield from _unwrapped(one, depth - 1)
        case event:
            yield _of(event)


def _of(event: Any) -> Notice | Other:
    match event:
        case {"Event": "s3:TestEvent"}:
            return "test event"
        case {"eventName": str(name), "s3": dict(about)}:
            if name.removeprefix("s3:").startswith("ObjectCreated:"):
                return _notice(about, event.get("eventTime"), unquote_plus)
            return "other event"
        case {"source": "aws.s3", "detail-type": str(name), "detail": dict(about)}:
            if name == "Object Created":  # whose key is as it is
                return _notice(about, event.get("time"), str)
            return "other event"
    return "not understood"


def _notice(about: Any, at: Any, plain: Callable[[str], str]) -> Notice | Other:
    match about:
        case {
            "bucket": {"name": str(bucket)},
            "object": {"key": str(key), "size": int(size), **more},
        } if 0 <= size < _LARGEST:
            etag = _ETAG.fullmatch(str(more.get("etag") or more.get("eTag")))
            if etag:
                return Notice(
                    bucket=bucket,
                    key=plain(key),
                    etag=f'"{etag[1]}"',
                    size=size,
                    at=_time(at),
                )
    return "not understood"


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:  # lone surrogates are one, too
        return None


def _time(told: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(told)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None
