from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest import keys
from currents_ingest.errors import ForeignKeyError

NEW = (
    "dataexport.prod-01.S3.integration.69ca/event_type=users.messages.email.Open/"
    "date=2026-04-01-17/version=6/us-01/dataexport.prod-01.S3.integration.69ca+3+12.avro"
)
OLD = NEW.replace("version=6/us-01", "42/a")
OLDEST = (
    "dataexport.S3.integration.599f/event_type=users.messages.email.Open/"
    "date=2026-04-01-17/1/a/dataexport.S3.integration.599f+3+0000000012.avro"
)
HOUR = datetime(2026, 4, 1, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("key", "layout", "segment"),
    [
        pytest.param(NEW, "new", "version=6", id="version= and environment"),
        pytest.param(OLD, "old", "42", id="schema id and zone"),
        pytest.param(OLDEST, "2017", "1", id="2017, no cluster, offset of ten digits"),
        pytest.param(
            NEW.replace("/us-01", "/us-01/later/idea"),
            "new",
            "version=6",
            id="unknown segments",
        ),
        pytest.param(
            NEW.replace("us-01", "a b+c%20é😀"),
            "new",
            "version=6",
            id="space, +, % and unicode",
        ),
        pytest.param(
            NEW.replace("version=6/us-01", "later"), "other", "later", id="another"
        ),
    ],
)
def test_every_layout_tells_the_event_type_the_hour_and_the_order(key, layout, segment):
    assert keys.parse(key) == keys.CurrentsKey(
        key=key,
        event_type="users.messages.email.Open",
        hour=HOUR,
        partition=3,
        offset=12,
        layout=layout,
        schema_segment=segment,
    )
    assert keys.parse(key).release == ("6" if layout == "new" else "")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (f"s3://bucket/a/{NEW}", f"a/{NEW}"),
        (f"file:///tmp//x/{NEW}", f"tmp/x/{NEW}"),
        (f"./{NEW}", NEW),
    ],
)
def test_a_url_tells_what_its_key_does(url, path):
    assert keys.path_of(url) == path
    assert keys.parse(keys.path_of(url)).event_type == "users.messages.email.Open"


def test_a_name_without_partition_and_offset_is_still_a_currents_file():
    assert keys.parse("x/event_type=A/date=2026-04-01-17/new-name.avro").offset == 0


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param(
            NEW.replace("/us-01/", "/../"),
            "the key has an empty, '.' or '..' segment, so it is not read",
            id="dots",
        ),
        pytest.param(
            NEW.replace("/us-01/", "/us\n01/"),
            "the key has a control character, so it is not read",
            id="a line in the key",
        ),
        pytest.param(
            NEW.replace("/us-01/", "//"),
            "the key has an empty, '.' or '..' segment, so it is not read",
            id="empty segment",
        ),
        pytest.param(
            NEW.replace(".avro", ".txt"), "the name does not end in .avro", id="text"
        ),
        pytest.param(
            NEW.replace("event_type=", "type="),
            "the key has no event_type= segment",
            id="no event type",
        ),
        pytest.param(
            NEW.replace("=users.messages.email.Open", "=users..Open"),
            "what follows event_type= is no event type",
            id="no name",
        ),
        pytest.param(
            NEW.replace("date=2026-04-01-17", "2026"),
            "the key has no date= segment",
            id="no date",
        ),
        pytest.param(
            NEW.replace("-17", "-24"),
            "what follows date= is no hour (YYYY-MM-DD-HH)",
            id="hour 24",
        ),
    ],
)
def test_a_foreign_key_says_why_it_is_one(key, reason):
    with pytest.raises(ForeignKeyError) as caught:
        keys.parse(key)
    assert str(caught.value) == reason


@given(st.text())
def test_whatever_a_key_is_it_parses_or_is_foreign(text):
    try:
        assert keys.parse(text).key == text
    except ForeignKeyError as error:
        assert str(error)


def test_offsets_are_ordered_as_numbers_and_hours_come_first():
    def at(hour, partition, offset):
        return keys.parse(
            f"event_type=A/date=2026-04-01-{hour}/x+{partition}+{offset}.avro"
        )

    wanted = [at("01", 0, 9), at("01", 0, 10), at("01", 2, 1), at("02", 0, 1)]
    mixed = [wanted[n] for n in (2, 0, 3, 1)]
    assert sorted(mixed, key=lambda key: key.order) == wanted


@pytest.mark.parametrize(
    ("key", "size", "is_marker"),
    [
        pytest.param("a/event_type=x.y", 0, True, id="event type folder"),
        pytest.param("a/date=2026-04-01-17/", 0, True, id="date folder"),
        pytest.param("a/file.avro", 0, False, id="an empty file is no marker"),
        pytest.param("a/folder", 3, False, id="content"),
    ],
)
def test_a_folder_marker_is_no_file(key, size, is_marker):
    assert keys.is_folder_marker(key, size) is is_marker


def test_the_hour_prefix_sorts_before_the_files_of_its_hour():
    prefix = keys.hour_prefix("a/event_type=b", HOUR)
    assert prefix == "a/event_type=b/date=2026-04-01-17"
    assert "a/event_type=b/date=2026-04-01-16/z" < prefix < f"{prefix}/0"
