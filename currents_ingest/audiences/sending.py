"""Requests to Braze and what became of each object: retried, cut in two, or given up.

One coroutine brings requests, several send them, and one notes outcomes; none of them
knows what an audience is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import structlog

from currents_ingest.audiences.client import LostError, NotSentError
from currents_ingest.audiences.masking import reason_without_values
from currents_ingest.audiences.pace import to_next_hour
from currents_ingest.audiences.requests import (
    Verdict,
    lost,
    poisoned,
    used_up,
    verdict,
    wait,
)
from currents_ingest.errors import BrazeDownError, BrazeRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from currents_ingest.audiences.client import Client
    from currents_ingest.audiences.pace import Pace
    from currents_ingest.audiences.requests import Answer, Request

log = structlog.get_logger()

State = Literal["taken", "failed", "unknown", "unsent"]
Note = Callable[[list["Outcome"]], Awaitable[None]]
_Queue = asyncio.Queue[tuple[Note, "Request"] | None]
_LONGEST = 60.0
"""Seconds between two tries, at most."""
_LEAST = 1.0
"""Seconds to wait after a 429, at least: clocks differ."""
_PATIENT = 900.0
"""Seconds after which a wait for Braze's limit is told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of some rows of a batch."""

    rows: Sequence[int]
    state: State
    reason: str = ""


@dataclass(slots=True)
class Tally:
    """What the wire did."""

    requests: int = 0
    again: int = 0
    """Requests that were repeated."""
    seconds: float = 0.0
    """From the first request to the last answer."""


@dataclass(slots=True)
class _Patience:
    """How long to go on with a request and its parts."""

    seconds: float
    since: float = 0.0
    """When it was first tried without an answer; 0: it was answered."""


class StoppedError(Exception):
    """We were asked to stop before the request went."""


@dataclass(slots=True)
class Sender:
    """Sends requests through one client at one pace."""

    client: Client
    pace: Pace
    patience: float
    """Seconds to go on where Braze does not answer."""
    stop: Callable[[], bool]
    check: Callable[[], None]
    """Raises if we may send no more, for another run may have taken over."""
    tally: Tally = field(default_factory=Tally)
    halted: bool = False
    """A request met what stops all of them."""
    _answered: float = 0.0
    """When an answer last said what became of a request."""

    async def deliver(self, request: Request, note: Note) -> None:
        """Send a request until it is known what became of each object.

        Args:
            request: What to send; what is split is sent in parts.
            note: Is told as soon as something is known. An object that it was not told
                of when an error is raised did not reach Braze, or is safe to repeat.

        Raises:
            BrazeRefusedError: Nothing can be sent until a person acts.
            BrazeDownError: Braze did not answer for too long.
            StoppedError: We were asked to stop.
        """
        await self._deliver(request, note, _Patience(self.patience))

    async def _deliver(self, request: Request, note: Note, kept: _Patience) -> None:
        found = await self._verdict(request, kept)
        if found.kind == "split":
            for half in request.halves():
                await self._deliver(half, note, kept)
            return
        await note(_outcomes(request, found))
        if found.kind == "rest":
            left = set(range(len(request.rows))) - found.failed.keys()
            await self._deliver(request.only(sorted(left)), note, kept)

    async def _verdict(self, request: Request, kept: _Patience) -> Verdict:
        body, since, tries = request.body, time.monotonic(), 0
        while True:
            await self._turn()
            found, status = await self._try(request, body)
            if found.kind == "refused":
                raise BrazeRefusedError(status or 0, found.reason)
            if found.kind != "again":
                self._answered = time.monotonic()
                return found
            if status == 429:
                since = time.monotonic()  # it answers, and asks us to wait
            elif time.monotonic() - since > kept.seconds:
                return self._unanswered(request, kept, since, found.reason)
            self.tally.again += 1
            tries += 1
            if status != 429:
                await self._sleep(_pause(tries))

    def _unanswered(
        self, request: Request, kept: _Patience, since: float, reason: str
    ) -> Verdict:
        """Say what to do with a request that was not answered for too long.

        If Braze answered others in this run, it may be the request: its halves are
        tried with half the patience, down to one object. Braze is down if none of them
        was answered either.
        """
        kept.since = kept.since or since
        kept.seconds /= 2
        alone = len(request.rows) == 1
        if not self._answered or (alone and self._answered < kept.since):
            raise BrazeDownError(reason)
        return poisoned(request, reason)

    async def _try(self, request: Request, body: bytes) -> tuple[Verdict, int | None]:
        """Send once; returns the status, too, where there was one."""
        self.tally.requests += 1
        try:
            answer = await self.client.post(request.path, body)
        except NotSentError as error:
            return Verdict(kind="again", reason=str(error)), None
        except LostError as error:
            return lost(request, str(error)), None
        self._heed(answer)
        return verdict(request, answer), answer.status

    def _heed(self, answer: Answer) -> None:
        """Hold everything back as long as the answer says."""
        if answer.status != 429 and not used_up(answer):
            return
        seconds = wait(answer, time.time()) or 0.0
        if answer.status == 429:
            seconds = max(seconds, _LEAST)
        seconds = min(seconds, to_next_hour(time.time()) + _LEAST)
        if seconds > _PATIENT:
            log.warning("Braze's limit is used up", wait_seconds=round(seconds))
        self.pace.hold(time.monotonic() + seconds)

    async def _turn(self) -> None:
        while delay := self.pace.delay(time.monotonic()):
            await self._sleep(delay)
        self._go_on()
        self.check()

    async def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._go_on()
            await asyncio.sleep(min(left, 0.5))

    def _go_on(self) -> None:
        if self.halted or self.stop():
            raise StoppedError


