"""The order of steps: whatever ends first, everything is delivered once, in order."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest import api, config, discover, pipeline, session
from currents_ingest.engine import WORKERS, Threads, _Step
from currents_ingest.errors import StoreError
from currents_ingest.store import Store
from currents_ingest.verify import verify
from tests.avro_files import OPEN, container, key, record
from tests.test_pipeline import ROW, settings_for

CLICK = "users.messages.email.Click"


class Shuffled:
    """An engine that does one step after the other, in an order that it is given."""

    def __init__(self, at_once, bytes_at_once, pick):
        self.at_once, self.bytes_at_once = at_once, bytes_at_once
        self.bytes_each = self.largest = 10**6
        self.pick = pick
        self.waiting = []
        self.sizes = []
        """Bytes of the batches in work at the beginning of each."""
        self.in_work = {}
        self.steps = {}
        self.lose = lambda _: False
        """Whether what lies between a batch's steps is lost before it is written."""

    def submit(self, work, *arguments):
        made = Driven(self)
        if work.__name__ == "read":
            size = sum(file.listed.size for file in arguments[0].files)
            self.in_work[id(arguments[0])] = size
            self.sizes.append([*self.in_work.values()])
        self.waiting.append((made, work, arguments))
        self.steps[made] = work, arguments
        return made

    def again(self, made):
        """Do a step again, and those before it."""
        work, arguments = self.steps[made]
        return work(*(self.again(a) if isinstance(a, Future) else a for a in arguments))

    def step(self):
        """Do any one of the steps whose arguments are there."""
        able = [
            one
            for one in self.waiting
            if all(a.done() for a in one[2] if isinstance(a, Future))
        ]
        made, work, arguments = chosen = able[self.pick(len(able))]
        self.waiting.remove(chosen)
        values = [a.result() if isinstance(a, Future) else a for a in arguments]
        if work.__name__ == "write" and self.lose(values[0]):
            values[1] = self.again(arguments[1])
        try:
            found = work(*values)
        except StoreError as error:
            made.set_exception(error)
            return
        if work.__name__ == "write":
            self.in_work.pop(id(values[0]))
        made.set_result(found)

    def close(self):
        pass


class Driven(Future):
    """Whoever waits for it lets the engine go on meanwhile."""

    def __init__(self, engine):
        super().__init__()
        self.engine = engine

    def result(self, timeout=None):
        while not self.done():
            self.engine.step()
        return super().result(timeout)


class Ended:
    """The queue of ended steps: to wait for one is to do one."""

    def __init__(self, engine):
        self.engine = engine

    def put(self, _):
        pass

    def get(self, timeout):  # noqa: ARG002 (there is nothing to wait for)
        self.engine.step()


def poll_with(settings, engine, monkeypatch):
    begin, run = session.begin, session.Session.run

    def driven(self, *arguments):
        made = run(self, *arguments)
        made._ended = Ended(engine)  # noqa: SLF001 (to decide what ends next)
        return made

    monkeypatch.setattr(session.Session, "run", driven)
    monkeypatch.setattr(api, "begin", lambda given: begin(given, lambda _: engine))
    return api.poll(settings)


