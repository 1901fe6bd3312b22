"""What a simulated tree promises to those who test with it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currents_ingest import keys, schemas
from currents_ingest.contracts import feed_name
from currents_ingest.errors import ForeignKeyError, SettingsError
from currents_ingest.simulate import Simulated, Simulation, simulate
from currents_ingest.simulate_files import FOREIGN, TORN
from currents_ingest.simulate_values import AWKWARD
from currents_ingest.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN = "users.messages.email.Open"
WHATSAPP = "users.messages.whatsapp.Send"  # its time is a long
TIMED_EXACTLY = "users.behaviors.pushnotification.TokenStateChange"  # has time_ms
SHA256 = re.compile(r"[0-9a-f]{64}")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tree:
    """What one simulation wrote."""

    simulated: Simulated
    files: dict[str, bytes]
    """By key relative to ``currents``."""
    expected: dict[str, Any]
    ids: dict[str, list[str]]
    """By feed."""

    def aside(self) -> dict[str, str]:
        """Return why each file is set aside, by key."""
        return {each["key"]: each["why"] for each in self.expected["set_aside"]}

    def readable(self) -> list[tuple[keys.CurrentsKey, list[Record]]]:
        """Return the other files' records, in the order Braze wrote them."""
        found = [
            (keys.parse(key), records(body))
            for key, body in self.files.items()
            if key not in self.aside()
        ]
        return sorted(found, key=lambda file: file[0].order)

    def records(self) -> Iterator[Record]:
        """Yield every record that can be read."""
        for _, found in self.readable():
            yield from found


def written(folder: Path, **options: Any) -> Tree:
    """Simulate into *folder* and read back what lies there."""
    simulated = simulate(str(folder), Simulation(**options))
    root = folder / "currents"
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    feeds = sorted((folder / "expected").glob("*.ids"))
    return Tree(
        simulated,
        {path.relative_to(root).as_posix(): path.read_bytes() for path in paths},
        json.loads((folder / "expected.json").read_text("utf-8")),
        {path.stem: path.read_text("utf-8").splitlines() for path in feeds},
    )


def somewhere(**options: Any) -> Tree:
    """Simulate into a folder that is gone afterwards (for property tests)."""
    with TemporaryDirectory() as folder:
        return written(Path(folder), **options)


def records(body: bytes) -> list[Record]:
    """Decode a file as an outsider would."""
    return list(fastavro.reader(io.BytesIO(body)))  # type: ignore[arg-type]


def readable(body: bytes) -> bool:
    """Tell whether a file is Avro to its end and has rows."""
    try:
        return records(body) != []
    except (ValueError, EOFError):
        return False


def header(body: bytes) -> dict[str, str]:
    """Return a file's metadata."""
    return dict(fastavro.reader(io.BytesIO(body)).metadata)


def breaks_a_rule(record: Record) -> bool:
    """Tell a record that no feed can take."""
    return record["id"] == "" or not 0 <= record["time"] < 4_102_444_800  # year 2100


