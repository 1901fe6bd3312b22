"""Durations and sizes as people write them, and what a section of settings is."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    WithJsonSchema,
)

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_QUEUES = (
    r"sqs://([a-z0-9-]+)/(\d{12})/([\w.-]{1,80})",
    r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(\d{12})/([\w.-]{1,80})",
    r"arn:aws[a-z-]*:sqs:([a-z0-9-]+):(\d{12}):([\w.-]{1,80})",
)
"""Our own form, AWS's URL and its ARN."""


def duration(text: object) -> timedelta:
    """Read ``90s``, ``5m``, ``48h`` or ``45d``."""
    if isinstance(text, timedelta):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", str(text))
    if not match:
        message = f"{text!r} is no duration; write a number and s, m, h or d, as in 48h"
        raise ValueError(message)
    return timedelta(seconds=float(match[1]) * UNITS[match[2]])


def size(text: object) -> int:
    """Read ``256MB`` (10^6) or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", str(text).upper())
    if not match or match[2] not in _SIZES:
        message = f"{text!r} is no size; write a number and MB, GB or TB, as in 256MB"
        raise ValueError(message)
    return int(float(match[1]) * _SIZES[match[2]])


def _period(value: timedelta) -> timedelta:
    if value < timedelta(seconds=1):
        raise ValueError("nothing can be done as often as this; write 1s or more")
    return value


def _address(text: str) -> str:
    match = re.fullmatch(r"(?:\[[^\[\]]+\]|[^:\[\]]+):(\d{1,5})", text)
    if text and not (match and int(match[1]) <= 65535):
        raise ValueError(f"{text!r} is no host:port, as in 127.0.0.1:9464")
    return text


def _queue(text: str) -> str:
    for form in _QUEUES:
        if match := re.fullmatch(form, text):
            url = "sqs://{}/{}/{}".format(*match.groups())
            if url.endswith(".fifo"):
                raise ValueError("S3 notifies no FIFO queue; make a standard one")
            return url
    if text:
        raise ValueError(
            f"{text!r} is no queue; write sqs://REGION/ACCOUNT/NAME, as in "
            "sqs://us-east-1/123456789012/currents (an ARN or AWS's URL will do)"
        )
    return text


Duration = Annotated[
    timedelta,
    BeforeValidator(duration),
    PlainSerializer(lambda value: f"{value // timedelta(microseconds=1) / 1e6:f}s"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?[smhd]$"}),
]
Period = Annotated[Duration, AfterValidator(_period)]
"""How often something is done."""
Address = Annotated[str, AfterValidator(_address)]
"""Host and port to listen on; empty: none."""
QueueUrl = Annotated[str, AfterValidator(_queue)]
"""A queue of SQS as ``sqs://<region>/<account>/<name>``; empty: none."""
Size = Annotated[
    int,
    BeforeValidator(size),
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?[KMGT]?B?$"}
    ),
]


class Section(BaseModel):
    """A table of the settings file; unknown names in it are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def span(minutes: float) -> str:
    """Return minutes as people say them."""
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.1f} d"
