from __future__ import annotations

import gzip
import json
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Barrier, Thread
from unittest.mock import patch
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest import cache as cache_module
from currents_ingest import checkpoints
from currents_ingest import ledger as ledger_module
from currents_ingest.cache_entries import ASIDE
from currents_ingest.errors import (
    CheckpointGoneError,
    LedgerBrokenError,
    LedgerConflictError,
    RefusedError,
)
from currents_ingest.ledger import Ledger, entry_key
from currents_ingest.manifest import Entry, FileId, Input, Manifest, Output, SetAside
from currents_ingest.store import Store, StoredObject

AT = datetime(2026, 9, 15, 10, 30, tzinfo=UTC)
OPEN, CLICK = "users.messages.email.Open", "users.messages.email.Click"
HOUR = datetime(2026, 8, 30, 9, tzinfo=UTC)
HOURS = [HOUR + timedelta(hours=7 * n) for n in range(12)]
"""Over the end of a month."""
NUMBERS = count()
NOWHERE = Path("/nowhere/cache.db")


@pytest.fixture
def store():
    return Store.open(f"memory://{uuid4()}")


@contextmanager
def small(every=1, full=4, merge=2, most=5):
    """Make everything happen with a few rows already."""
    with (
        patch.object(ledger_module, "CHECKPOINT_EVERY", every),
        patch.object(checkpoints, "FULL", full),
        patch.object(checkpoints, "MERGE", merge),
        patch.object(cache_module, "MOST_ROWS", most),
    ):
        yield


def opened(store):
    ledger = Ledger.look(store, NOWHERE)
    ledger.catch_up()
    return ledger


