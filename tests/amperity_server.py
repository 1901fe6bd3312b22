"""A stand-in of the two calls of Amperity's API that we use, on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "a-token"  # noqa: S105 (of nobody)


@dataclass
class Amperity:
    """What the tenant holds, and what was asked of it."""

    url: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the workflows started."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    """Queries for ingest jobs."""
    failures: list[int] = field(default_factory=list)
    """HTTP statuses that the next requests get."""

    def ingest(self, table: str, files: dict[str, int], **figures: Any) -> None:
        """Add a job that read files, by name, into a table."""
        read = sum(files.values())
        whole = {
            "table_name": table,
            "feed_id": "df-1",
            "job_id": f"isj-{len(self.jobs)}",
            "state": "Succeeded",
            "read": read,
            "inserted": read,
            "updated": 0,
            "rejected": 0,
            "errors": 0,
            "files": [
                {"file_id": f"cb-1/{name}", "name": name, "read": rows, "errors": 0}
                for name, rows in files.items()
            ],
        }
        self.jobs.append(
            {
                "id": f"isj-{len(self.jobs)}",
                "workflow_id": "wf-1",
                "tables": [whole | figures],
            }
        )


class _Handler(BaseHTTPRequestHandler):
    tenant: Amperity

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._refused("/api/workflow/runs"):
            return
        if not body.get("range_from") or not body["config_id"].startswith("cg-"):
            self._answer(400, {"message": "range_from is missing"})
            return
        self.tenant.runs.append(body)
        run = {"id": f"wf-{len(self.tenant.runs)}", "type": "courier.group/run"}
        self._answer(201, run)

    def do_GET(self) -> None:
        if self._refused("/api/ingest/jobs"):
            return
        query = parse_qs(urlsplit(self.path).query)
        self.tenant.asked.append({name: one[0] for name, one in query.items()})
        self._answer(200, {"data": self.tenant.jobs})

    def _refused(self, path: str) -> bool:
        wanted = {
            "amperity-tenant": "acme",
            "api-version": "2024-04-01",
            "authorization": f"Bearer {TOKEN}",
        }
        if self.tenant.failures:
            self._answer(self.tenant.failures.pop(0), {})
        elif urlsplit(self.path).path != path:
            self._answer(404, {})
        elif any(self.headers[name] != value for name, value in wanted.items()):
            self._answer(401, {"message": f"not {self.headers['authorization']}"})
        else:
            return False
        return True

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def amperity() -> Iterator[Amperity]:
    """Run the stand-in."""
    tenant = Amperity()

    handler = type("Handler", (_Handler,), {"tenant": tenant})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    tenant.url = f"http://127.0.0.1:{server.server_port}/api"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield tenant
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