def recount(tree: Tree) -> dict[str, dict[str, Any]]:
    """Count afresh what the readable files hold, by event type."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seen: set[str] = set()
    for key, found in tree.readable():
        count = counts[key.event_type]
        count["files"] += 1
        for record in found:
            bad, again = breaks_a_rule(record), record["id"] in seen
            sort = "rejects" if bad else "duplicates" if again else "distinct"
            count.update(("rows", sort))
            if not bad:
                seen.add(record["id"])
    names = ("files", "rows", "distinct", "duplicates", "rejects")
    return {
        event_type: {"feed": feed_name(event_type)} | {n: count[n] for n in names}
        for event_type, count in counts.items()
    }


def ids_by_feed(tree: Tree) -> dict[str, list[str]]:
    """Return the ids of the records that break no rule, once each, sorted."""
    ids: dict[str, set[str]] = defaultdict(set)
    for key, found in tree.readable():
        good = (each["id"] for each in found if not breaks_a_rule(each))
        ids[feed_name(key.event_type)].update(good)
    return {feed: sorted(found) for feed, found in sorted(ids.items())}


OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(),
        "events": st.sampled_from([(OPEN,), (WHATSAPP,), (OPEN, TIMED_EXACTLY)]),
        "versions": st.sampled_from(["latest", "all"]),
        "layout": st.sampled_from(["new", "old", "2017", "mixed"]),
        "hours": st.integers(1, 4),
        "files_per_hour": st.integers(1, 4),
        "rows": st.integers(1, 30),
        "redelivered": st.floats(0, 0.5),
        "late": st.floats(0, 1),
        "torn": st.integers(0, 7),
        "foreign": st.integers(0, 4),
        "bad_rows": st.floats(0, 0.5),
    }
)


@given(OPTIONS)
@settings(max_examples=15, deadline=None)
def test_equal_options_write_equal_bytes(options: Record) -> None:
    assert somewhere(**options) == somewhere(**options)


@given(OPTIONS)
@settings(max_examples=40, deadline=None)
def test_what_is_expected_is_what_a_recount_finds(options: Record) -> None:
    tree = somewhere(**options)
    totals = asdict(tree.simulated)
    assert tree.expected["events"] == recount(tree)
    assert tree.expected["totals"] == totals
    assert tree.ids == ids_by_feed(tree)
    assert totals["bytes"] == sum(map(len, tree.files.values()))
    assert totals["rows"] == sum(
        totals[sort] for sort in ("distinct", "duplicates", "rejects")
    )
    assert (
        totals["set_aside"]
        == len(tree.aside())
        == (options["torn"] + options["foreign"])
    )
    assert tree.aside().keys() <= tree.files.keys()


def test_another_seed_writes_other_files_and_other_events(tmp_path: Path) -> None:
    one = written(tmp_path / "1", seed=1, events=(OPEN,))
    two = written(tmp_path / "2", seed=2, events=(OPEN,))
    assert not one.files.keys() & two.files.keys()
    assert not {*one.ids[feed_name(OPEN)]} & {*two.ids[feed_name(OPEN)]}


def test_an_event_type_is_written_alike_whatever_others_are(tmp_path: Path) -> None:
    alone = written(tmp_path / "1", events=(OPEN,))
    among = written(tmp_path / "2", events=("users.messages.email.*",))
    assert len(among.files) > len(alone.files)
    assert alone.files.items() <= among.files.items()


def test_a_tree_can_be_written_to_any_store() -> None:
    simulated = simulate("memory://simulated", Simulation(events=(OPEN,), torn=1))
    expected = json.loads(Store.open("memory://simulated").get("expected.json"))
    assert expected["totals"] == asdict(simulated)


def test_every_event_type_and_version_occurs(tmp_path: Path) -> None:
    tree = written(tmp_path, versions="all", rows=1)
    found = {
        (keys.parse(key).event_type, schemas.parse(text).fingerprint)
        for key, body in tree.files.items()
        if (text := header(body)["avro.schema"])
    }
    assert found == {
        (event_type, version.writer.fingerprint)
        for event_type, versions in schemas.known().items()
        for version in versions
    }


def test_without_more_words_only_the_newest_version_occurs(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,))
    texts = {header(body)["avro.schema"] for body in tree.files.values()}
    newest = schemas.known()[OPEN][-1].writer
    assert [schemas.parse(text) for text in texts] == [newest]


def test_a_header_names_no_codec_as_in_brazes_own_files(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,))
    assert {tuple(header(body)) for body in tree.files.values()} == {("avro.schema",)}


STEM = r"dataexport\.prod-01\.S3\.integration\.[0-9a-f]{24}"
STEM_2017 = r"dataexport\.S3\.integration\.[0-9a-f]{24}"
KEYS = {
    "new": rf"({STEM})/event_type=[\w.]+/date=[\d-]+/version=12/us-01/\1\+\d\+\d+.avro",
    "old": rf"({STEM})/event_type=[\w.]+/date=[\d-]+/\d+/a/\1\+\d\+\d+.avro",
    "2017": rf"({STEM_2017})/event_type=[\w.]+/date=[\d-]+/\d+/a/\1\+\d\+\d{{10}}.avro",
}


@pytest.mark.parametrize("layout", KEYS)
def test_all_keys_have_the_layout_asked_for(tmp_path: Path, layout: str) -> None:
    tree = written(tmp_path, events=(OPEN, WHATSAPP), layout=layout, torn=6)
    assert [key for key in tree.files if not re.fullmatch(KEYS[layout], key)] == []


def test_an_older_version_lies_under_the_release_that_had_it(tmp_path: Path) -> None:
    event_type = "users.messages.banner.Click"  # of v2, v7 and v11
    tree = written(
        tmp_path, events=(event_type,), versions="all", layout="new", hours=3
    )
    found = [key.key.split("/")[3] for key, _ in tree.readable()]
    oldest, middle, newest = ["version=6"] * 2, ["version=7"] * 2, ["version=12"] * 2
    assert found == [*oldest, *middle, *newest]


def test_mixed_layouts_follow_each_other_in_time(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,), hours=3, files_per_hour=1)
    found = [
        layout
        for key, _ in tree.readable()
        for layout in KEYS
        if re.fullmatch(KEYS[layout], key.key)
    ]
    assert found == ["2017", "old", "new"]


@pytest.mark.parametrize("layout", [*KEYS, "mixed"])
def test_a_key_tells_the_event_type_and_the_queued_hour(
    tmp_path: Path, layout: str
) -> None:
    end = datetime(2026, 3, 1, 1, 30, tzinfo=UTC)
    tree = written(tmp_path, events=(OPEN,), layout=layout, end=end, hours=3)
    parsed = [key for key, _ in tree.readable()]
    assert {key.event_type for key in parsed} == {OPEN}
    assert Counter(key.hour for key in parsed) == {
        datetime(2026, 2, 28, 22, tzinfo=UTC): 2,
        datetime(2026, 2, 28, 23, tzinfo=UTC): 2,
        datetime(2026, 3, 1, 0, tzinfo=UTC): 2,
    }


def test_offsets_of_a_partition_go_on_where_the_last_file_ended(tmp_path: Path) -> None:
    ends: dict[int, int] = {}
    tree = written(tmp_path, events=(OPEN,), files_per_hour=7)
    for key, found in tree.readable():
        assert key.offset == ends.get(key.partition, key.offset)
        ends[key.partition] = key.offset + len(found)
    assert sorted(ends) == [0, 1, 2]


def test_small_files_vary_in_size_and_none_is_empty(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,), hours=50, rows=20)
    sizes = [len(found) for _, found in tree.readable()]
    assert min(sizes) >= 1
    assert len(set(sizes)) > 20
    assert 14 < sum(sizes) / len(sizes) < 26


def test_as_many_files_are_large_as_asked_for(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,), large_files=3, large_rows=2_000, rows=5)
    sizes = sorted(len(found) for _, found in tree.readable())
    assert sizes[-3:] == [2_000] * 3
    assert sizes[-4] < 100


def test_a_redelivered_event_is_the_same_record_in_a_later_file(tmp_path: Path) -> None:
    tree = written(
        tmp_path,
        events=(OPEN, WHATSAPP),
        files_per_hour=5,
        redelivered=0.2,
        bad_rows=0.1,
    )
    deliveries: dict[str, list[tuple[keys.CurrentsKey, Record]]] = defaultdict(list)
    for key, found in tree.readable():
        for record in found:
            deliveries[record["id"]].append((key, record))
    deliveries.pop("")
    repeated = [each for each in deliveries.values() if len(each) > 1]
    assert repeated
    for each in repeated:
        orders = [key.order for key, _ in each]
        assert orders == sorted(set(orders))
        assert all(record == each[0][1] for _, record in each)
        assert not breaks_a_rule(each[0][1])


@pytest.mark.parametrize(
    ("late", "low", "high"),
    [
        pytest.param(0.0, 0, 3_600, id="none: all within the queued hour"),
        pytest.param(1.0, -45 * 86_400, 0, id="all: before it, by 45 days at most"),
    ],
)
def test_late_rows_lie_before_their_queued_hour(
    tmp_path: Path, late: float, low: int, high: int
) -> None:
    tree = written(tmp_path, events=(OPEN,), late=late, redelivered=0)
    ages = [
        record["time"] - int(key.hour.timestamp())
        for key, found in tree.readable()
        for record in found
    ]
    assert [age for age in ages if not low <= age < high] == []


def test_some_rows_are_hours_and_some_are_days_late(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,), rows=200, redelivered=0)
    ages = [
        key.hour - datetime.fromtimestamp(record["time"], UTC)
        for key, found in tree.readable()
        for record in found
    ]
    late = [age for age in ages if age > timedelta(0)]
    assert 0.03 < len(late) / len(ages) < 0.07
    assert min(late) < timedelta(hours=6)
    assert max(late) > timedelta(days=2)


@pytest.mark.parametrize(
    ("event_type", "broken"),
    [
        pytest.param(OPEN, {"id"}, id="time is an int"),
        pytest.param(WHATSAPP, {"id", "time"}, id="time is a long"),
    ],
)
def test_a_bad_row_breaks_one_rule(
    tmp_path: Path, event_type: str, broken: set[str]
) -> None:
    tree = written(tmp_path, events=(event_type,), bad_rows=0.3, late=0)
    faults = [
        ("id",) * (record["id"] == "") + ("time",) * (abs(record["time"]) > 10**11)
        for record in tree.records()
        if breaks_a_rule(record)
    ]
    assert {len(fault) for fault in faults} == {1}
    assert {each for fault in faults for each in fault} == broken


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Return a tree with each kind of damage many times; tests only read it."""
    return written(
        tmp_path_factory.mktemp("spoilt"),
        events=(OPEN, WHATSAPP),
        torn=20 * len(TORN),
        foreign=20 * len(FOREIGN),
    )


