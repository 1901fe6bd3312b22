"""Loads on a Dask cluster keep the promises, whoever of it is killed."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import time
from contextlib import suppress
from datetime import date
from functools import partial
from os import getenv

import dask
import polars as pl
import pytest
from distributed import LocalCluster
from polars.testing import assert_frame_equal

from currents_ingest import api, config, dask_engine
from currents_ingest.config import Limits
from currents_ingest.errors import EngineError, SettingsError
from currents_ingest.simulate import Simulation, simulate
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests import campaign
from tests.clusters import cluster

DAYS = date(2026, 9, 14), date(2026, 9, 17)
ARGUMENTS = ("load", "--since", "2026-09-14", "--until", "2026-09-17")
SOME = Simulation(
    events=("users.messages.email.[BCO]*", "users.behaviors.Purchase"),
    hours=3,
    files_per_hour=3,
    rows=40,
    redelivered=0.2,
    torn=2,
)


def settings_for(root, name, **limits):
    return config.given(
        source={"url": str(root / "currents")},
        feeds={"url": str(root / name)},
        ledger={"cache": ":memory:", "lease": "0s"},
        limits=limits,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    simulate(str(folder), SOME)
    return folder


@pytest.fixture(scope="module")
def within():
    """The address of a cluster in this process."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
    ) as made:
        yield made.scheduler_address


def test_a_cluster_delivers_what_threads_deliver(root, within, monkeypatch):
    monkeypatch.setattr("currents_ingest.discover.MAX_FILES", 2)
    threads = api.load(settings_for(root, "threads"), *DAYS)
    settings = settings_for(root, "cluster")
    engine = partial(dask_engine.Dask, address=within)
    outcome = api.load(settings, *DAYS, engine=engine)
    for name in ("files", "rows_in", "rows_out", "duplicates", "rejects"):
        assert getattr(outcome, name) == getattr(threads, name), name
    assert outcome.duplicates
    assert [one.key for one in outcome.quarantined] == [
        one.key for one in threads.quarantined
    ]
    assert verify(settings).differences == ()
    assert_frame_equal(delivered(root / "cluster"), delivered(root / "threads"))
    assert api.load(settings, *DAYS, engine=engine).files == 0


def delivered(feeds):
    """Every row of every feed, but for when and in which object it was delivered."""
    paths = sorted(feeds.glob("messages_*/**/*.parquet"))
    rows = pl.concat(map(pl.read_parquet, paths), how="diagonal")
    return rows.drop("ingested_at").sort("currents_file", "currents_row")


def test_workers_of_another_version_are_refused_by_name(root, within, monkeypatch):
    other = dask_engine.stamp() | {"polars": "0.1"}
    engine = partial(dask_engine.Dask, address=within)
    settings = settings_for(root, "outdated")
    real = dask_engine.stamp()
    stamps = iter([other])
    monkeypatch.setattr(dask_engine, "stamp", lambda: next(stamps, real))
    with pytest.raises(EngineError, match=rf"polars {real['polars']} and not 0.1"):
        api.load(settings, *DAYS, engine=engine)
    assert not list((root / "outdated").glob("_ledger/0*.json"))


def test_workers_keep_freed_memory_too(tmp_path):
    with cluster(tmp_path, 1) as made:
        engine = dask_engine.Dask(Limits(), made.address)
        assert engine.at_once == 3
        rows = engine.submit(pl.DataFrame, {"a": [1]})
        told = engine.submit(getenv, "_RJEM_MALLOC_CONF", rows)
        assert told.result().endswith("muzzy_decay_ms:5000")
        engine.close()


def test_what_never_comes_ends_the_load(within, monkeypatch):
    monkeypatch.setattr(dask_engine, "_PATIENCE", 0.2)
    engine = dask_engine.Dask(Limits(), within)
    step = engine.submit(time.sleep, 3)
    with pytest.raises(EngineError, match="finish a step: TimeoutError"):
        step.result()
    step.cancel()
    engine.close()


def test_a_cluster_of_this_machine_takes_any_free_port(monkeypatch):
    small = partial(LocalCluster, n_workers=1, processes=False)
    monkeypatch.setattr(dask_engine, "LocalCluster", small)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody has it: just as good
            other.bind(("127.0.0.1", 8787))
            other.listen()
        engine = dask_engine.Dask(Limits())  # a warning is an error here
        assert engine.submit(len, "abc").result() == 3
        engine.close()


def test_no_scheduler_and_no_dask_say_what_to_do(root, monkeypatch):
    settings = settings_for(root, "nobody")
    engine = partial(dask_engine.Dask, address="tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(EngineError, match=r"the Dask cluster tcp://127\.0\.0\.1:9: "),
    ):
        api.load(settings, *DAYS, engine=engine)
    monkeypatch.setattr(dask_engine, "Client", None)
    with pytest.raises(SettingsError, match="pip install"):
        api.load(settings, *DAYS, engine=engine)


@pytest.mark.parametrize("url", ["/tmp/feeds", "s3://bucket/feeds"])  # noqa: S108
def test_a_store_crosses_a_process_boundary_by_its_url(url, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    store = Store.open(url, concurrency=7)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert again.url == url
    assert pickle.loads(pickle.dumps(store)) is again  # noqa: S301


# Whoever is killed


@pytest.fixture
def place(tmp_path):
    found = campaign.folder(tmp_path, lease="1s")
    simulate(str(found.tree), SOME)
    found.disk.mkdir()
    return found


def test_whoever_is_killed_at_work_everything_is_delivered_once(place, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with cluster(place.disk, environment=campaign.environment(place)) as made:
        arguments = (*ARGUMENTS, "--engine", "dask", "--scheduler", made.address)
        lost = campaign.start(place, *arguments)
        campaign.wait_until_at_work(lost, place)
        lost.kill()
        assert campaign.end(lost).status == campaign.KILLED
        time.sleep(1.1)  # its lease

        maimed = campaign.start(place, *arguments)
        campaign.wait_until_at_work(maimed, place, campaign.staged(place))
        made.workers[0].kill()
        ended = campaign.end(maimed)
        assert ended.status == 0, ended.told()

        shutil.rmtree(place.feeds)
        headless = campaign.start(place, *arguments)
        campaign.wait_until_at_work(headless, place, campaign.staged(place))
        made.scheduler.kill()
        ended = campaign.end(headless)
        assert ended.status in (0, 1), ended.told()
        if ended.status:
            assert "mend the cluster, then run the same command again" in ended.stderr
            assert "Traceback" not in ended.stderr
    campaign.finish(place, *ARGUMENTS)
    verified = campaign.run(place, "verify", "--json")
    assert json.loads(verified.stdout)["differences"] == []
    assert campaign.judge(place) == []
