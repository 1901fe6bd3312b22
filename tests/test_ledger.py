from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest
from obstore.store import MemoryStore

from currents_ingest import ledger as ledger_module
from currents_ingest.cache import Cache
from currents_ingest.cache_entries import ASIDE
from currents_ingest.contracts import Column, Contract
from currents_ingest.errors import (
    CacheBrokenError,
    FatalError,
    LedgerBrokenError,
    LedgerConflictError,
)
from currents_ingest.ledger import Ledger, entry_key
from currents_ingest.manifest import (
    Drift,
    Entry,
    FileId,
    Input,
    Manifest,
    Output,
    SetAside,
)
from currents_ingest.store import Store, StoredObject

AT = datetime(2026, 9, 15, 10, 30, tzinfo=UTC)
HOUR = datetime(2026, 9, 15, 9, tzinfo=UTC)
EVENT = "users.messages.email.Open"
FEED = "messages_email_open"


@pytest.fixture
def store():
    return Store.open(f"memory://{uuid4()}")


@pytest.fixture
def ledger(store, tmp_path):
    return Ledger.open(store, tmp_path / "cache.db")


def manifest(store, name, *, hour=HOUR, staged=True):
    outputs = []
    for kind in ("feed", "index"):
        key = f"_staging/run/{name}.{kind}"
        if staged:
            store.put(key, f"{name} {kind}".encode())
        outputs.append(Output(kind=kind, staged=key, rows=1, bytes=5, sha256="0"))
    return Manifest(
        event_type=EVENT,
        feed=FEED,
        contract_version=1,
        planned_at=AT,
        inputs=(Input(key=name, etag="e", size=1, hour=hour, rows=1, fingerprint="f"),),
        outputs=tuple(outputs),
        rows_in=1,
        rows_out=1,
        duplicates=0,
        rejects=0,
        hours={int(hour.timestamp()) // 3600: 1},
    )


def entry(*batches, **more):
    return Entry(at=AT, run="run", batches=batches, **more)


def known(ledger):
    for row in ledger.cache.table("months"):
        first = date.fromisoformat(f"{row['month']}-01").toordinal() - 719163
        days = {(row["event_type"], day) for day in range(first, first + 31)}
        ledger.cache._whole(row["kind"], days, "select 1")  # noqa: SLF001
    return {
        name: ledger.cache.table(name)
        for name in ("files", "hours", "totals", "contracts")
    }


def test_an_entry_is_the_commit_and_its_objects_follow(store, ledger):
    done = ledger.commit(entry(manifest(store, "a"), manifest(store, "b")))
    assert done.number == 1
    assert [output.key for output in done.outputs if output.kind == "feed"] == [
        f"{FEED}/2026/09/15/{FEED}-20260915-0000000001-00000.parquet",
        f"{FEED}/2026/09/15/{FEED}-20260915-0000000001-00001.parquet",
    ]
    assert store.get(done.outputs[2].key) == b"b feed"
    assert store.get(done.outputs[1].key) == b"a index"
    assert done.outputs[1].key.startswith(f"_index/{FEED}/")
    assert not list(store.listing("_staging"))


def test_an_entry_reads_back_as_it_was_written(store, ledger):
    done = ledger.commit(entry(manifest(store, "a")))
    body = store.get(entry_key(1))
    assert ledger_module.read_entry(entry_key(1), body) == done
    assert done.to_json() == body


def test_whoever_comes_second_publishes_nothing(store, ledger, tmp_path):
    rival = Ledger.open(store, tmp_path / "other.db")
    rival.commit(entry(manifest(store, "theirs")))
    with pytest.raises(LedgerConflictError) as caught:
        ledger.commit(entry(manifest(store, "ours")))
    assert "ledger entry 1 first; nothing of ours was published" in str(caught.value)
    assert len(list(store.listing(FEED))) == 1
    assert ledger.catch_up() == 1
    assert ledger.commit(entry(manifest(store, "ours"))).number == 2


def test_what_was_left_half_published_is_finished_by_whoever_reads_it(store, ledger):
    draft = entry(manifest(store, "a")).numbered(1)
    store.create(entry_key(1), draft.to_json())
    store.copy(draft.outputs[0].staged, draft.outputs[0].key)  # and then it died
    assert ledger.catch_up() == 1
    assert store.get(draft.outputs[1].key) == b"a index"
    assert not list(store.listing("_staging"))


def test_a_commit_whose_staging_is_gone_and_unpublished_stops_everything(store, ledger):
    with pytest.raises(FatalError, match="neither published nor staged any more"):
        ledger.commit(entry(manifest(store, "a", staged=False)))


def test_new_is_what_the_ledger_does_not_hold_with_the_same_etag_and_size(
    store, ledger
):
    ledger.commit(entry(manifest(store, "a")))

    def listed(**other):
        return StoredObject(**{"key": "a", "etag": "e", "size": 1, **other})

    others = [listed(etag="f"), listed(size=2), listed(key="b")]
    assert ledger.cache.unseen([listed(), *others]) == others


def test_decisions_are_entries_too(ledger):
    aside = SetAside(
        key="k", etag="e", size=1, event_type=EVENT, hour=HOUR, reason="torn"
    )
    contract = Contract(
        feed=FEED, event_type=EVENT, columns=(Column(name="id", type="string"),)
    )
    schema = Drift(
        fingerprint="f",
        event_type=EVENT,
        avro="{}",
        verdict="additive",
        differences=("x is new",),
        key="k",
    )
    ledger.commit(entry(set_aside=(aside,), pinned=(contract,), schemas=(schema,)))
    assert ledger.cache.files(ASIDE) == [aside]
    assert ledger.cache.contract(FEED) == contract
    name = FileId(key="k", etag="e", size=1)
    ledger.commit(entry(released=(name,)))
    assert (ledger.cache.files(ASIDE), ledger.cache.files("released")) == ([], [aside])
    ledger.commit(entry(discarded=(name,)))
    assert ledger.cache.files("released") == []
    ledger.commit(entry(reconciled=AT))
    assert ledger.cache.reconciled() == AT


@pytest.mark.parametrize("every", [3, 1000], ids=["checkpoints", "entries alone"])
def test_a_cache_from_an_empty_disk_knows_what_the_old_one_knew(
    store, ledger, tmp_path, monkeypatch, every
):
    monkeypatch.setattr(ledger_module, "CHECKPOINT_EVERY", every)
    aside = SetAside(key="x", etag="e", size=1, reason="torn")
    contract = Contract(
        feed=FEED, event_type=EVENT, columns=(Column(name="id", type="string"),)
    )
    ledger.commit(entry(set_aside=(aside,), pinned=(contract,), reconciled=AT))
    for n in range(10):
        hour = HOUR + timedelta(hours=9 * n)
        ledger.commit(entry(manifest(store, f"file-{n}", hour=hour)))
        ledger.fold("run", AT)
    fresh = Ledger.open(store, tmp_path / "empty disk" / "cache.db")
    fresh.catch_up()
    assert fresh.cache.head == 11
    assert (fresh.cache.base > 0) is (every == 3)
    assert fresh.cache.files(ASIDE) == [aside]
    assert fresh.cache.reconciled() == AT
    assert known(fresh) == known(ledger)


def test_a_start_reads_only_the_days_it_needs(store, ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "CHECKPOINT_EVERY", 1)
    for n in range(4):
        hour = HOUR + timedelta(days=n)
        ledger.commit(entry(manifest(store, f"file-{n}", hour=hour)))
        ledger.fold("run", AT)
    fresh = Ledger.open(store, tmp_path / "fresh.db")
    fresh.catch_up()
    assert fresh.cache.table("files") == []
    day = int(HOUR.timestamp()) // 86400 + 2
    seen = StoredObject(key="file-2", etag="e", size=1)
    assert fresh.cache.unseen([seen], {(EVENT, day)}) == []
    assert [row["key"] for row in fresh.cache.table("files")] == ["file-2"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.unlink(), id="deleted"),
        pytest.param(lambda path: path.write_bytes(b"no database" * 100), id="damaged"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
def test_the_cache_may_vanish_at_any_moment(store, tmp_path, spoil):
    path = tmp_path / "cache.db"
    ledger = Ledger.open(store, path)
    ledger.commit(entry(manifest(store, "a")))
    before = known(ledger)
    ledger.cache.close()
    spoil(path)
    again = Ledger.open(store, path)
    assert again.catch_up() == 1
    assert known(again) == before


def test_a_cache_of_another_ledger_is_dropped(store, ledger, tmp_path):
    ledger.commit(entry(manifest(store, "a")))
    ledger.cache.close()
    other = Ledger.open(Store.open(f"memory://{uuid4()}"), tmp_path / "cache.db")
    assert (other.catch_up(), other.cache.table("files")) == (0, [])


def test_a_cache_ahead_of_a_ledger_that_began_anew_is_dropped(store, ledger):
    ledger.commit(entry(manifest(store, "a")))
    store.delete([entry_key(1)])
    assert (ledger.catch_up(), ledger.cache.head) == (0, 0)


def test_a_cache_that_cannot_be_written_is_kept_in_memory(store, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ledger = Ledger.open(store, tmp_path / "file" / "cache.db")
    assert ledger.commit(entry(manifest(store, "a"))).number == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "it is no ledger entry (json_invalid)", id="no bytes"),
        pytest.param(b"{", "it is no ledger entry (json_invalid)", id="cut"),
        pytest.param(b"{}", "it is no ledger entry (missing)", id="empty"),
        pytest.param(
            b'{"format":2,"number":1,"at":"2026-09-15T00:00:00Z","run":"r"}',
            "it was written by a newer version",
            id="newer",
        ),
        pytest.param(
            b'{"format":1,"number":7,"at":"2026-09-15T00:00:00Z","run":"r"}',
            "it says that its number is 7",
            id="other number",
        ),
    ],
)
def test_a_broken_entry_stops_with_what_to_do(store, ledger, body, reason):
    store.put(entry_key(1), body)
    with pytest.raises(LedgerBrokenError) as caught:
        ledger.catch_up()
    assert str(caught.value).startswith(
        f"the ledger object _ledger/0000000001.json cannot be used: {reason}. Nothing "
    )


