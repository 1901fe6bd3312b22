"""Whether Braze takes our keys, asked in a way that changes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from currents_ingest.audiences.braze import rest_url
from currents_ingest.audiences.client import (
    LostError,
    NotSentError,
    PartnerKeys,
    connected,
)
from currents_ingest.audiences.requests import Request, verdict
from currents_ingest.errors import BrazeDownError, BrazeRefusedError

if TYPE_CHECKING:
    from currents_ingest.audiences.client import Key
    from currents_ingest.audiences.requests import Answer
    from currents_ingest.config import Settings


def ask(settings: Settings, key: Key, patience: float) -> None:
    """Send a request that has nothing in it: 400 says that the key is a good one.

    Args:
        settings: Which Braze.
        key: A REST API key, or a partner's.
        patience: Seconds to wait for an answer.

    Raises:
        BrazeRefusedError: The key is not taken, or the address is wrong.
        BrazeDownError: There is no answer.
        SettingsError: There is no such instance.
    """
    path = "/users/track"
    if isinstance(key, PartnerKeys):
        path = f"/partners/{settings.braze.partner}/cohorts/users"
    request = Request(array="attributes", path=path)
    try:
        answer = asyncio.run(_post(rest_url(settings.braze), key, path, patience))
    except (NotSentError, LostError) as error:
        raise BrazeDownError(str(error)) from None
    if answer.status == 400:
        return
    found = verdict(request, answer)
    if found.kind == "refused":
        raise BrazeRefusedError(answer.status, found.reason)
    if answer.status >= 500:
        raise BrazeDownError(str(answer.status))


async def _post(base: str, key: Key, path: str, patience: float) -> Answer:
    async with connected(base, key, patience=patience, connections=1) as client:
        return await client.post(path, b'{"cohort_changes":[]}')