def spoilt_by(tree: Tree, why: str) -> list[tuple[str, bytes]]:
    """Return the files that were spoilt in one way."""
    return [(key, tree.files[key]) for key, each in tree.aside().items() if each == why]


@pytest.mark.parametrize("why", [*TORN, "text"])
def test_a_damaged_file_or_text_named_avro_cannot_be_read_whole(
    spoilt: Tree, why: str
) -> None:
    found = spoilt_by(spoilt, why)
    assert len(found) == 20
    assert {keys.parse(key).event_type for key, _ in found} == {OPEN, WHATSAPP}
    assert [key for key, body in found if readable(body)] == []


def test_a_file_with_another_ending_has_no_key_of_a_currents_file(spoilt: Tree) -> None:
    for key, _ in spoilt_by(spoilt, "ending"):
        with pytest.raises(ForeignKeyError, match=r"does not end in \.avro"):
            keys.parse(key)


def test_a_foreign_record_is_whole_but_of_another_event_type(spoilt: Tree) -> None:
    found = spoilt_by(spoilt, "record")
    assert len(found) == 20
    for key, body in found:
        assert records(body)
        writer = schemas.parse(header(body)["avro.schema"])
        assert not writer.is_of(keys.parse(key).event_type)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Record]]:
    """Return many records of every event type; tests only read them."""
    tree = written(tmp_path_factory.mktemp("rows"), rows=60)
    return [(key.event_type, each) for key, found in tree.readable() for each in found]


