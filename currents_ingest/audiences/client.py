"""The wire to Braze: one host, one key, TLS checked, no redirect followed.

aiohttp is imported once it is needed: it reads all certificates as it is.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import orjson

from currents_ingest.audiences.requests import Answer
from currents_ingest.errors import BrazeRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

_CERTIFICATE = (
    "the host's certificate is not one that this machine trusts: check braze.url, or "
    "what stands between us and Braze"
)


@dataclass(frozen=True, slots=True, repr=False)
class PartnerKeys:
    """What opens the partner cohort API."""

    partner_api_key: str
    client_secret: str
    """The workspace's data import key."""


Key = str | PartnerKeys
"""A REST API key, or a partner's."""


class NotSentError(Exception):
    """The request cannot have arrived: no connection came about."""


class LostError(Exception):
    """No answer came, though the request may have arrived."""


@dataclass(frozen=True, slots=True)
class Client:
    """Open connections to one workspace."""

    session: aiohttp.ClientSession
    base: str
    begin: bytes
    """What every body begins with."""

    async def post(self, path: str, body: bytes) -> Answer:
        """Send a request; messages never hold what was sent.

        Raises:
            NotSentError: It did not arrive.
            LostError: It may have.
            BrazeRefusedError: The host is not who it says it is.
        """
        import aiohttp

        try:
            async with self.session.post(
                self.base + path, data=self.begin + body[1:], allow_redirects=False
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
    base: str, key: Key, *, patience: float, connections: int
) -> AsyncIterator[Client]:
    """Open a client.

    Args:
        base: REST endpoint, without a slash at its end.
        key: REST API key, which goes into a header and nowhere else, or what opens
            the cohort API, which goes into every body and nowhere else.
        patience: Seconds to wait for an answer.
        connections: At most so many at once.
    """
    import aiohttp

    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"currents-ingest/{version('currents-ingest')}",
    }
    begin = b"{"
    if isinstance(key, PartnerKeys):
        begin = orjson.dumps(asdict(key))[:-1] + b","
    else:
        headers["Authorization"] = f"Bearer {key}"
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=patience, sock_connect=min(patience, 10)),
        connector=aiohttp.TCPConnector(limit=connections),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield Client(session, base, begin)


def _kind(error: BaseException) -> str:
    inner = getattr(error, "os_error", None) or error
    return type(inner).__name__
