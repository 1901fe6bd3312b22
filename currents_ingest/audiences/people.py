"""Phones, addresses, countries, languages: one text to what Braze takes, or None.

Only for texts that the plain forms in ``cells`` do not cover, each distinct one once;
so what knows them is imported when the first comes.
"""

from __future__ import annotations

import zoneinfo
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMON = {"uk": "GB", "usa": "US", "u.s.": "US", "u.s.a.": "US"}


def phone(text: str, region: str) -> str | None:
    """Return a number in E.164 form; without ``+`` it is one of *region*'s."""
    import phonenumbers

    try:
        number = phonenumbers.parse(text, region or None)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def email(text: str) -> str | None:
    """Return an address that is well-formed; asks no name server."""
    from email_validator import EmailNotValidError, validate_email

    try:
        found = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return None
    return found.normalized


@cache
def countries() -> Mapping[str, str]:
    """Return alpha-2 codes by code and name, lower case (ISO 3166-1)."""
    import pycountry

    found = dict(_COMMON)
    for one in pycountry.countries:
        names = ("alpha_2", "alpha_3", "name", "official_name", "common_name")
        for name in names:
            if told := getattr(one, name, None):
                found[told.lower()] = one.alpha_2
    return found


@cache
def languages() -> frozenset[str]:
    """Return the codes of ISO 639-1."""
    import pycountry

    codes = (getattr(one, "alpha_2", None) for one in pycountry.languages)
    return frozenset(code for code in codes if code)


@cache
def currencies() -> frozenset[str]:
    """Return the codes of ISO 4217."""
    import pycountry

    return frozenset(one.alpha_3 for one in pycountry.currencies)


@cache
def time_zones() -> frozenset[str]:
    """Return the names of the IANA time zones."""
    return frozenset(zoneinfo.available_timezones())
