"""Unified feeds under the promises: versions, looks, kills at bad moments, rivals."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from currents_ingest import api, backfill, config, feeds, handover, joining
from currents_ingest.errors import SettingsError
from currents_ingest.ledger import Ledger
from currents_ingest.session import begin
from currents_ingest.status import status
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests.avro_files import container, key, record
from tests.test_joining import CAMPAIGN, SEND, T, converted, put, sent
from tests.test_unified_toml import GOOD

MORE = '\n[[columns]]\nname = "email"\nfrom = "email_address"\n'


@pytest.fixture
def place(tmp_path):
    """A source to write to, a contract that can be changed, and settings."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "opens.toml").write_text(GOOD)
    source = Store.open(str(tmp_path / "source"))

    def settings(*include, **more):
        return config.read(
            source={"url": source.url},
            feeds={
                "url": str(tmp_path / "feeds"),
                "include": include or ["raw", "opens"],
                "contracts": [str(tmp_path / "own")],
                **more,
            },
            ledger={"cache": str(tmp_path / "cache.db"), "lease": "0s"},
        )

    return source, tmp_path / "own" / "opens.toml", settings


def opened(source, offset):
    rows = [{"id": f"{offset}", "time": T, "email_address": "a@example.com"}]
    source.put(key(offset=offset), container(record(email_address="string"), rows))


def columns(settings):
    paths = Path(settings.feeds.url, "opens").rglob("*.parquet")
    return [pq.read_schema(path).names for path in sorted(paths)]


def everything(root):
    """Return the SHA-256 of every file below a folder."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def test_a_contract_stays_until_it_is_upgraded_and_then_only_gains(place):
    source, contract, settings = place
    opened(source, 1)
    api.poll(settings())
    contract.write_text(GOOD.replace("key =", "version = 2\nkey =") + MORE)
    opened(source, 2)
    api.poll(settings())
    before = columns(settings())
    assert before[0] == before[1]
    assert feeds.preview(settings(), "opens").after == 2
    upgraded = feeds.upgrade(settings(), "opens")
    assert [one.name for one in upgraded.columns] == ["email"]
    opened(source, 3)
    api.poll(settings())
    assert columns(settings()) == [*before, [*before[0], "email"]]
    assert verify(settings()).differences == ()
    assert feeds.upgrade(settings(), "opens").columns == ()


@pytest.mark.parametrize(
    "changes",
    [
        {'name = "kind"': 'name = "sort"', "{ kind =": "{ sort ="},
        {'last_updated = "feed_updated_at"': 'last_updated = "happened_at"'},
    ],
    ids=["a column", "the last-updated column"],
)
def test_an_upgrade_takes_nothing_away(place, changes):
    source, contract, settings = place
    opened(source, 1)
    api.poll(settings())
    changed = GOOD.replace("key =", "version = 2\nkey =")
    for old, new in changes.items():
        changed = changed.replace(old, new)
    contract.write_text(changed)
    with pytest.raises(SettingsError, match="columns can only be added"):
        feeds.upgrade(settings(), "opens")


def test_a_look_at_unified_feeds_changes_nothing(place, tmp_path):
    source, _, settings = place
    opened(source, 1)
    api.poll(settings("raw"))
    before = everything(tmp_path)
    made = settings("raw", "opens")
    assert backfill.preview(made, "opens").rows == 1
    handover.handover(made, "opens")
    handover.made_up(made, "opens")
    feeds.show(made, "opens")
    status(made)
    assert verify(made).differences == ()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("after", range(6))
def test_copies_in_days_directories_are_finished_after_a_kill(
    place, monkeypatch, after
):
    """Dies after so many copies; whoever comes next publishes what is missing."""
    source, _, settings = place
    made = settings("raw", "opens", daily_copy=True)
    opened(source, 1)
    copies = Store.copy
    done = []

    def copy(store, old, new):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(new)
        copies(store, old, new)

    monkeypatch.setattr(Store, "copy", copy)
    try:
        api.poll(made)
    except KeyboardInterrupt:
        assert len(done) == after
    monkeypatch.undo()
    api.poll(made)
    assert verify(made).differences == ()
    for feed in ("messages_email_open", "opens"):
        (copied,) = Path(made.feeds.url).glob(f"{feed}_*.parquet/*")
        (own,) = Path(made.feeds.url, feed).rglob("*.parquet")
        assert copied.read_bytes() == own.read_bytes()


def test_joins_at_the_same_time_deliver_once(place):
    source, _, settings = place
    options = {"email_events": {"conversions": "keep"}}
    made = settings("raw", "email_events", options=options)
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(made)
    later = datetime.now(UTC) + timedelta(hours=2)

    def join(_):
        elsewhere = made.model_copy(
            update={"ledger": config.LedgerSettings(cache=":memory:", lease="0s")}
        )
        with begin(elsewhere) as session:
            return joining.join_what_waits(session, later)

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(join, range(3))) == 1
    assert verify(made).differences == ()
    assert not any("_staging" in str(path) for path in everything(made.feeds.url))


def test_a_stale_join_cannot_publish(place):
    """It sleeps while another run joins the same batch."""
    source, _, settings = place
    options = {"email_events": {"conversions": "keep"}}
    made = settings("raw", "email_events", options=options)
    put(source, SEND, 1, sent(T))
    put(source, CAMPAIGN, 1, converted(T + 5))
    api.poll(made)
    later = datetime.now(UTC) + timedelta(hours=2)
    commit, awake = Ledger.commit, []

    def late(ledger, entry):
        if entry.joined and not awake:
            awake.append(True)
            other = made.model_copy(
                update={"ledger": config.LedgerSettings(cache=":memory:", lease="0s")}
            )
            with begin(other) as session:
                assert joining.join_what_waits(session, later) == 1
        return commit(ledger, entry)

    with pytest.MonkeyPatch.context() as patch, begin(made) as session:
        patch.setattr(Ledger, "commit", late)
        assert joining.join_what_waits(session, later) == 0
    assert verify(made).differences == ()
