"""The wire to Braze: one host, one key, TLS checked, no redirect followed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import aiohttp

from currents_ingest.audiences.requests import Answer
from currents_ingest.errors import BrazeRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CERTIFICATE = (
    "the host's certificate is not one that this machine trusts: check braze.url, or "
    "what stands between us and Braze"
)


class NotSentError(Exception):
    """The request cannot have arrived: no connection came about."""


class LostError(Exception):
    """No answer came, though the request may have arrived."""


@dataclass(frozen=True, slots=True)
class Client:
    """Open connections to one workspace."""

    session: aiohttp.ClientSession
    base: str
    path: str

    async def post(self, body: bytes) -> Answer:
        """Send a request; messages never hold what was sent.

        Raises:
            NotSentError: It did not arrive.
            LostError: It may have.
            BrazeRefusedError: The host is not who it says it is.
        """
        try:
            async with self.session.post(
                self.base + self.path, data=body, allow_redirects=False
            ) as got:
                headers = {name.lower(): one for name, one in got.headers.items()}
                return Answer(status=got.status, headers=headers, body=await got.read())
        except aiohttp.ClientConnectorCertificateError:
            raise BrazeRefusedError(0, _CERTIFICATE) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSentError(f"no connection ({_kind(error)})") from None
        except TimeoutError:
            raise LostError("no answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(f"connection lost ({_kind(error)})") from None


@asynccontextmanager
async def connected(
    base: str, path: str, key: str, *, patience: float, connections: int
) -> AsyncIterator[Client]:
    """Open a client.

    Args:
        base: REST endpoint, without a slash at its end.
        path: Endpoint, such as ``/users/track``.
        key: REST API key; goes into a header and nowhere else.
        patience: Seconds to wait for an answer.
        connections: At most so many at once.
    """
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "User-Agent": f"currents-ingest/{version('currents-ingest')}",
    }
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=patience, sock_connect=min(patience, 10)),
        connector=aiohttp.TCPConnector(limit=connections),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield Client(session, base, path)


def _kind(error: BaseException) -> str:
    inner = getattr(error, "os_error", None) or error
    return type(inner).__name__