def _pause(tries: int) -> float:
    """Return seconds between two tries, about twice as many each time."""
    longest: float = min(_LONGEST, 0.25 * 2**tries)
    return longest * (0.5 + random.random())  # noqa: S311 (no secret)


async def send_all(
    sender: Sender,
    requests: AsyncIterator[tuple[Note, Request]],
    at_once: int,
) -> bool:
    """Send requests, so many at once; tells whether all of them went.

    Args:
        sender: Sends one.
        requests: Each with whom to tell what became of its objects.
        at_once: Requests in flight.

    Raises:
        Exception: What a request raised, once those in flight have ended and were
            noted.
    """
    queue: _Queue = asyncio.Queue(at_once)
    trouble: list[Exception] = []
    started = time.monotonic()
    workers = [
        asyncio.create_task(_work(sender, queue, trouble)) for _ in range(at_once)
    ]
    try:
        async for one in requests:
            if trouble or sender.stop():
                break
            await queue.put(one)
    except StoppedError as stopped:  # asked to while a cohort was named
        trouble.append(stopped)
    finally:
        for _ in workers:
            await queue.put(None)
        await asyncio.gather(*workers)
        sender.tally.seconds = time.monotonic() - started
    for error in trouble:
        if not isinstance(error, StoppedError):
            raise error
    return not (trouble or sender.stop())


async def _work(sender: Sender, queue: _Queue, trouble: list[Exception]) -> None:
    """Send what comes until the end, and nothing after the first trouble."""
    while (one := await queue.get()) is not None:
        note, request = one
        if trouble:
            continue
        try:
            await sender.deliver(request, note)
        except Exception as error:  # noqa: BLE001 (raised again by send_all)
            trouble.append(error)
            sender.halted = True


def _outcomes(request: Request, found: Verdict) -> list[Outcome]:
    """Say of each row what a verdict means for it."""
    told = [
        Outcome(
            [request.rows[at]],
            "failed",
            reason_without_values(reason, request.objects[at]),
        )
        for at, reason in found.failed.items()
    ]
    rest = [row for at, row in enumerate(request.rows) if at not in found.failed]
    if found.kind == "unknown":
        told.append(Outcome(rest, "unknown", reason_without_values(found.reason)))
    elif found.kind == "taken" and rest:
        told.append(Outcome(rest, "taken"))
    return told