def test_about_a_third_of_what_may_be_null_is_null(
    rows: list[tuple[str, Record]],
) -> None:
    nulls: Counter[bool] = Counter()
    for event_type, record in rows:
        for field in schemas.known()[event_type][-1].writer.fields:
            if field.nullable:
                nulls[record[field.name] is None] += 1
    assert 0.27 < nulls[True] / nulls.total() < 0.33


def test_texts_are_as_awkward_as_can_be(rows: list[tuple[str, Record]]) -> None:
    texts = {
        value for _, each in rows for value in each.values() if isinstance(value, str)
    }
    assert set(AWKWARD) <= texts
    assert max(map(len, texts)) == 20_000
    assert any(map(SHA256.fullmatch, texts))


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        pytest.param("price", {0.0, -12.5, 16_777_216.0}, id="price"),
        pytest.param("machine_open", {"true", None}, id="machine_open is text"),
        pytest.param("http_status_code", {200, 500, None}, id="small whole numbers"),
        pytest.param("attempt_count", {-(2**31), 2**31 - 1}, id="edges of an int"),
        pytest.param("is_error", {True, False}, id="booleans"),
        pytest.param("email_address", {"[REDACTED]"}, id="redacted addresses"),
        pytest.param("properties", {"{}", "plain text"}, id="text for JSON"),
        pytest.param("latitude", {-90.0, 90.0}, id="the poles"),
    ],
)
def test_a_field_takes_its_edge_values(
    rows: list[tuple[str, Record]], name: str, edges: set[object]
) -> None:
    found = {each[name] for _, each in rows if name in each}
    assert edges - found == set()


