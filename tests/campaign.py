"""Kill, restart and judge the real command, again and again.

``python -m tests.campaign --kills 200 --seed 1`` is the long run; the tests use the
same pieces for a short one. Nothing here knows how the product works: it starts the
command line as a user would, and judges what lies in the feeds with other readers
(pyarrow, fsspec and s3fs).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.parquet as pq

from currents_ingest.simulate import Simulation, simulate
from tests.servers import Fault, Request, moto_server, proxied

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

FEED_OBJECT = re.compile(
    r"(?P<feed>[a-z][a-z0-9_]*)/(?P<day>\d{4}/\d\d/\d\d)/"
    r"(?P=feed)-(?P<date>\d{8})-\d{10}-\d{5}\.parquet"
)
"""Key of a published object, relative to the feeds (the design, section 4)."""

_ANY = re.compile(r".*")
_ENTRY = re.compile(r"_ledger/(\d{10})\.json")
_COURIER = re.compile(r"([a-z][a-z0-9_]*)/\d{4}/\d\d/\d\d/\1-[^/]*\.parquet")
"""What Amperity would pick up: nothing but finished objects may match it."""

KILLED = -9
PATIENCE = 120.0
"""Seconds after which a run counts as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tree of Currents files and its feeds lie, and who works on them."""

    tree: Path
    """Folder that `simulate` writes to; what is expected lies in it."""
    feeds: str
    source: str
    disk: Path
    """All that one process keeps locally: working directory and cache."""
    endpoint: str = ""
    """Of S3; empty for a folder."""
    lease: str = "60s"
    memory: str = "512MB"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run went."""

    status: int
    stdout: str
    stderr: str

    @property
    def lease_held(self) -> bool:
        """True if it did nothing because another was at work."""
        return self.status == 1 and "at work on these feeds" in self.stderr

    def told(self) -> str:
        """Return everything it said, for a failed assertion."""
        return f"status {self.status}\n{self.stdout}\n{self.stderr}"


def folder(root: Path, *, tree: Path | None = None, lease: str = "60s") -> Place:
    """Return a place in a folder, over its own tree or a given one."""
    tree = tree or root / "tree"
    return Place(
        tree=tree,
        source=str(tree / "currents"),
        feeds=str(root / "feeds"),
        disk=root / "disk",
        lease=lease,
    )


def bucket(
    root: Path,
    endpoint: str,
    name: str,
    *,
    tree: Path | None = None,
    lease: str = "60s",
) -> Place:
    """Return a place in an S3 bucket that is there; a given tree is put into it."""
    place = Place(
        tree=tree or root / "tree",
        source=f"s3://{name}/currents",
        feeds=f"s3://{name}/out/feeds",
        disk=root / "disk",
        endpoint=endpoint,
        lease=lease,
    )
    if tree:
        upload(place, tree)
    return place


# Running the command.


def environment(place: Place) -> dict[str, str]:
    """Return the variables that configure one run, and nobody else's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "CURRENTS_"))
    }
    root = str(Path(__file__).parents[1])
    kept["PYTHONPATH"] = os.pathsep.join(
        filter(None, [root, os.environ.get("PYTHONPATH", "")])
    )
    return kept | {
        "CURRENTS_SOURCE__URL": place.source,
        "CURRENTS_FEEDS__URL": place.feeds,
        "CURRENTS_LEDGER__CACHE": str(place.disk / "cache" / "cache.db"),
        "CURRENTS_LEDGER__LEASE": place.lease,
        "CURRENTS_LIMITS__MEMORY": place.memory,
        **(s3_environment(place.endpoint) if place.endpoint else {}),
    }


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the AWS chain's variables for a server that accepts every key."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def start(place: Place, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    place.disk.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "currents_ingest", *arguments],
        cwd=place.disk,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], timeout: float = PATIENCE) -> Ended:
    """Wait until it ends; one that hangs is killed and the test fails."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        message = f"still running after {timeout:.0f} s\n{out}\n{err}"
        raise AssertionError(message) from None
    return Ended(process.returncode, out, err)


