"""The sandbox in a thread of its own, beside what it is tried with."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from currents_ingest.sandbox.options import SandboxOptions
from currents_ingest.sandbox.server import serve

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def sandbox() -> Iterator[str]:
    """Run a sandbox on a free port for the block; gives its URL."""
    loop = asyncio.new_event_loop()
    urls: list[str] = []
    up = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        up.set()

    serving = loop.create_task(serve(SandboxOptions(delay=0), ready=ready))

    def work() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)
        loop.close()

    thread = threading.Thread(target=work, name="sandbox")
    thread.start()
    up.wait()
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()


def read_back(url: str, what: str) -> list[dict[str, Any]]:
    """Return what a sandbox holds: its profiles, or its cohorts as one."""

    async def read() -> bytes:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{url}/_sandbox/{what}") as got,
        ):
            return await got.read()

    return [orjson.loads(line) for line in asyncio.run(read()).splitlines()]
