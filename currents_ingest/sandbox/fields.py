"""Braze's own profile fields: what is stored of the value that was sent.

A value out of form is not an error but is ignored: the field stays as it was. Fields
whose wrong values reject the whole object are checked in `objects`.

Source: Braze docs, "User attributes object" and "Standard attributes".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from currents_ingest.sandbox.values import (
    MAX_TEXT,
    country_code,
    is_birthday,
    is_date,
    is_language,
    is_zone,
)

if TYPE_CHECKING:
    from collections.abc import Callable

IGNORED: Final = object()
"""Stands for a value that changes nothing."""


def _as_sent(value: object) -> object:
    return value


def _text(value: object) -> object:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else IGNORED


def _url(value: object) -> object:
    return value if isinstance(value, str) and len(value) <= 1024 else IGNORED


def _flag(value: object) -> object:
    return value if isinstance(value, bool) else IGNORED


def _object(value: object) -> object:
    return value if isinstance(value, dict) else IGNORED


def _gender(value: object) -> object:
    known = isinstance(value, str) and value in {"M", "F", "O", "N", "P"}
    return value if known else IGNORED


def _birthday(value: object) -> object:
    return value if is_birthday(value) else IGNORED


def _date(value: object) -> object:
    return value if is_date(value) else IGNORED


def _language(value: object) -> object:
    return value if is_language(value) else IGNORED


def _zone(value: object) -> object:
    return value if is_zone(value) else IGNORED


def _email(value: object) -> object:
    """Lower the case: so addresses are read back."""
    return value.lower() if isinstance(value, str) else IGNORED


STORED: dict[str, Callable[[object], object]] = {
    "email": _email,
    "phone": _text,
    "first_name": _text,
    "last_name": _text,
    "home_city": _text,
    "dob": _birthday,
    "gender": _gender,
    "country": country_code,
    "language": _language,
    "time_zone": _zone,
    "current_location": _as_sent,
    "image_url": _url,
    "email_subscribe": _as_sent,
    "push_subscribe": _as_sent,
    "email_open_tracking_disabled": _flag,
    "email_click_tracking_disabled": _flag,
    "marked_email_as_spam_at": _date,
    "date_of_first_session": _date,
    "date_of_last_session": _date,
    "push_tokens": _as_sent,
    "facebook": _object,
    "twitter": _object,
    "email_encrypted": _text,
}
"""By field, what is stored of a value that is not null; None removes the field."""
UNSTORED = frozenset(
    [
        "external_id",
        "user_alias",
        "braze_id",
        "bio",
        "_update_existing_only",
        "_merge_objects",
        "push_token_import",
    ]
)
"""Identifiers, controls, and what Braze has given up; no custom attributes either."""
NO_CUSTOM = UNSTORED | STORED.keys() | {"subscription_groups"}