def run(place: Place, *arguments: str) -> Ended:
    """Run the command line to its end."""
    return end(start(place, *arguments))


def run_and_kill(place: Place, arguments: Sequence[str], after: float) -> Ended:
    """Start it and SIGKILL it *after* seconds, unless it ends before."""
    process = start(place, *arguments)
    try:
        out, err = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return Ended(process.returncode, out, err)


def run_and_kill_at_work(place: Place, arguments: Sequence[str], after: float) -> Ended:
    """SIGKILL it *after* seconds of work, counted from its first staging object."""
    before = staged(place)
    process = start(place, *arguments)
    wait_until_at_work(process, place, before)
    time.sleep(after)
    process.kill()
    return end(process)


def run_and_kill_at_write(
    place: Place, arguments: Sequence[str], number: int, fault: Fault | None
) -> Ended:
    """SIGKILL it as it asks S3 for its *number*-th write, which may yet be applied."""
    numbers = count(1)

    def decide(request: Request) -> Fault | None:
        if not request.writes or next(numbers) != number:
            return None
        process.kill()
        return fault

    with proxied(place.endpoint, decide) as proxy:
        process = start(replace(place, endpoint=proxy.endpoint), *arguments)
        return end(process)


def staged(place: Place) -> set[str]:
    """Return the names in staging, in a folder."""
    there = Path(place.feeds) / "_staging"
    return {path.name for path in there.rglob("*") if path.is_file()}


def wait_until_at_work(
    process: subprocess.Popen[str], place: Place, before: Collection[str] = ()
) -> None:
    """Wait until there is a staging object that was not there *before*."""
    while process.poll() is None and not staged(place).difference(before):
        time.sleep(0.001)


def finish(place: Place, *arguments: str, attempts: int = 40) -> Ended:
    """Run until status 0, as a scheduler would, waiting out a dead one's lease."""
    for _ in range(attempts):
        ended = run(place, *(arguments or ("poll",)))
        if ended.status == 0:
            return ended
        if ended.status != 1 or "Traceback" in ended.stderr:
            raise AssertionError(ended.told())
        time.sleep(0.25)
    message = f"never succeeded in {attempts} attempts\n{ended.told()}"
    raise AssertionError(message)


def add_files(place: Place, simulation: Simulation) -> None:
    """Let `simulate` write more files into the tree, and upload them if it is S3.

    `simulate` describes what it wrote in one call; the tree needs the sum of all.
    """
    with tempfile.TemporaryDirectory() as part:
        simulate(part, simulation)
        _add_to_tree(place.tree, Path(part))
        if place.endpoint:
            upload(place, Path(part))


def _add_to_tree(tree: Path, part: Path) -> None:
    shutil.copytree(part / "currents", tree / "currents", dirs_exist_ok=True)
    (tree / "expected").mkdir(exist_ok=True)
    for path in sorted((part / "expected").glob("*.ids")):
        with (tree / "expected" / path.name).open("a", encoding="utf-8") as ids:
            ids.write(path.read_text("utf-8"))
    number = len(list(tree.glob("expected-*.json")))
    shutil.copy(part / "expected.json", tree / f"expected-{number}.json")


def upload(place: Place, tree: Path) -> None:
    """Put a tree's files into the bucket."""
    here = tree / "currents"
    found = sorted(path for path in here.rglob("*") if path.is_file())
    there = [f"{place.source}/{path.relative_to(here).as_posix()}" for path in found]
    _files(place).put([str(path) for path in found], there)


def forget(place: Place) -> None:
    """Empty the disk, as a new container has it."""
    shutil.rmtree(place.disk, ignore_errors=True)


def forget_cache(place: Place) -> None:
    """Delete the cache alone."""
    shutil.rmtree(place.disk / "cache", ignore_errors=True)


def begin_anew(place: Place) -> None:
    """Delete tree, source and feeds; what is on the disk stays, and is stale now."""
    files = _files(place)
    for url in (place.source, place.feeds):
        if files.exists(url):
            files.rm(url, recursive=True)
    shutil.rmtree(place.tree, ignore_errors=True)


# Judging what it left.