def test_the_sweep_takes_a_number_before_it_deletes(store, ledger, tmp_path):
    sleeper = Ledger.open(store, tmp_path / "sleeper.db")
    asleep = manifest(store, "a")
    ledger.sweep("another run", timedelta(0))
    assert not list(store.listing("_staging"))
    with pytest.raises(LedgerConflictError):
        sleeper.commit(entry(asleep))


def test_the_sweep_leaves_young_and_own_objects(store, ledger):
    store.put("_staging/run/a", b"")
    ledger.sweep("run", timedelta(0))
    ledger.sweep("other", timedelta(days=1))
    assert len(list(store.listing("_staging"))) == 1
    assert ledger.cache.head == 0


def test_the_probe_asks_the_store_once(store, ledger):
    assert ledger.probe("token")
    assert ledger.cache.meta("conditional") == "yes"
    assert not list(store.listing("_ledger"))


class Careless(Store):
    """Accepts the condition and ignores it, as some look-alikes of S3 do."""

    def create(self, key, body):
        self.put(key, body)


def test_a_store_that_ignores_conditions_is_found_out(tmp_path):
    store = Careless("memory://careless", MemoryStore())
    ledger = Ledger.open(store, tmp_path / "cache.db")
    assert not ledger.probe("token")
    assert not ledger.probe("token")  # remembered
    ledger.close()


