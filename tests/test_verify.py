from __future__ import annotations

from datetime import UTC, datetime

from currents_ingest import config
from currents_ingest.ledger import entry_key
from currents_ingest.manifest import Entry, FileId, Input, Manifest, SetAside
from currents_ingest.store import Store
from currents_ingest.verify import verify

AT = datetime(2026, 9, 15, 10, 30, tzinfo=UTC)
EVENT = "users.messages.email.Open"


def batch(*names, rows=1):
    return Manifest(
        event_type=EVENT,
        feed="messages_email_open",
        contract_version=1,
        planned_at=AT,
        inputs=tuple(
            Input(key=name, etag="e", size=1, hour=AT, rows=1, fingerprint="f")
            for name in names
        ),
        outputs=(),
        rows_in=rows,
        rows_out=0,
        duplicates=0,
        rejects=rows,
        hours={},
    )


def test_every_file_is_followed_through_the_ledger(tmp_path):
    made = config.read(
        source={"url": str(tmp_path / "source")}, feeds={"url": str(tmp_path / "feeds")}
    )
    Store.open(made.source.url)
    feeds = Store.open(made.feeds.url)
    names = [FileId(key=f"k{n}", etag="e", size=1) for n in range(3)]
    asides = [SetAside(**one.model_dump(), reason="r") for one in names]
    entries = [
        {"batches": (batch("a"), batch("b", "c", rows=3))},
        {"batches": (batch("a"),), "set_aside": asides},
        {"discarded": names[:1], "released": names[1:2]},
    ]
    for number, more in enumerate(entries, 1):
        entry = Entry(number=number, at=AT, run="r", **more)
        feeds.create(entry_key(number), entry.to_json())
    found = verify(made)
    assert (found.committed, found.quarantined, found.discarded) == (3, 1, 1)
    told = {one.what for one in found.differences}
    assert {"was committed twice", "its files have 2 rows, 3 went in"} <= told