def stored(place: Place, only: re.Pattern[str] = _ANY) -> dict[str, bytes]:
    """Return what lies at the feeds, by key relative to them.

    While others work, ask for what may not vanish between the listing and the reading.
    """
    files = _files(place)
    root = place.feeds.removeprefix("s3://") + "/"
    paths = [at for at in files.find(root) if only.fullmatch(at.removeprefix(root))]
    # Leases come and go while a process is at work.
    bodies = files.cat(paths, on_error="omit") if paths else {}
    return {path.removeprefix(root): body for path, body in sorted(bodies.items())}


def hashes(place: Place) -> dict[str, str]:
    """Return the SHA-256 of every byte of state: feeds, ledger and local disk."""
    state = {f"feeds/{key}": _sha256(body) for key, body in stored(place).items()}
    for path in sorted(place.disk.rglob("*")):
        if path.is_file():
            name = path.relative_to(place.disk).as_posix()
            state[f"disk/{name}"] = _sha256(path.read_bytes())
    return state


def expected_ids(tree: Path) -> dict[str, list[str]]:
    """Return what `simulate` says each feed must hold, by feed.

    A unified feed has every event of its event types that it does not reject.
    """
    found = {
        path.stem: path.read_text("utf-8").split()
        for path in sorted((tree / "expected").glob("*.ids"))
    }
    mapped = [one for one in found if one.startswith("messages_email_")]
    found["email_events"] = [id_ for feed in mapped for id_ in found[feed]]
    return found


def feed_ids(place: Place) -> dict[str, list[str]]:
    """Return the ids of every published event, by feed."""
    return _ids(stored(place, FEED_OBJECT))


def judge_feeds(place: Place, tree: Path | None = None) -> list[str]:
    """Compare the rows of the feeds with what `simulate` wrote."""
    objects = stored(place)
    expected = expected_ids(tree or place.tree)
    return judge_rows(expected, _ids(objects), _rejected(objects))


def judge(place: Place) -> list[str]:
    """Compare the feeds with what `simulate` wrote; returns the differences."""
    objects = stored(place)
    return [
        *judge_rows(expected_ids(place.tree), _ids(objects), _rejected(objects)),
        *judge_schemas(objects),
        *judge_ledger(objects),
        *judge_leftovers(objects),
    ]


def judge_rows(
    expected: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[str]],
    rejected: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """Return what is missing, doubled or should not be there, by feed."""
    differences = []
    for feed in sorted({*expected, *found}):
        wanted, got = set(expected.get(feed, ())), Counter(found.get(feed, ()))
        counts = {
            "missing": len(wanted - got.keys()) - rejected.get(feed, 0),
            "doubled": sum(times - 1 for times in got.values()),
            "extra": len(got.keys() - wanted),
        }
        differences += [
            f"{feed}: {n} of {len(wanted)} ids {what}"
            for what, n in counts.items()
            if n
        ]
    return differences


def judge_schemas(objects: Mapping[str, bytes]) -> list[str]:
    """Return the feeds whose objects differ in columns, order or types."""
    schemas: dict[str, set[str]] = {}
    for key, body in objects.items():
        if match := FEED_OBJECT.fullmatch(key):
            schema = pq.read_schema(io.BytesIO(body)).remove_metadata()
            schemas.setdefault(match["feed"], set()).add(schema.to_string())
    return [
        f"{feed}: its objects have {len(found)} different schemas"
        for feed, found in sorted(schemas.items())
        if len(found) > 1
    ]


def judge_ledger(objects: Mapping[str, bytes]) -> list[str]:
    """Return the gaps in the ledger's numbers, and entries that are no JSON."""
    numbers = sorted(int(m[1]) for key in objects if (m := _ENTRY.fullmatch(key)))
    differences = []
    if not numbers:
        differences.append("the ledger has no entry")
    if numbers != list(range(1, len(numbers) + 1)):
        differences.append(f"the ledger's numbers have a gap: {numbers}")
    for key, body in objects.items():
        if _ENTRY.fullmatch(key):
            try:
                json.loads(body)
            except ValueError:
                differences.append(f"{key} is no JSON")
    return differences


