"""The two calls of Amperity's API that matter after delivery.

Source: Amperity API 2024-04-01, "POST /workflow/runs" and "GET /ingest/jobs".
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from currents_ingest.errors import AmperityError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import urllib3

    from currents_ingest.config import Amperity

VERSION = "2024-04-01"
WINDOW = timedelta(days=7)
"""How far back ingest jobs are kept, and the widest window of one request."""
PAUSE = 1.0
"""Seconds before the second repetition; each pause is twice the one before."""
_MEANING = {
    400: "it does not understand the request; check amperity.workflow",
    401: "the token is wrong or has expired",
    403: "the token may not do this; its API key needs a policy that allows it",
    404: "there is no such thing; check amperity.url and amperity.workflow",
    429: "too many requests, even after waiting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """An object that an ingest job read."""

    name: str
    read: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestJob:
    """What one ingest job did to one table."""

    id: str
    workflow: str
    table: str
    state: str
    """In lower case, such as ``succeeded`` or ``failed``."""
    read: int
    inserted: int
    updated: int
    rejected: int
    """Duplicate rows."""
    errors: int
    files: tuple[ReadFile, ...]


class Client:
    """Talks to one tenant; requests are repeated with growing pauses.

    urllib3 is imported late, for most runs talk to no tenant, and it slows their start.
    """

    def __init__(self, settings: Amperity) -> None:
        if not (token := os.environ.get(settings.token_env, "")):
            problem = f"amperity.token_env: {settings.token_env} is not set"
            raise SettingsError((problem,))
        import urllib3

        self._settings = settings
        self._pool = urllib3.PoolManager(
            headers={
                "amperity-tenant": settings.tenant,
                "api-version": VERSION,
                "authorization": f"Bearer {token}",
            },
            timeout=urllib3.Timeout(connect=10, read=60),
        )

    def start(self, since: datetime, until: datetime) -> str:
        """Start the workflow over objects of some delivery days; return its run's id.

        Args:
            since: Midnight of the first day, UTC.
            until: Midnight of the first day that is left out.

        Raises:
            AmperityError: It was not started.
        """
        body = {
            "config_id": self._settings.workflow,
            "range_from": _timestamp(since),
            "range_to": _timestamp(until),
        }
        if self._settings.run_mode:
            body["run_mode"] = self._settings.run_mode
        # An answer that was lost may have started it: only what says that nothing
        # was done is asked again.
        retry = _retry(429, 503, read=0, allowed_methods=None)
        action = f"start the workflow {self._settings.workflow}"
        found = self._ask("POST", "/workflow/runs", action, retry, body=body)
        return str(found.get("id", ""))

    def jobs(self, since: datetime, until: datetime) -> list[IngestJob]:
        """Return the ingest jobs that started within a window of up to seven days.

        Raises:
            AmperityError: They could not be read.
        """
        fields = {"created_from": _timestamp(since), "created_to": _timestamp(until)}
        retry = _retry(429, 500, 502, 503, 504)
        found = self._ask(
            "GET", "/ingest/jobs", "read ingest jobs", retry, fields=fields
        )
        try:
            return list(_jobs(found))
        except (AttributeError, TypeError, ValueError):
            told = "the answer is not what its documentation says"
            raise AmperityError("read ingest jobs", told) from None

    def _ask(  # noqa: PLR0913 (all of one request)
        self,
        method: str,
        path: str,
        action: str,
        retry: urllib3.Retry,
        fields: dict[str, str] | None = None,
        body: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        try:
            answer = self._pool.request(
                method,
                self._settings.url.rstrip("/") + path,
                fields=fields,
                json=body,
                retries=retry,
            )
        except HTTPError as error:  # its text may hold the URL only
            cause = f"no answer from {self._settings.url} ({type(error).__name__})"
            raise AmperityError(action, cause) from None
        if answer.status >= 300:
            told = _MEANING.get(answer.status, "it failed there")
            raise AmperityError(action, f"HTTP {answer.status}, {told}")
        try:
            found: dict[str, Any] = json.loads(answer.data)
            found.get("")
        except (ValueError, AttributeError):
            raise AmperityError(action, "the answer is no JSON object") from None
        return found


def _retry(*statuses: int, **options: Any) -> urllib3.Retry:
    """Return when to ask again: with pauses of up to 8 s, or as Retry-After says."""
    import urllib3

    return urllib3.Retry(
        4,
        backoff_factor=PAUSE,
        status_forcelist=statuses,
        raise_on_status=False,
        redirect=False,
        retry_after_max=60,
        **options,
    )


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _jobs(found: dict[str, Any]) -> Iterator[IngestJob]:
    for job in found.get("data") or ():
        for table in job.get("tables") or ():
            yield IngestJob(
                id=str(job.get("id", "")),
                workflow=str(job.get("workflow_id", "")),
                table=str(table.get("table_name", "")),
                state=str(table.get("state", "")).lower(),
                **{
                    name: int(table.get(name) or 0)
                    for name in ("read", "inserted", "updated", "rejected", "errors")
                },
                files=tuple(
                    ReadFile(
                        name=str(one.get("name") or one.get("file_id") or ""),
                        read=int(one.get("read") or 0),
                        errors=int(one.get("errors") or 0),
                    )
                    for one in table.get("files") or ()
                ),
            )