def test_arrays_hold_nulls_where_their_items_may_be_null(
    rows: list[tuple[str, Record]],
) -> None:
    lists = {
        name: [each[name] for _, each in rows if each.get(name) is not None]
        for name in ("media_urls", "suspected_bot_click_reason")
    }
    assert any(None in each for each in lists["media_urls"])
    assert not any(None in each for each in lists["suspected_bot_click_reason"])
    assert [] in lists["suspected_bot_click_reason"]


def test_one_person_has_one_address(rows: list[tuple[str, Record]]) -> None:
    addresses: dict[str, set[str]] = defaultdict(set)
    for event_type, record in rows:
        if event_type == OPEN and SHA256.fullmatch(record["user_id"]):
            addresses[record["user_id"]].add(record["email_address"])
    assert addresses
    assert {len(found) for found in addresses.values()} == {1}


def test_addresses_are_made_up_or_hashed(rows: list[tuple[str, Record]]) -> None:
    plain = re.compile(
        r".+@example\.com|\[REDACTED\]|[\w-]+-filler-events", re.IGNORECASE
    )
    found = {each["email_address"] for _, each in rows if each.get("email_address")}
    hashed = {each for each in found if not plain.fullmatch(each)}
    assert hashlib.sha256(b"person2@example.com").hexdigest() in hashed
    assert all(map(SHA256.fullmatch, hashed))


def test_milliseconds_agree_with_the_seconds(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(TIMED_EXACTLY, "users.profile.Update"), rows=100)
    found = [(each["time"], each["time_ms"]) for each in tree.records()]
    assert {exact // 1000 - time for time, exact in found if exact is not None} == {0}
    assert any(exact is None for _, exact in found)


def test_the_first_row_of_an_event_type_is_a_test_event(tmp_path: Path) -> None:
    tree = written(tmp_path, events=(OPEN,), bad_rows=0)
    found = [
        record["email_address"].endswith("-filler-events") for record in tree.records()
    ]
    assert found == [True] + [False] * (len(found) - 1)
    first = next(tree.records())
    assert first["machine_open"] == "machine_open-filler-events"
    assert UUID(first["timezone"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        pytest.param(
            {"events": ("users.Nothing",)},
            "events matches no known event type; `schemas list` shows them",
            id="no event type",
        ),
        pytest.param(
            {"end": datetime(2026, 1, 1)},  # noqa: DTZ001 (the mistake under test)
            "end has no time zone",
            id="naive end",
        ),
        pytest.param({"hours": 0}, "hours must be 1 or more", id="no hour"),
        pytest.param({"torn": -1}, "torn must be 0 or more", id="fewer than none"),
        pytest.param({"late": 1.5}, "late must be between 0 and 1", id="no share"),
        pytest.param(
            {"redelivered": 0.6, "bad_rows": 0.6},
            "redelivered and bad_rows must not be more than 1 together",
            id="more than all rows",
        ),
        pytest.param(
            {"large_files": 13},
            "large_files must not be more than hours times files_per_hour",
            id="more large files than files",
        ),
    ],
)
def test_options_that_contradict_themselves_write_nothing(
    tmp_path: Path, options: Record, problem: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        simulate(str(tmp_path), Simulation(**options))
    assert caught.value.problems == (problem,)
    assert list(tmp_path.iterdir()) == []
