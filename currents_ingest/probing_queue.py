"""Attempts on the queue that S3 notifies, each told by itself; no message changes."""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from currents_ingest import backends, notices
from currents_ingest.errors import CurrentsError
from currents_ingest.notices import Notice
from currents_ingest.policies import below, queue_arn
from currents_ingest.probing import Finding, attempt, mend_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from currents_ingest.backends import Queue
    from currents_ingest.config import Settings
    from currents_ingest.notices import Other

_PAGE = "docs/queue.md"
_ALL = "s3:ObjectCreated:*"


def queued(settings: Settings, *, read_only: bool) -> Iterator[Finding]:
    """Try all that a poll does with the queue, and look at who notifies it.

    Args:
        settings: With a queue.
        read_only: Leave out receiving, which counts against the dead-letter rule.
    """
    queue = backends.Queue.open(settings.source.queue)
    about = queue.about()
    waiting, in_work = queue.depth()
    told = f"{waiting:,} messages wait, {in_work:,} are in work"
    yield Finding("ok", f"look at {queue.url}", told)
    yield _dead_letters(about, settings)
    yield _notified(settings)
    if read_only:
        yield Finding("skipped", f"receive from {queue.url}", "--read-only")
        return
    yield _received(queue, settings)
    gone = ["a message that there is not"]
    yield attempt("hide messages in it", lambda: queue.hide(gone, 0))
    yield attempt("delete messages from it", lambda: queue.delete(gone))


def _dead_letters(about: Mapping[str, str], settings: Settings) -> Finding:
    tried = "look for its dead-letter rule"
    if not (rule := about.get("RedrivePolicy")):
        days = int(about.get("MessageRetentionPeriod", 0)) / 86400
        told = f"there is none: what nobody understands comes again for {days:.0f} days"
        return Finding("warning", tried, told, f"Give it one: {_PAGE} says how.")
    most = int(json.loads(rule)["maxReceiveCount"])
    often = ceil(settings.feeds.max_wait / settings.run.poll_every)
    if often < most:
        return Finding("ok", tried, f"after {most} receives")
    told = f"after {most} receives, but files are held back for up to {often} polls"
    mend = f"Set maxReceiveCount to {2 * often} or more, or lower feeds.max_wait."
    return Finding("warning", tried, told, mend)


def _notified(settings: Settings) -> Finding:
    """Look at whom the bucket notifies, if that may be read."""
    bucket = urlsplit(settings.source.url).netloc
    tried = f"see whom s3://{bucket} notifies"
    try:
        found = backends.notified(bucket)
    except CurrentsError as error:
        told = f"it may not be seen: {error.told()}"
        return Finding("skipped", tried, told, "Allow s3:GetBucketNotification.")
    arn = queue_arn(settings.source.queue)
    for one in found.get("QueueConfigurations", ()):
        if one["QueueArn"].split(":")[2:] == arn.split(":")[2:]:
            return _covers(one, tried, below(settings.source.url))
    if "EventBridgeConfiguration" in found:
        return Finding("ok", tried, "EventBridge, whose rule has to name the queue")
    if topics := [one["TopicArn"] for one in found.get("TopicConfigurations", ())]:
        return Finding("ok", tried, f"{topics[0]}, which has to notify the queue")
    mend = f"Let it notify the queue: {_PAGE} says how."
    return Finding("problem", tried, "neither the queue nor anything on its way", mend)


def _covers(one: Mapping[str, Any], tried: str, inside: str) -> Finding:
    """Hold what the queue is told of against what is in the source."""
    rules = one.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    wanted = {rule["Name"].lower(): rule["Value"] for rule in rules}
    prefix, suffix = wanted.get("prefix", ""), wanted.get("suffix", "")
    if not inside.startswith(prefix) or not ".avro".endswith(suffix):
        told = f"the queue, but only of {prefix}*{suffix}"
        mend = f"Let it notify the queue of {inside}*."
        return Finding("problem", tried, told, mend)
    if _ALL not in one["Events"]:
        told = f"the queue, but only of {', '.join(one['Events'])}"
        mend = f"Let it notify the queue of {_ALL}: large files come in parts."
        return Finding("warning", tried, told, mend)
    return Finding("ok", tried, "the queue")


def _received(queue: Queue, settings: Settings) -> Finding:
    """Receive some messages and leave them there."""
    tried = f"receive from {queue.url}"
    bucket = urlsplit(settings.source.url).netloc
    try:
        found = [notices.read(body) for _, body in queue.receive(hidden=0, wait=1)]
    except CurrentsError as error:
        return Finding("problem", tried, error.told(), mend_of(error.told()))
    ours = sum(any(_fits(one, bucket) for one in told) for told in found)
    told = f"{len(found)} messages, {ours} of them S3's of s3://{bucket}"
    if found and not ours:
        mend = f"If none ever is, look at who notifies this queue: {_PAGE}."
        return Finding("warning", tried, told, mend)
    return Finding("ok", tried, told)


def _fits(one: Notice | Other, bucket: str) -> bool:
    return one.bucket == bucket if isinstance(one, Notice) else one != "not understood"