def judge_leftovers(objects: Mapping[str, bytes]) -> list[str]:
    """Return what finished runs should not have left behind."""
    return [
        f"left over: {key}"
        for key in objects
        if key.startswith("_staging/")
        or not (key.startswith("_") or FEED_OBJECT.fullmatch(key))
    ]


def set_aside(place: Place) -> list[str]:
    """Return the keys that `simulate` spoilt, so that they must be in quarantine."""
    parts = [
        json.loads(p.read_text("utf-8")) for p in place.tree.glob("expected-*.json")
    ]
    return sorted(one["key"] for part in parts for one in part["set_aside"])


@dataclass(slots=True)
class Watch:
    """What every reader has seen of the feeds so far; nothing of it may change."""

    place: Place
    seen: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each published object, by key."""
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    """Which object first held an event, by feed and id."""

    def look(self) -> list[str]:
        """Read all that a courier would; returns what broke a promise by now."""
        objects = stored(self.place, _COURIER)
        differences = [f"{key} vanished" for key in self.seen if key not in objects]
        expected = {
            feed: set(ids) for feed, ids in expected_ids(self.place.tree).items()
        }
        for key, body in objects.items():
            differences += self._look_at(key, body, expected)
        return differences

    def _look_at(
        self, key: str, body: bytes, expected: Mapping[str, set[str]]
    ) -> list[str]:
        digest = _sha256(body)
        if key in self.seen:
            return [f"{key} changed"] if self.seen[key] != digest else []
        self.seen[key] = digest
        feed = key.split("/", 1)[0]
        try:
            ids = _column_of_ids(body)
        except (OSError, ValueError) as error:
            return [f"{key} cannot be read: {type(error).__name__}"]
        extra = len(set(ids) - expected.get(feed, set()))
        differences = [f"{key}: {extra} ids that nobody sent"] if extra else []
        rivals = Counter(
            rival for id_ in ids if (rival := self.owners.setdefault((feed, id_), key))
        )
        inside = len(ids) - len(set(ids))
        if inside:
            differences.append(f"{key}: {inside} ids twice")
        return differences + [
            f"{key}: {n} ids that {rival} has"
            for rival, n in sorted(rivals.items())
            if rival != key
        ]


def _files(place: Place) -> Any:
    """Open the store with fsspec, without any cache of its own."""
    if not place.endpoint:
        return fsspec.filesystem("file")
    return fsspec.filesystem(
        "s3",
        key="testing",
        secret="testing",  # noqa: S106 (moto takes any)
        client_kwargs={"endpoint_url": place.endpoint},
        use_listings_cache=False,
    )


def _ids(objects: Mapping[str, bytes]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, body in objects.items():
        if match := FEED_OBJECT.fullmatch(key):
            found.setdefault(match["feed"], []).extend(_column_of_ids(body))
    return found


def _column_of_ids(body: bytes) -> list[str]:
    """Return the ids of a feed object; a unified feed names them event_id."""
    names = pq.read_schema(io.BytesIO(body)).names
    name = "id" if "id" in names else "event_id"
    ids: list[str] = pq.read_table(io.BytesIO(body), columns=[name])[name].to_pylist()
    return ids


def _rejected(objects: Mapping[str, bytes]) -> Counter[str]:
    """Return how many rows unified feeds reject."""
    counts: Counter[str] = Counter()
    for key, body in objects.items():
        if key.startswith("_rejects/email_events/"):
            counts["email_events"] += body.count(b"\n")
    return counts


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# The long run.


@dataclass(slots=True)
class Figures:
    """What a campaign has done so far."""

    kills: int = 0
    starts: int = 0
    rounds: int = 0
    rows: int = 0
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What a campaign is asked to do."""

    kills: int
    rng: random.Random
    empty_disk: bool = False
    """Every start finds an empty disk; else every fifth finds no cache."""
    leases: tuple[str, ...] = ("0s", "1s")
    """Used in turn, one a round."""
    at_once: int = 1
    """Processes that work at the same time, each on a disk of its own."""
    life: int = 3
    """Rounds after which the feeds are deleted and begun anew."""
    log: Callable[[str], None] = print


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a run does that nobody kills."""

    seconds: float
    at_work: float
    """Seconds between its first staging object and its end; of a folder."""
    writes: int
    """Requests that write; of S3."""


EVENTS = (
    "users.messages.email.[BCO]*",
    "users.messages.sms.Send",
    "users.behaviors.Purchase",
)
FIRST = datetime(2026, 9, 15, 12, tzinfo=UTC)
"""End of the first files; each addition ends three hours later."""
_KILLS_A_ROUND = 12


def more(asked: Campaign, place: Place) -> None:
    """Add the files of three more hours, with a torn one and with events of before."""
    number = len(list(place.tree.glob("expected-*.json")))
    simulation = Simulation(
        seed=asked.rng.randrange(10**9),
        events=EVENTS,
        end=FIRST + number * timedelta(hours=3),
        hours=3,
        files_per_hour=1,
        rows=150,
        torn=1,
        redelivered=0.05,
    )
    add_files(place, simulation)


def commands() -> list[tuple[str, ...]]:
    """Return the ways to ingest everything."""
    until = FIRST + timedelta(days=60)
    days = ("--since", "2026-08-01", "--until", f"{until:%Y-%m-%d}")
    return [("poll",), ("poll", "--json"), ("load", *days)]


def undisturbed(place: Place) -> Undisturbed:
    """Measure a run that nobody kills."""
    if place.endpoint:
        return _undisturbed_on_s3(place)
    began = time.monotonic()
    process = start(place, "poll")
    wait_until_at_work(process, place)
    at_work = time.monotonic()
    if (ended := end(process)).status:
        raise AssertionError(ended.told())
    now = time.monotonic()
    return Undisturbed(seconds=now - began, at_work=now - at_work, writes=0)


def _undisturbed_on_s3(place: Place) -> Undisturbed:
    writes, began = count(), time.monotonic()

    def decide(request: Request) -> None:
        if request.writes:
            next(writes)

    with proxied(place.endpoint, decide) as proxy:
        ended = run(replace(place, endpoint=proxy.endpoint), "poll")
    if ended.status:
        raise AssertionError(ended.told())
    seconds = time.monotonic() - began
    return Undisturbed(seconds=seconds, at_work=0, writes=next(writes))


def plan(asked: Campaign, place: Place, usual: Undisturbed) -> Callable[[], Ended]:
    """Choose a command and a moment: half of them blindly, half of them at work.

    A process starts for longer than it works, so blind kills rarely hit a commit.
    """
    rng = asked.rng
    arguments = rng.choice(commands())
    if rng.random() < 0.5:
        after = rng.uniform(0, usual.seconds)
        return lambda: run_and_kill(place, arguments, after)
    if not place.endpoint:
        after = rng.uniform(0, usual.at_work)
        return lambda: run_and_kill_at_work(place, arguments, after)
    number, fault = rng.randint(1, usual.writes), rng.choice((None, Fault.REFUSED))
    return lambda: run_and_kill_at_write(place, arguments, number, fault)


def attempt(
    asked: Campaign, place: Place, figures: Figures, usual: Undisturbed
) -> list[Ended]:
    """Start as many processes as asked for, each to be killed at its own moment."""
    disks = [place.disk / str(n) for n in range(asked.at_once)]
    places = [replace(place, disk=disk) for disk in disks]
    for one in places:
        figures.starts += 1
        if asked.empty_disk:
            forget(one)
        elif figures.starts % 5 == 0:
            forget_cache(one)
    plans = [plan(asked, one, usual) for one in places]
    with ThreadPoolExecutor(asked.at_once) as pool:
        return list(pool.map(lambda act: act(), plans))


def one_round(
    asked: Campaign, place: Place, figures: Figures, usual: Undisturbed
) -> None:
    """Kill, start again and judge, until everything is ingested after all."""
    watch, enough = Watch(place), min(figures.kills + _KILLS_A_ROUND, asked.kills)
    more(asked, place)
    while figures.kills < enough and not figures.differences:
        ended = attempt(asked, place, figures, usual)
        figures.kills += sum(one.status == KILLED for one in ended)
        figures.differences += watch.look()
        figures.differences += [
            f"a run failed: {one.told()}" for one in ended if not _was_expected(one)
        ]
        if any(one.status == 0 for one in ended) or asked.rng.random() < 0.1:
            more(asked, place)
        elif any(one.lease_held for one in ended):
            time.sleep(0.1)
    conclude(place, watch, figures)


def _was_expected(ended: Ended) -> bool:
    lost = ended.status == 1 and re.search("lease|another process", ended.stderr)
    return ended.status in {0, KILLED} or (
        bool(lost) and "Traceback" not in ended.stderr
    )


def conclude(place: Place, watch: Watch, figures: Figures) -> None:
    """Let it finish in peace, then look at everything.

    The last run holds a lease: without one nobody can know that what lies in staging
    is a dead process's, so it stays there.
    """
    last = replace(place, lease="60s", disk=place.disk / "0")
    finish(last, "poll")
    verified = run(last, "verify", "--json")
    if verified.status or json.loads(verified.stdout)["differences"]:
        figures.differences.append(f"verify: {verified.told()}")
    figures.differences += [*watch.look(), *judge(place)]
    figures.rows += len(watch.owners)
    figures.rounds += 1


def campaign(asked: Campaign, place: Place) -> Figures:
    """Do round after round until there were enough kills, or anything differed."""
    figures = Figures()
    more(asked, place)
    usual = undisturbed(place)
    while figures.kills < asked.kills and not figures.differences:
        if figures.rounds % asked.life == 0:
            begin_anew(place)
        lease = asked.leases[figures.rounds % len(asked.leases)]
        one_round(asked, replace(place, lease=lease), figures, usual)
        asked.log(f"round {figures.rounds}: {figures.kills} kills, lease {lease}")
    for difference in figures.differences:
        asked.log(difference)
    return figures


@contextmanager
def new_bucket(root: Path) -> Iterator[Place]:
    """Yield a place in an S3 of our own."""
    with moto_server() as endpoint:
        place = bucket(root, endpoint, "campaign")
        _files(place).mkdir("campaign")
        yield place


def arguments() -> argparse.ArgumentParser:
    """Describe the command line of the campaign itself."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description=__doc__
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--s3", action="store_true", help="in moto's S3, not a folder")
    parser.add_argument(
        "--empty-disk",
        action="store_true",
        help="every start finds an empty disk; else every fifth finds no cache",
    )
    parser.add_argument(
        "--leases",
        nargs="+",
        default=["0s", "1s"],
        metavar="DURATION",
        help="used in turn, one a round; 0s is off",
    )
    parser.add_argument(
        "--at-once", type=int, default=1, help="processes at the same time"
    )
    parser.add_argument(
        "--life", type=int, default=3, help="rounds before the feeds begin anew"
    )
    parser.add_argument("--root", type=Path, help="work here, and leave all for a look")
    return parser


def main() -> int:
    """Run a campaign and print one line of figures; 1 if anything differed."""
    chosen = arguments().parse_args()
    root = chosen.root or Path(tempfile.mkdtemp(prefix="campaign-"))
    asked = Campaign(
        kills=chosen.kills,
        rng=random.Random(chosen.seed),
        empty_disk=chosen.empty_disk,
        leases=tuple(chosen.leases),
        at_once=chosen.at_once,
        life=chosen.life,
        log=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
    )
    began = time.monotonic()
    with new_bucket(root) if chosen.s3 else nullcontext(folder(root)) as place:
        figures = campaign(asked, place)
    if figures.differences:
        asked.log(f"all of it is left in {root}")
    elif not chosen.root:
        shutil.rmtree(root)
    print(  # noqa: T201 (the result)
        f"{figures.kills} kills in {figures.starts} starts, {figures.rounds} rounds, "
        f"{figures.rows} rows, {len(figures.differences)} differences, "
        f"{time.monotonic() - began:.0f} s"
    )
    return bool(figures.differences)


if __name__ == "__main__":
    sys.exit(main())