batches_of = st.lists(
    st.tuples(st.sampled_from([OPEN, CLICK]), st.lists(st.integers(0, 9), min_size=1)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=20)
@given(batches_of, st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_in_any_order_of_steps_each_event_is_delivered_once_and_the_first_wins(
    files, at_once, room, random
):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(discover, "MAX_FILES", 1)
        monkeypatch.setattr(pipeline, "COMMIT_EVERY", random.choice([0.0, 1e9]))
        root = Path(folder)
        source = Store.open(str(root / "source"))
        largest, wanted = 0, {}
        for offset, (event, numbers) in enumerate(files):
            body = container(record(event), [ROW | {"id": str(n)} for n in numbers])
            largest = max(largest, len(body))
            source.put(key(event, offset=offset), body)
            for number in numbers:
                wanted.setdefault((event, str(number)), key(event, offset=offset))
        chosen = settings_for(root / "source", root / "feeds", include=["raw"])
        engine = Shuffled(at_once, room * largest, random.randrange)
        outcome = poll_with(chosen, engine, monkeypatch)
        assert outcome.rows_out == len(wanted)
        assert delivered(root / "feeds") == wanted
        assert verify(chosen).differences == ()
        for sizes in engine.sizes:
            assert len(sizes) <= at_once
            assert sum(sizes) <= room * largest
        assert not list((root / "feeds").glob("_staging/**/*.*"))


@settings(max_examples=20)
@given(batches_of, st.randoms())
def test_a_batch_done_again_takes_nothing_from_those_held_against_its_first_result(
    files, random
):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(discover, "MAX_FILES", 1)
        root = Path(folder)
        source = Store.open(str(root / "source"))
        for offset, (event, numbers) in enumerate(files):
            body = container(record(event), [ROW | {"id": str(n)} for n in numbers])
            source.put(key(event, offset=offset), body)
        engine = Shuffled(3, 10**6, random.randrange)
        left = [2]  # or it would never end

        def lose(job):
            if left[0] and random.random() < 0.5:
                left[0] -= 1
                source.delete(file.listed.key for file in job.files)  # gone by then
                return True
            return False

        engine.lose = lose
        chosen = settings_for(root / "source", root / "feeds", include=["raw"])
        poll_with(chosen, engine, monkeypatch)
        remaining = {
            (event, str(n))
            for offset, (event, numbers) in enumerate(files)
            if source.stat(key(event, offset=offset))
            for n in numbers
        }
        assert remaining <= delivered(root / "feeds").keys()
        assert verify(chosen).differences == ()


def delivered(feeds):
    found = {}
    for path in feeds.glob("messages_*/**/*.parquet"):
        rows = pl.read_parquet(path)
        for kind, id_, file in rows.select(
            "currents_event_type", "id", "currents_file"
        ).iter_rows():
            assert (kind, id_) not in found
            found[kind, id_] = file
    return found


# Threads


@pytest.fixture
def threads():
    made = Threads(config.Limits())
    yield made
    made.close()


def test_a_step_that_waits_for_another_takes_no_thread(threads):
    gate = Event()
    first = threads.submit(gate.wait)
    waiting = [threads.submit(str, first) for _ in range(3 * WORKERS)]
    assert threads.submit(int, "7").result(timeout=30) == 7
    gate.set()
    assert {one.result(timeout=30) for one in waiting} == {"True"}


def test_what_a_step_returned_is_let_go_once_the_next_ones_had_it(threads):
    class Rows:
        pass

    gc.collect()
    gc.disable()  # a cycle would keep gigabytes until it looks
    try:
        gate = Event()
        first = threads.submit(lambda _: Rows(), threads.submit(gate.wait))
        alive = threads.submit(weakref.ref, first)
        second = threads.submit(lambda _, rows: type(rows).__name__, alive, first)
        del first
        gate.set()
        assert second.result(timeout=30) == "Rows"
        threads.submit(int, "7").result(timeout=30)
        assert alive.result()() is None
    finally:
        gc.enable()


def test_a_step_that_fails_fails_those_that_wait_for_it(threads):
    failed = threads.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        threads.submit(str, failed).result(timeout=30)


def test_a_step_that_was_done_and_is_lost_is_waited_for_again(tmp_path, monkeypatch):
    """As on a cluster whose worker dies: what is made again tells nobody of it."""
    told = set()

    def done(step):
        known = not Future.done(step) or step in told
        if not known:
            told.add(step)  # lost meanwhile, and there again the next time
        return known and Future.done(step)

    monkeypatch.setattr(_Step, "done", done, raising=False)
    store = Store.open(str(tmp_path / "source"))
    for number in range(3):
        rows = [ROW | {"id": f"{number}"}]
        store.put(key(OPEN, offset=number), container(record(OPEN), rows))
    settings = settings_for(tmp_path / "source", tmp_path / "feeds")
    assert api.poll(settings).rows_out == 3
    assert told
