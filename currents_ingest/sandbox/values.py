"""Which single values Braze takes, and what it makes of them.

Source: Braze docs, "User attributes object" and "Data types".
"""

from __future__ import annotations

import re
import zoneinfo
from datetime import UTC, datetime
from functools import cache

import pycountry

MAX_TEXT = 255
"""Characters of a text, of a name and of a property's name."""

is_email = re.compile(r"[^@\s,;<>()]+@[^@\s.,;<>()]+(\.[^@\s.,;<>()]+)+").fullmatch
is_phone = re.compile(r"\+[1-9]\d{6,14}").fullmatch
"""E.164: a plus sign and 7 to 15 digits."""
is_uuid = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
).fullmatch
_is_day = re.compile(r"\d{4}-\d\d-\d\d").fullmatch
_late_colon = re.compile(r"(T\d\d:\d\d:\d\d):(\d)")
"""Braze also takes `yyyy-MM-ddTHH:mm:ss:SSSZ`, with a colon before the fraction."""
_FORMATS = ("%m/%d/%Y", "%a %m %d %H:%M:%S.%z %Y", "%a %m %d %H:%M:%S.%Z %Y")


def is_long(value: object) -> bool:
    """Say whether *value* is a text of more than 255 characters."""
    return type(value) is str and len(value) > MAX_TEXT


def instant(text: object) -> datetime | None:
    """Return the moment an ISO 8601 text names (no zone is UTC), or None."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(_late_colon.sub(r"\1.\2", text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_date(text: object) -> bool:
    """Say whether Braze reads *text* as a time: a known form, no year over 3000."""
    moment = instant(text)
    if moment is None and isinstance(text, str):
        moment = next((m for form in _FORMATS if (m := _parsed(text, form))), None)
    return moment is not None and moment.year <= 3000


def _parsed(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def is_birthday(text: object) -> bool:
    """Say whether *text* is a day that exists, as `YYYY-MM-DD`."""
    return isinstance(text, str) and bool(_is_day(text)) and instant(text) is not None


def is_currency(code: object) -> bool:
    """Say whether *code* is an alphabetic ISO 4217 code, in capitals."""
    return isinstance(code, str) and code in _currencies()


def is_language(code: object) -> bool:
    """Say whether *code* is an ISO 639-1 code, in small letters."""
    return isinstance(code, str) and code in _languages()


def is_zone(name: object) -> bool:
    """Say whether *name* is an IANA time zone; without a zone database all are."""
    zones = _zones()
    return isinstance(name, str) and (not zones or name in zones)


def country_code(text: object) -> str | None:
    """Return the ISO 3166-1 alpha-2 code that *text* (code or name) stands for."""
    return _countries().get(text.strip().casefold()) if isinstance(text, str) else None


@cache
def _currencies() -> frozenset[str]:
    return frozenset(one.alpha_3 for one in pycountry.currencies)


@cache
def _languages() -> frozenset[str]:
    codes = (getattr(one, "alpha_2", None) for one in pycountry.languages)
    return frozenset(code for code in codes if code)


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


@cache
def _countries() -> dict[str, str]:
    """Every spelling of a country that ISO lists, casefolded, with its code."""
    spelled = ("alpha_2", "alpha_3", "name", "official_name", "common_name")
    return {
        text.casefold(): country.alpha_2
        for country in pycountry.countries
        for key in spelled
        if (text := getattr(country, key, None))
    }
