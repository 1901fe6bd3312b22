"""When cron text fires, held against a clock that is watched minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from currents_ingest.crontab import Every, cron, time_zone
from tests.cron_rules import JUMPS, Watched, fires

MINUTE = timedelta(minutes=1)


def fired(text, zone, since, until):
    """Return every time from *since* (left out) to *until*, as the schedule says."""
    found, one, moment = [], cron(text, zone), since
    while (moment := one.after(moment)) <= until:
        found.append(moment)
    return found


def at(text, zone="UTC"):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def local(found, zone):
    return [f"{one.astimezone(ZoneInfo(zone)):%d %H:%M %z}" for one in found]


@pytest.mark.parametrize(
    ("text", "since", "times"),
    [
        pytest.param("0 6 * * *", "2026-01-01", ["2026-01-01T06:00"], id="a time"),
        pytest.param("0 6 * * *", "2026-01-01T06:00", ["2026-01-02T06:00"], id="after"),
        pytest.param("5/20 * * * *", "2026-01-01T00:05", ["2026-01-01T00:25"], id="5/"),
        pytest.param("0 0 * * 0", "2026-01-01", ["2026-01-04"], id="Sunday is 0"),
        pytest.param("0 0 * * 7", "2026-01-01", ["2026-01-04"], id="Sunday is 7"),
        pytest.param("0 0 * * SUN", "2026-01-01", ["2026-01-04"], id="Sunday is SUN"),
        pytest.param("0 0 * * 1", "2026-01-01", ["2026-01-05"], id="Monday is 1"),
        pytest.param("0 0 * * 5-7", "2026-01-02", ["2026-01-03"], id="5-7"),
        pytest.param("0 0 * feb-mar *", "2026-01-01", ["2026-02-01"], id="names"),
        pytest.param("0 0 29 2 *", "2026-01-01", ["2028-02-29"], id="leap day"),
        pytest.param(
            "0 0 15 * 1",
            "2026-01-12",
            ["2026-01-15", "2026-01-19"],
            id="either kind of day is enough",
        ),
        pytest.param(
            "0 0 */2 * 1", "2026-01-01", ["2026-01-05"], id="with a star both count"
        ),
    ],
)
def test_cron_text_means_what_cron_takes_it_for(text, since, times):
    found, moment = [], at(since)
    for _ in times:
        moment = cron(text).after(moment)
        found.append(moment)
    assert found == [at(one) for one in times]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is no cron; write five fields"),
        ("@daily", "'@daily' is no cron; write five fields"),
        ("0 6 * *", "'0 6 * *' is no cron; write five fields"),
        ("0 0 6 * * *", "is no cron; write five fields"),
        ("60 * * * *", "'60' is no minute; write 0 to 59"),
        ("* 24 * * *", "'24' is no hour; write 0 to 23"),
        ("* * 0 * *", "'0' is no day of the month; write 1 to 31"),
        ("* * * 13 *", "'13' is no month; write 1 to 12 or jan, feb"),
        ("* * * * 8", "'8' is no day of the week; write 0 to 7 or sun, mon"),
        ("* * * * mo", "'mo' is no day of the week"),
        ("*/0 * * * *", "'*/0' is no minute: it names nothing"),
        ("9-5 * * * *", "'9-5' is no minute: it names nothing"),
        ("1,,2 * * * *", "'' is no minute"),
        ("-1 * * * *", "'-1' is no minute"),
        ("1-2-3 * * * *", "'1-2-3' is no minute"),
        ("\u0661 * * * *", "is no minute"),
        ("0 0 30 2 *", "'0 0 30 2 *' never comes"),
        ("0 0 31 4,6 *", "never comes"),
    ],
)
def test_what_is_no_cron_text_is_refused_with_the_reason(text, told):
    with pytest.raises(ValueError, match=r"no|never") as caught:
        cron(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "Europe", "/etc", "../UTC", "A"])
def test_what_is_no_time_zone_is_refused(name):
    with pytest.raises(ValueError, match="is no time zone; write one as in"):
        time_zone(name)


@pytest.mark.parametrize(
    ("text", "zone", "since", "times"),
    [
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28",
            ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"],
            id="skipped: at the next time there is",
        ),
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24",
            ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"],
            id="doubled: the first time only",
        ),
        pytest.param(
            "0,30 2,3 * * *",
            "Europe/Berlin",
            "2026-03-29",
            ["29 03:00 +0200", "29 03:30 +0200", "30 02:00 +0200"],
            id="three skipped into one are one",
        ),
        pytest.param(
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03",
            ["03 02:15 +1030", "04 02:30 +1100", "05 02:15 +1100"],
            id="half an hour skipped",
        ),
        pytest.param(
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04",
            ["04 01:45 +1100", "05 01:45 +1100", "06 01:45 +1030"],
            id="half an hour doubled",
        ),
        pytest.param(
            "0 0 * * *",
            "America/Santiago",
            "2026-09-05",
            ["06 01:00 -0300", "07 00:00 -0300"],
            id="midnight itself skipped",
        ),
        pytest.param(
            "0 * * * *",
            "Europe/Berlin",
            "2026-10-25T01:30",
            ["25 02:00 +0200", "25 02:00 +0100", "25 03:00 +0100"],
            id="every hour is every real hour",
        ),
    ],
)
def test_a_time_of_the_day_comes_once_a_day_whatever_the_clocks_do(
    text, zone, since, times
):
    found, moment = [], at(since, zone)
    for _ in times:
        moment = cron(text, zone).after(moment)
        found.append(moment)
    assert local(found, zone) == times


@pytest.mark.parametrize(("zone", "day"), JUMPS)
def test_every_ten_minutes_are_ten_real_minutes(zone, day):
    since = at(day, zone)
    found = fired("*/10 * * * *", zone, since, since + timedelta(hours=24))
    assert found == [since + n * 10 * MINUTE for n in range(1, 145)]


def numbers(least, most):
    """Return strategies of one field."""
    one = st.integers(least, most)
    several = st.lists(one, min_size=1, max_size=3).map(
        lambda found: ",".join(map(str, found))
    )
    span = st.tuples(one, one).map(lambda it: f"{min(it)}-{max(it)}")
    steps = st.integers(1, most).map(lambda step: f"*/{step}")
    return st.one_of(st.just("*"), several, span, steps)


# Hours near the jumps, so that they are met.
CRONS = st.tuples(
    numbers(0, 59),
    st.one_of(st.just("*"), numbers(0, 4), numbers(0, 23)),
    st.just("*"),
    st.just("*"),
    st.one_of(st.just("*"), st.just("*"), numbers(0, 7)),
).map(" ".join)


@given(
    CRONS,
    st.sampled_from(JUMPS),
    st.integers(0, 59),
)
@example("30 2 * * *", ("Europe/Berlin", "2026-03-29"), 0)
@example("30 2 * * *", ("Europe/Berlin", "2026-10-25"), 0)
@example("*/7 1-2 * * *", ("Australia/Lord_Howe", "2026-04-05"), 30)
@settings(deadline=None, max_examples=20)
def test_cron_fires_as_a_watched_clock_says(text, jump, second):
    zone, day = jump
    since = at(day, zone) - timedelta(hours=12) + timedelta(seconds=second)
    until = since + timedelta(hours=48)
    assert fired(text, zone, since, until) == fires(Watched(text, zone), since, until)


@given(
    st.integers(1, 10**6).map(lambda seconds: timedelta(seconds=seconds)),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 (hypothesis adds it)
)
def test_a_period_goes_by_in_real_time(period, moment):
    anchor = datetime(2026, 6, 1, tzinfo=UTC)
    found = Every(period, anchor).after(moment)
    assert moment < found <= moment + period
    assert (found - anchor) % period == timedelta()