def test_looking_changes_neither_bucket_nor_cache(store, tmp_path):
    path = tmp_path / "cache.db"
    draft = entry(manifest(store, "a")).numbered(1)
    store.create(entry_key(1), draft.to_json())
    before = sorted(one.key for page in store.listing() for one in page)
    assert Ledger.look(store, path).cache.head == 1
    assert sorted(one.key for page in store.listing() for one in page) == before
    assert not path.exists()


def test_an_index_object_is_found_by_hour_and_queued_time(store, ledger):
    ledger.commit(entry(manifest(store, "a")))
    hour = int(HOUR.timestamp()) // 3600
    day = timedelta(days=1)

    def found(hours, since, until):
        return len(ledger.cache.index_objects(EVENT, hours, since, until))

    assert found([hour], HOUR, HOUR) == 1
    assert found([hour + 1], HOUR, HOUR) == 0
    assert found([hour], HOUR + day, HOUR + 2 * day) == 0
    assert found([hour], HOUR - 2 * day, HOUR - day) == 0


def test_an_entry_is_applied_once_and_in_order(store, tmp_path):
    cache = Cache.look(tmp_path / "none", "x")
    first = entry(manifest(store, "a")).numbered(1)
    cache.apply(first, "d")
    cache.apply(first, "d")
    cache.apply(entry(manifest(store, "b")).numbered(3), "d")
    assert (cache.head, cache.table("totals")[0]["files"]) == (1, 1)


def test_a_cache_deleted_while_it_is_in_use_goes_on_in_memory(store, tmp_path):
    ledger = Ledger.open(store, tmp_path / "cache.db")
    ledger.commit(entry(manifest(store, "a")))
    (tmp_path / "cache.db").unlink()
    ledger.commit(entry(manifest(store, "b")))
    assert [row["key"] for row in ledger.cache.table("files")] == ["a", "b"]
    ledger.close()


def test_a_cache_damaged_while_it_is_in_use_is_removed_and_says_so(store, tmp_path):
    path = tmp_path / "cache.db"
    ledger = Ledger.open(store, path)
    for n in range(300):
        ledger.commit(entry(manifest(store, f"{n:0200}")))
    ledger.close()
    damaged = Ledger.open(store, path)
    body = path.read_bytes()
    path.write_bytes(body[:4096] + b"\xff" * (len(body) - 4096))
    with pytest.raises(CacheBrokenError) as caught:
        damaged.cache.table("files")
    assert str(caught.value) == (
        f"the cache {path} was damaged and has been removed. What was committed "
        "stays, and nothing is lost: run the same command again."
    )
    assert not path.exists()
    damaged.close()