def batch(event_type, hours, *, events=()):
    number = next(NUMBERS)
    inputs = [
        Input(
            key=f"event_type={event_type}/{number}-{n}",
            etag="e",
            size=1,
            hour=hour,
            rows=1,
            fingerprint="f",
        )
        for n, hour in enumerate(hours)
    ]
    index = Output(
        kind="index", staged=f"_staging/{number}", rows=1, bytes=1, sha256="0"
    )
    return Manifest(
        event_type=event_type,
        feed=event_type.lower().replace(".", "_"),
        contract_version=1,
        planned_at=AT,
        inputs=tuple(inputs),
        outputs=(index,),
        rows_in=1,
        rows_out=1,
        duplicates=0,
        rejects=0,
        hours={int(one.timestamp()) // 3600: 1 for one in events or hours},
    )


def commit(ledger, *batches, **more):
    for one in batches:
        for output in one.outputs:
            ledger.store.put(output.staged, b"x")
    return ledger.commit(Entry(at=AT, run="run", batches=batches, **more))


def entries_of(store):
    return list(opened_without_checkpoints(store).entries())


def opened_without_checkpoints(store):
    """The ledger as its entries alone tell it."""
    plain = Ledger(store, cache_module.Cache.look(NOWHERE, store.url))
    number = 1
    while body := store.find([entry_key(number)])[0]:
        entry = ledger_module.read_entry(entry_key(number), body)
        plain.cache.apply(entry, "any")
        number += 1
    return plain


def answers(ledger, inputs):
    """What a ledger says of files, some of which it may not hold, and of ids."""
    found = []
    for event_type in (OPEN, CLICK):
        own = [one for one in inputs if f"={event_type}/" in one.key]
        for n in range(0, len(own), 3):  # pages
            page = own[n : n + 3]
            listed = [StoredObject(key=i.key, etag="e", size=1) for i in page]
            others = [StoredObject(key=i.key, etag="e", size=2) for i in page]
            days = {(event_type, int(i.hour.timestamp()) // 86400) for i in page}
            found.append(ledger.cache.unseen([*listed, *others], days))
        hours = sorted(int(one.timestamp()) // 3600 for one in HOURS)
        for at in range(0, len(hours), 4):
            some = hours[at : at + 4]
            month = timedelta(days=31)
            looked = HOURS[0] - month, HOURS[-1] + month
            found.append(ledger.cache.index_objects(event_type, some, *looked))
    tables = ("totals", "pace", "contracts", "unjoined", "delivered", "shares")
    found += [ledger.cache.table(name) for name in tables]
    found += [ledger.cache.files(state) for state in (ASIDE, "released", "discarded")]
    return found


BATCHES = st.lists(
    st.tuples(
        st.sampled_from([OPEN, CLICK]),
        st.lists(st.sampled_from(HOURS), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=3,
)
WHO = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("commit"), WHO, BATCHES),
    st.tuples(st.just("fold"), WHO, st.none()),
    st.tuples(st.just("killed"), WHO, st.integers(0, 12)),
    st.tuples(st.just("lost"), WHO, st.none()),
    st.tuples(st.just("ask"), WHO, st.none()),
    st.tuples(st.just("wait"), WHO, st.none()),
)


class KilledError(Exception):
    pass


class Mortal(Store):
    """Writes so often, then never again."""

    left = 10**9

    def _die(self):
        self.left -= 1
        if self.left < 0:
            raise KilledError

    def put(self, key, body):
        self._die()
        super().put(key, body)

    def create(self, key, body):
        self._die()
        super().create(key, body)

    def delete(self, keys):
        for key in keys:
            self._die()
            super().delete([key])


def mortal(url):
    return Mortal(url, Store.open(url)._store)  # noqa: SLF001


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=25)
def test_whatever_is_folded_and_dropped_the_answers_are_those_of_the_entries(steps):
    store = mortal(f"memory://{uuid4()}")
    ledgers = [opened(store) for _ in range(3)]
    now = AT
    with small():
        for what, who, more in steps:
            ledger = ledgers[who]
            if what == "commit":
                with suppress(LedgerConflictError):
                    commit(ledger, *(batch(*one) for one in more))
                ledger.catch_up()
            elif what == "fold":
                ledger.fold("run", now)
            elif what == "killed":
                store.left = more
                with suppress(KilledError):
                    ledger.fold("run", now)
                store.left = 10**9
                ledgers[who] = opened(store)
            elif what == "lost":
                ledgers[who] = opened(store)
            elif what == "wait":
                now += timedelta(hours=1)
            elif what == "ask":
                ledger.catch_up()
                check(ledger)
        for ledger in ledgers:
            ledger.catch_up()
            check(ledger)


def check(ledger):
    plain = opened_without_checkpoints(ledger.store)
    inputs = [
        one
        for entry in plain.entries()
        for each in entry.batches
        for one in each.inputs
    ]
    assert answers(ledger, inputs) == answers(plain, inputs)


def test_two_fold_at_once_while_a_third_commits_and_others_begin(store):
    with small(most=3):
        folders = [opened(store) for _ in range(2)]
        writer = opened(store)
        go = Barrier(4)
        errors = []

        def often(what):
            go.wait()
            try:
                for _ in range(12):
                    what()
            except Exception as error:  # noqa: BLE001 (told below)
                errors.append(error)

        def fold(ledger):
            ledger.catch_up()
            ledger.fold("run", AT + timedelta(hours=next(NUMBERS)))

        def begin():  # it may know of later files, but has to know these
            ledger = opened(store)
            batches = [one for entry in ledger.entries() for one in entry.batches]
            for each in batches:
                files = [StoredObject(key=i.key, etag="e", size=1) for i in each.inputs]
                days = {
                    (each.event_type, int(i.hour.timestamp()) // 86400)
                    for i in each.inputs
                }
                assert ledger.cache.unseen(files, days) == []

        work = [
            lambda: fold(folders[0]),
            lambda: fold(folders[1]),
            lambda: commit(writer, batch(OPEN, HOURS[:3]), batch(CLICK, HOURS[4:6])),
            begin,
        ]
        threads = [Thread(target=often, args=(one,)) for one in work]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not errors
        assert opened(store).cache.head == 12
        for ledger in (*folders, writer, opened(store)):
            ledger.catch_up()
            check(ledger)


def sizes(store):
    """Bytes of the newest state, and how many objects the checkpoints have."""
    found = [one for page in store.listing(checkpoints.ROOT) for one in page]
    states = [one for one in found if "/states/" in one.key]
    return states[-1].size, len(found), len(states)


def test_checkpoints_do_not_grow_with_the_number_of_folds(store):
    ledger = opened(store)
    seen = []
    with small(merge=3, full=1000):
        for n in range(30):
            commit(ledger, batch(OPEN, HOURS[n % 3 : n % 3 + 2]))
            assert ledger.fold("run", AT + timedelta(hours=n))
            if n >= 10:
                seen.append(sizes(store))
        check(opened(store))
    bytes_, objects, states = (set(one) for one in zip(*seen, strict=True))
    assert max(bytes_) < 700
    assert max(objects) <= 13
    assert states == {3}


def test_the_cache_keeps_so_many_rows_and_asks_for_the_others_again(store):
    ledger = opened(store)
    with small(every=5, most=12):
        for n in range(40):
            hour = HOUR + timedelta(days=n)
            commit(ledger, batch(OPEN, [hour, hour]))
            ledger.fold("run", AT)
            assert len(ledger.cache.table("files")) <= 12 + 2 * 5
        check(ledger)
        assert len(ledger.cache.table("files")) <= 12 + 2 * 5


def test_many_files_are_folded_before_there_are_many_entries(store):
    ledger = opened(store)
    commit(ledger, batch(OPEN, HOURS))
    assert not ledger.fold("run", AT)
    with patch.object(ledger_module, "CHECKPOINT_FILES", 20):
        assert not ledger.fold("run", AT)
        commit(ledger, batch(OPEN, HOURS))
        assert ledger.fold("run", AT)
        assert not ledger.fold("run", AT)


def test_a_cache_far_behind_goes_on_from_a_checkpoint(store, tmp_path):
    old = Ledger.open(store, tmp_path / "cache.db")
    commit(old, batch(OPEN, HOURS))
    ledger = opened(store)
    with small(every=5, most=100):
        for _ in range(9):
            commit(ledger, batch(OPEN, HOURS))
            ledger.fold("run", AT)
        assert old.catch_up() == 10 - ledger.cache.base
        assert old.cache.base == ledger.cache.base
        check(old)
    old.close()


def test_segments_that_somebody_removed_are_missed(store):
    ledger = opened(store)
    with small():
        commit(ledger, batch(OPEN, HOURS[:2]))
        assert ledger.fold("run", AT)
        folder = f"{checkpoints.ROOT}/files/{OPEN}/2026-08"
        store.delete([one.key for page in store.listing(folder) for one in page])
        day = int(HOUR.timestamp()) // 86400
        with pytest.raises(CheckpointGoneError) as caught:
            opened(store).cache.unseen([], {(OPEN, day)})
    assert str(caught.value) == (
        f"objects of the checkpoints in {folder} are gone. Nothing was changed, and "
        "nothing is lost, for the ledger's entries hold the same: remove all of "
        "_ledger/checkpoints/ (nothing else of _ledger/) and the cache, and run again; "
        "they are made anew."
    )


def test_checkpoints_that_somebody_removed_are_made_anew(store):
    ledger = opened(store)
    with small():
        for _ in range(3):
            commit(ledger, batch(OPEN, HOURS))
            assert ledger.fold("run", AT)
        everything = [
            one.key for page in store.listing(checkpoints.ROOT) for one in page
        ]
        store.delete(everything)
        commit(ledger, batch(CLICK, HOURS))
        assert ledger.fold("run", AT)
        check(ledger)
        check(opened(store))
        assert opened(store).cache.base == 4


def test_a_checkpoint_of_a_newer_version_stops(store):
    body = gzip.compress(json.dumps({"format": 3}).encode())
    store.put(f"{checkpoints.ROOT}/states/0000000001.json.gz", body)
    with pytest.raises(LedgerBrokenError, match="it was written by a newer version"):
        opened(store)


def test_what_earlier_versions_folded_is_read_from_the_entries(store):
    commit(opened(store), batch(OPEN, HOURS))
    state = {"format": 1, "segments": [], "files": [], "meta": {}, "digest": ""}
    key = f"{checkpoints.ROOT}/state/0000000001.json"
    store.put(key, json.dumps(state).encode())
    store.put(f"{checkpoints.ROOT}/days/2026-08-30/files-0000000001.parquet", b"")
    ledger = opened(store)
    assert (ledger.cache.head, ledger.cache.base) == (1, 0)
    check(ledger)
    with small():
        assert ledger.fold("run", AT)
        check(opened(store))


def test_clocks_that_are_wrong_by_centuries_are_no_trouble(store):
    ledger = opened(store)
    far = [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
    one = batch(OPEN, [HOUR], events=far)
    commit(ledger, one)
    hours = sorted(one.hours)
    with small():
        assert ledger.fold("run", AT)
        found = opened(store).cache.index_objects(OPEN, hours, HOUR, HOUR)
    assert len(found) == 1


def test_decisions_about_files_outlive_a_checkpoint(store):
    ledger = opened(store)
    asides = [
        SetAside(key=f"k{n}", etag="e", size=1, event_type=OPEN, hour=HOUR, reason="r")
        for n in range(4)
    ]
    foreign = SetAside(key="odd", etag="e", size=1, reason="r")
    names = [FileId(key=one.key, etag=one.etag, size=one.size) for one in asides]
    with small():
        commit(ledger, set_aside=(*asides, foreign))
        assert ledger.fold("run", AT)
        commit(ledger, released=(names[1],), discarded=(names[2],))
        commit(ledger, batch(OPEN, [HOUR]))
        assert ledger.fold("run", AT)
        fresh = opened(store)
        assert fresh.cache.files(ASIDE) == [asides[0], asides[3], foreign]
        assert fresh.cache.files("released") == [asides[1]]
        listed = [StoredObject(key=one.key, etag="e", size=1) for one in asides]
        days = {(OPEN, int(HOUR.timestamp()) // 86400)}
        assert fresh.cache.unseen(listed, days) == []


class Keeping(Store):
    def delete(self, keys):
        for key in keys:
            if key.startswith(checkpoints.ROOT):
                raise RefusedError("delete", key, "AccessDenied")
            super().delete([key])


def test_a_role_that_may_remove_nothing_folds_all_the_same():
    url = f"memory://{uuid4()}"
    ledger = opened(Keeping(url, Store.open(url)._store))  # noqa: SLF001
    with small():
        for n in range(8):
            commit(ledger, batch(OPEN, HOURS))
            assert ledger.fold("run", AT + timedelta(hours=n))
        check(opened(ledger.store))


class Interrupted(Store):
    """Lets something happen while segments are read, or between two pages of a list."""

    meanwhile = None
    cut = None

    def gather(self, keys):
        self._happen()
        return super().gather(keys)

    def listing(self, prefix="", *, after=""):
        first = [one for page in super().listing(prefix, after=after) for one in page]
        if self.cut is None or not prefix.startswith(f"{checkpoints.ROOT}/files"):
            return iter([first])
        self._happen()
        then = [one for page in super().listing(prefix, after=after) for one in page]
        before = [one for one in first if one.key < self.cut]
        return iter([before, [one for one in then if one.key >= self.cut]])

    def _happen(self):
        if happens := self.meanwhile:
            self.meanwhile = None
            happens()


def interrupted(url):
    return Interrupted(url, Store.open(url)._store)  # noqa: SLF001


def test_a_day_that_was_read_before_a_fold_is_not_taken_for_whole():
    store = interrupted(f"memory://{uuid4()}")
    with small(most=100):
        commit(opened(store), batch(OPEN, [HOUR]))
        ledger = opened(store)
        assert ledger.fold("run", AT)
        ledger = opened(store)

        def fold():
            commit(ledger, batch(OPEN, [HOUR]))
            assert ledger.fold("run", AT)

        store.meanwhile = fold
        ledger.cache.unseen([], {(OPEN, int(HOUR.timestamp()) // 86400)})
        assert store.meanwhile is None
        check(ledger)


def test_a_list_that_is_read_while_segments_are_merged_misses_none():
    url = f"memory://{uuid4()}"
    with small(merge=4, full=100):
        ledger = opened(Store.open(url))

        def folds(*hours):
            for hour in hours:
                commit(ledger, batch(OPEN, [hour]))
                assert ledger.fold("run", AT + timedelta(minutes=10))

        folder = f"{checkpoints.ROOT}/files/{OPEN}/2026-08/"
        wanted = {(OPEN, int(HOURS[3].timestamp()) // 86400)}
        for cut in (f"{folder}30", f"{folder}31", f"{folder}32"):
            folds(HOURS[0], HOURS[3], HOURS[0], HOURS[3])
            store = interrupted(url)
            reader = opened(store)
            store.cut = cut
            store.meanwhile = lambda: folds(*HOURS[:4])
            reader.cache.unseen([], wanted)
            assert store.meanwhile is None
            store.cut = None
            reader.catch_up()
            check(reader)


def test_what_no_checkpoint_holds_is_never_dropped(store):
    ledger = opened(store)
    days = [HOUR + timedelta(days=n) for n in range(10)]
    with small(every=4, most=3):
        for _ in range(2):
            commit(ledger, batch(OPEN, days))
            commit(ledger, batch(CLICK, days))
        assert ledger.fold("run", AT)
        ledger = opened(store)
        check(ledger)
        commit(ledger, batch(OPEN, days))
        for _ in range(3):
            check(ledger)
