"""After delivery: the workflow is started, and what was read is compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from currents_ingest import after, amperity_api, api, config
from currents_ingest.errors import SettingsError
from currents_ingest.reconcile import Delivered, compare
from currents_ingest.session import begin
from currents_ingest.status import status
from currents_ingest.store import Store
from tests.amperity_server import TOKEN, amperity
from tests.avro_files import container, key, record

DAY = timedelta(days=1)
ROW = {"time": 1_700_000_000, "email_address": "a@example.com"}


@pytest.fixture
def tenant(monkeypatch):
    monkeypatch.setenv("AMPERITY_TOKEN", TOKEN)
    monkeypatch.setattr(amperity_api, "PAUSE", 0.01)
    with amperity() as found:
        yield found


@pytest.fixture
def place(tmp_path, tenant):
    """A source to write to, and settings with what Amperity is asked."""
    source = Store.open(str(tmp_path / "source"))

    def settings(**asked):
        return config.read(
            source={"url": source.url},
            feeds={"url": str(tmp_path / "feeds"), "include": ["raw"]},
            ledger={"cache": str(tmp_path / "cache.db"), "lease": "0s"},
            amperity={"url": tenant.url, "tenant": "acme", **asked},
        )

    return source, settings


def put(source, offset, rows=1):
    body = [{"id": f"{offset}-{n}", **ROW} for n in range(rows)]
    source.put(key(offset=offset), container(record(email_address="string"), body))


def names(settings):
    feed = Path(settings.feeds.url, "messages_email_open")
    return sorted(path.name for path in feed.rglob("*.parquet"))


def test_the_workflow_is_started_over_the_days_delivered(place, tenant):
    source, settings = place
    starts = settings(workflow="cg-1", run_mode="source")
    put(source, 1)
    assert api.poll(starts).warnings == ()
    today = datetime.now(UTC)
    assert tenant.runs == [
        {
            "config_id": "cg-1",
            "range_from": f"{today:%Y-%m-%d}T00:00:00Z",
            "range_to": f"{today + DAY:%Y-%m-%d}T00:00:00Z",
            "run_mode": "source",
        }
    ]
    assert status(starts).started_at is not None


def test_nothing_new_starts_nothing(place, tenant):
    source, settings = place
    starts = settings(workflow="cg-1", start_every="0s")
    assert api.poll(starts).warnings == ()
    assert tenant.runs == []
    put(source, 1)
    api.poll(starts)
    api.poll(starts)
    assert len(tenant.runs) == 1


def test_starts_keep_their_distance_and_forget_no_day(place, tenant):
    source, settings = place
    starts = settings(workflow="cg-1")
    for offset in range(3):
        put(source, offset)
        api.poll(starts)
    assert len(tenant.runs) == 1
    with begin(starts) as session:
        assert session.ledger.cache.waiting() is not None
        later = datetime.now(UTC) + timedelta(hours=2)
        assert after.start(session, later) is not None
        assert session.ledger.cache.waiting() is None
    assert len(tenant.runs) == 2


@pytest.mark.parametrize("status_", [401, 404, 500])
def test_what_could_not_be_started_is_started_by_the_next_poll(place, tenant, status_):
    source, settings = place
    starts = settings(workflow="cg-1")
    put(source, 1)
    tenant.failures = [status_]
    outcome = api.poll(starts)
    (told,) = outcome.warnings
    assert f"HTTP {status_}" in told
    assert outcome.files == 1
    assert outcome.needs_a_look
    assert tenant.runs == []
    assert api.poll(starts).warnings == ()
    assert len(tenant.runs) == 1


def test_the_days_that_wait_are_known_on_an_empty_disk(place, tenant):
    source, settings = place
    put(source, 1)
    tenant.failures = [500]
    assert api.poll(settings(workflow="cg-1")).warnings
    elsewhere = settings(workflow="cg-1").model_copy(
        update={"ledger": config.LedgerSettings(cache=Path(":memory:"), lease="0s")}
    )
    api.poll(elsewhere)
    assert len(tenant.runs) == 1


def test_too_many_requests_are_asked_again(place, tenant):
    source, settings = place
    put(source, 1)
    tenant.failures = [429, 503]
    assert api.poll(settings(workflow="cg-1")).warnings == ()
    assert len(tenant.runs) == 1


def test_a_wrong_token_is_told_and_never_shown(place, monkeypatch):
    source, settings = place
    monkeypatch.setenv("AMPERITY_TOKEN", "wrong-secret")
    put(source, 1)
    (told,) = api.poll(settings(workflow="cg-1")).warnings
    assert "the token is wrong or has expired" in told
    assert "wrong-secret" not in told


def test_without_a_token_the_variable_is_named(place, monkeypatch):
    source, settings = place
    monkeypatch.delenv("AMPERITY_TOKEN")
    put(source, 1)
    with pytest.raises(SettingsError, match="AMPERITY_TOKEN is not set"):
        api.poll(settings(workflow="cg-1"))


def test_a_server_that_is_away_is_told(place):
    source, settings = place
    put(source, 1)
    away = settings(workflow="cg-1", url="http://127.0.0.1:9/api")
    (told,) = api.poll(away).warnings
    assert "no answer from http://127.0.0.1:9/api" in told


def test_a_plain_address_elsewhere_is_refused(place):
    _, settings = place
    with pytest.raises(SettingsError, match=r"amperity\.url"):
        settings(url="http://amperity.example/api")


def test_without_a_tenant_nobody_is_asked(place, tenant):
    source, settings = place
    put(source, 1)
    assert api.poll(settings(tenant="", workflow="cg-1")).warnings == ()
    assert tenant.runs == []


def test_what_amperity_read_is_shown_and_differences_are_told(place, tenant):
    source, settings = place
    asks = settings(reconcile=True)
    put(source, 1, rows=3)
    put(source, 2, rows=4)
    api.poll(asks)
    put(source, 3, rows=5)
    api.poll(asks)
    first, second = names(asks)
    tenant.ingest("Braze:Opens", {first: 7, "other.csv": 9}, inserted=6, rejected=1)
    tenant.ingest("Other:Table", {"nothing.parquet": 5})
    found = status(asks).amperity
    (feed,) = found.feeds
    assert (feed.feed, feed.tables) == ("messages_email_open", ("Braze:Opens",))
    assert (feed.objects, feed.objects_read) == (2, 1)
    assert (feed.rows, feed.rows_read) == (7, 7)
    assert (feed.inserted, feed.rejected, feed.errors) == (6, 1, 0)
    assert found.differences == ()
    tenant.ingest("Braze:Opens", {second: 4}, errors=1)
    assert status(asks).amperity.differences == (
        "ingest job isj-2 into Braze:Opens: 1 rows in error",
        f"{second} has 5 rows, and Amperity read 4",
    )
    window = tenant.asked[-1]
    since = datetime.fromisoformat(window["created_from"])
    assert datetime.fromisoformat(window["created_to"]) - since == 7 * DAY


def test_a_poll_that_lists_everything_warns_of_differences(place, tenant):
    source, settings = place
    asks = settings(reconcile=True)
    put(source, 1)
    api.poll(asks)
    (name,) = names(asks)
    tenant.ingest("Braze:Opens", {name: 0})
    assert api.poll(asks).warnings == ()  # it lists the newest hours alone
    whole = asks.model_copy(
        update={"source": asks.source.model_copy(update={"reconcile": timedelta(0)})}
    )
    assert api.poll(whole).warnings == (f"{name} has 1 rows, and Amperity read 0",)


def test_status_goes_on_when_amperity_does_not_answer(place, tenant):
    _, settings = place
    tenant.failures = [401]
    found = status(settings(reconcile=True))
    assert found.amperity is None
    assert "HTTP 401" in found.amperity_error


NOW = datetime(2026, 9, 15, 12, tzinfo=UTC)


def job(files, state="succeeded", errors=0, read=0):
    return amperity_api.IngestJob(
        id="isj-1",
        workflow="wf-1",
        table="T",
        state=state,
        read=read,
        inserted=0,
        updated=0,
        rejected=0,
        errors=errors,
        files=tuple(
            amperity_api.ReadFile(name=name, read=rows, errors=0)
            for name, rows in files.items()
        ),
    )


def test_an_object_that_is_never_read_is_told_once_it_is_due():
    objects = [
        Delivered(feed="f", name="old.parquet", rows=1, at=NOW - 3 * DAY),
        Delivered(feed="f", name="empty.parquet", rows=0, at=NOW - 3 * DAY),
        Delivered(feed="f", name="new.parquet", rows=1, at=NOW),
    ]
    found = compare(objects, [], NOW - 7 * DAY, NOW - 2 * DAY)
    assert found.differences == (
        "old.parquet was delivered at 2026-09-12 12:00 and never read",
    )


def test_an_object_read_twice_counts_once_and_a_failed_job_is_told():
    objects = [Delivered(feed="f", name="a.parquet", rows=5, at=NOW)]
    jobs = [job({"cb-1/a.parquet": 5}), job({"a.parquet": 5}, state="failed")]
    found = compare(objects, jobs, NOW - 7 * DAY, NOW)
    assert found.feeds[0].rows_read == 5
    assert found.differences == ("ingest job isj-1 into T has failed",)


def test_what_is_delivered_while_the_workflow_starts_is_started_over_again(
    place, tenant, monkeypatch
):
    source, settings = place
    starts = settings(workflow="cg-1", start_every="0s")
    put(source, 1)
    begun = amperity_api.Client.start

    def start(client, since, until):
        put(source, 2)
        api.poll(settings())  # a rival, without a lease
        return begun(client, since, until)

    monkeypatch.setattr(amperity_api.Client, "start", start)
    api.poll(starts)
    monkeypatch.undo()
    monkeypatch.setenv("AMPERITY_TOKEN", TOKEN)
    api.poll(starts)
    assert len(tenant.runs) == 2
    api.poll(starts)
    assert len(tenant.runs) == 2


def test_an_answer_of_another_shape_is_told(place, tenant):
    _, settings = place
    for data in ([None], {"a": 1}, [{"tables": [{"read": "n/a"}]}]):
        tenant.jobs = data
        told = status(settings(reconcile=True)).amperity_error
        assert "the answer is not what its documentation says" in told


def test_one_job_that_reads_two_feeds_counts_for_both():
    objects = [
        Delivered(feed="f", name="f-1.parquet", rows=5, at=NOW - 3 * DAY),
        Delivered(feed="f_refill", name="f_refill-1.parquet", rows=2, at=NOW - 3 * DAY),
    ]
    both = [job({"f-1.parquet": 5, "x/f_refill-1.parquet": 2})]
    assert compare(objects, both, NOW - 7 * DAY, NOW).differences == ()
