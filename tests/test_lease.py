from __future__ import annotations

import json
import time
from datetime import timedelta
from uuid import uuid4

import pytest

from currents_ingest import lease
from currents_ingest.errors import LeaseHeldError, LeaseLostError
from currents_ingest.store import Store

LONG, SHORT = timedelta(seconds=60), timedelta(seconds=0.3)


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    folder = tmp_path / "feeds"
    return Store.open(
        str(folder) if request.param == "folder" else f"memory://{uuid4()}"
    )


def objects(store):
    return [one.key for page in store.listing(lease.FOLDER) for one in page]


def test_while_one_holds_it_the_other_is_told_who_and_since_when(store):
    with lease.hold(store, "host a, process 1", LONG):
        held = json.loads(store.get(objects(store)[-1]))
        with pytest.raises(LeaseHeldError) as caught, lease.hold(store, "b", LONG):
            pass
        assert lease.holder(store) == f"host a, process 1, since {held['since']}"
    assert str(caught.value) == (
        "host a, process 1 has been at work on these feeds since "
        f"{held['since']} (its lease runs until {held['expires']} unless renewed). "
        "Nothing was done; run again when it has finished."
    )


def test_it_is_free_as_soon_as_it_is_given_back(store):
    for holder in ("a", "b", "c"):
        with lease.hold(store, holder, LONG) as held:
            held.check()
    assert lease.holder(store) is None
    assert len(objects(store)) == 1


def test_it_is_renewed_while_its_holder_works(store):
    with lease.hold(store, "a", SHORT) as held:
        time.sleep(SHORT.total_seconds() * 3)
        held.check()
        with pytest.raises(LeaseHeldError), lease.hold(store, "b", LONG):
            pass


def test_who_died_loses_it_after_its_period(store):
    dead = lease.Lease(store, "dead", SHORT, 1)
    dead.begin()
    with pytest.raises(LeaseHeldError), lease.hold(store, "b", LONG):
        pass
    time.sleep(SHORT.total_seconds())
    with lease.hold(store, "b", LONG) as held:
        held.check()
        with pytest.raises(LeaseLostError) as caught:
            dead.check()
    assert "was not renewed for" in str(caught.value)


def test_who_slept_and_finds_it_taken_has_lost_it(store):
    sleeper = lease.Lease(store, "sleeper", SHORT, 1)
    sleeper.begin()
    time.sleep(SHORT.total_seconds())
    with lease.hold(store, "b", LONG) as other:
        sleeper.keep()  # its thread wakes, tries to renew, and gives up
        with pytest.raises(LeaseLostError):
            sleeper.check()
        sleeper.give_back()  # changes nothing of the other's
        other.check()
        with pytest.raises(LeaseHeldError), lease.hold(store, "c", LONG):
            pass


def test_a_period_of_zero_holds_none(store):
    with lease.hold(store, "a", timedelta(0)) as held:
        assert held is None
        assert objects(store) == []
