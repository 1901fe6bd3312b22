"""A headless Chromium for tests and screenshots, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
_STARTS, _ANSWERS = 60.0, 30.0
"""Seconds that a busy machine may take."""


@dataclass(slots=True)
class Page:
    """One page of a browser."""

    loop: asyncio.AbstractEventLoop
    socket: aiohttp.ClientWebSocketResponse
    asked: list[str] = field(default_factory=list)
    """Every URL that was asked for."""
    told: list[str] = field(default_factory=list)
    """What the console said: errors, refusals by the page's own policy."""
    _number: int = 0

    def open(
        self, path: Path, *, width: int = 1280, dark: bool = False, scale: int = 1
    ) -> None:
        """Open a file as a screen of this width shows it."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.asked.clear()
        self.told.clear()
        self.send("Page.navigate", url=path.absolute().as_uri())
        until = time.monotonic() + _ANSWERS
        while self.run("document.readyState") != "complete":
            assert time.monotonic() < until, "the page does not load"
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Return what an expression comes to."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press_tab(self) -> None:
        """Press the key as a person does."""
        key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **key)

    def picture(self, *, height: int) -> bytes:
        """Return the top of the page as PNG."""
        width = self.run("document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self.send(
            "Page.captureScreenshot", clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(found["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer, noting events meanwhile."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        return self._wait(self._exchange(asked))

    def _wait(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        return self.loop.run_until_complete(asyncio.wait_for(work, _ANSWERS))

    async def _exchange(self, asked: dict[str, Any]) -> dict[str, Any]:
        await self.socket.send_json(asked)
        while True:
            found = cast("dict[str, Any]", await self.socket.receive_json())
            if found.get("id") == asked["id"]:
                assert "error" not in found, found
                return cast("dict[str, Any]", found["result"])
            told = found.get("params", {})
            if found["method"] == "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])
            elif found["method"] == "Log.entryAdded":
                self.told.append(told["entry"]["text"])


@contextmanager
def browser() -> Iterator[Page]:
    """Start a browser of our own, with a page."""
    assert CHROMIUM
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = "--headless=new --no-sandbox --disable-gpu --no-first-run"
        more = "--hide-scrollbars --remote-debugging-port=0 --disable-dev-shm-usage"
        process = subprocess.Popen(
            [CHROMIUM, *flags.split(), *more.split(), f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        loop = asyncio.new_event_loop()
        session = None
        try:
            port = _port(Path(profile), process)
            session = loop.run_until_complete(_session())
            page = loop.run_until_complete(_page(session, port, loop))
            for domain in ("Page", "Network", "Log", "Runtime"):
                page.send(f"{domain}.enable")
            yield page
            loop.run_until_complete(page.socket.close())
        finally:
            if session:
                loop.run_until_complete(session.close())
            loop.close()
            process.terminate()
            process.wait()


def _port(profile: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + _STARTS
    told = profile / "DevToolsActivePort"
    while not (told.is_file() and told.read_text()):
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < until, "the browser does not start"
        time.sleep(0.05)
    return told.read_text().split()[0]


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _page(
    session: aiohttp.ClientSession, port: str, loop: asyncio.AbstractEventLoop
) -> Page:
    url = f"http://127.0.0.1:{port}/json/new?about:blank"
    async with session.put(url) as answer:
        found = await answer.json()
    socket = await session.ws_connect(found["webSocketDebuggerUrl"], max_msg_size=2**26)
    return Page(loop, socket)
