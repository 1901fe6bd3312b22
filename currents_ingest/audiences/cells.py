"""A column's values as JSON texts, as Braze takes them; null where one does not fit.

Each reader is an expression from text to JSON text, so a million cells cost no Python;
arrays, objects and odd phones and addresses are read one distinct value at a time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from currents_ingest.audiences import people, values
from currents_ingest.audiences.braze import facts

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[pl.Expr], pl.Expr]

NULL = "null"
"""The cell that removes an attribute."""
_WHOLE = r"^-?(0|[1-9][0-9]*)$"
_EMAIL = (
    r"^[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@"
    r"([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,63}$"
)
_E164 = r"^\+[1-9][0-9]{6,14}$"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_ZONE = r"([+-][0-9]{2})([0-9]{2})$"
_FEW = 100
_SHAPES = {
    "whole": r"^(0|-?[1-9][0-9]*)$",
    "decimal": r"^-?(0|[1-9][0-9]*)\.[0-9]+$",
    "boolean": r"^(true|false)$",
}
_SPECIAL = {
    "inferred": r"(?is)^\s*(-?[0-9][0-9.]*|-?\.[0-9]+|true|false|null|\[.*\])?\s*$",
    "worded": r"(?is)^\s*(null|\[.*\])?\s*$",
}
_UNCALM = r"^\s|\s$|^null$|^$"
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_GENDERS = {
    **dict.fromkeys(("m", "male", "man"), '"M"'),
    **dict.fromkeys(("f", "female", "woman"), '"F"'),
    **dict.fromkeys(("o", "other"), '"O"'),
    **dict.fromkeys(("n", "not applicable"), '"N"'),
    **dict.fromkeys(("p", "prefer not to say"), '"P"'),
    **dict.fromkeys(("u", "unknown"), NULL),
}
_SUBSCRIPTIONS = ("opted_in", "subscribed", "unsubscribed")
_STAMP = "%Y-%m-%dT%H:%M:%S%.f"


def shape(texts: pl.Series, kind: str) -> str:
    """Say what all texts of a column have in common, so that simpler rules do.

    Args:
        texts: A column of a chunk.
        kind: ``inferred``, ``worded``, or another reader's name.

    Returns:
        ``whole``, ``decimal`` or ``boolean`` where all are such, ``text`` where none
        would be read as anything else, ``calm`` (other kinds) where none is blank,
        padded or ``null``; else ``mixed``. Null counts as anything.
    """
    if kind == "inferred":
        few = texts.head(_FEW)
        for name, form in _SHAPES.items():
            if few.str.contains(form).all():
                return name if texts.str.contains(form).all() else "mixed"
    odd = _SPECIAL.get(kind, _UNCALM)
    plain = "text" if kind in _SPECIAL else "calm"
    return "mixed" if texts.str.contains(odd).any() else plain


def quoted(text: pl.Expr) -> pl.Expr:
    """Write texts as JSON strings."""
    return _json(text)


def stripped(column: pl.Expr) -> pl.Expr:
    """Return texts without blanks around them; null where nothing is left."""
    text = column.str.strip_chars()
    return pl.when(text != "").then(text)


def string(text: pl.Expr, most: int | None = None) -> pl.Expr:
    """Keep a text, unless it is too long."""
    limit = most or facts().limits["string_chars"]
    return quoted(pl.when(text.str.len_chars() <= limit).then(text))


def integer(text: pl.Expr) -> pl.Expr:
    """Read whole numbers; ``12.0`` is one."""
    bare = text.str.strip_chars().str.replace(r"\.0*$", "").str.strip_prefix("+")
    return _digits(pl.when(bare.str.contains(r"^-?[0-9]+$")).then(bare))


def number(text: pl.Expr) -> pl.Expr:
    """Read numbers, as JSON numbers with a point."""
    plain = text.str.strip_chars()
    told = pl.when(plain.str.contains(r"^[+-]?[0-9.]+([eE][+-]?[0-9]+)?$")).then(plain)
    return floats(told.cast(pl.Float64, strict=False))


def floats(value: pl.Expr) -> pl.Expr:
    """Write finite floats as JSON numbers."""
    return _json(pl.when(value.is_finite()).then(value))


def boolean(text: pl.Expr) -> pl.Expr:
    """Read true and false, and the other words for them."""
    low = text.str.strip_chars().str.to_lowercase()
    return (
        pl.when(low.is_in(_TRUE))
        .then(pl.lit("true"))
        .when(low.is_in(_FALSE))
        .then(pl.lit("false"))
    )


def day(text: pl.Expr) -> pl.Expr:
    """Read dates, also where an export wrote midnight after them: YYYY-MM-DD."""
    plain = text.str.strip_chars()
    iso = plain.str.contains(_ISO + r"($|[T ][0-9:.]+(Z|[+-][0-9:]+)?$)")
    found = (
        pl.when(iso)
        .then(plain.str.head(10).str.to_date("%Y-%m-%d", strict=False))
        .otherwise(plain.str.to_date("%m/%d/%Y", strict=False))
    )
    return quoted(found.dt.strftime("%Y-%m-%d"))


def moment(text: pl.Expr) -> pl.Expr:
    """Read times; without zone they are UTC, without hours midnight."""
    return quoted(iso(instants(text)))


def instants(text: pl.Expr) -> pl.Expr:
    """Read texts as UTC datetimes."""
    plain = text.str.strip_chars().str.replace(" ", "T", literal=True)
    known = pl.when(plain.str.contains(_ISO)).then(plain)
    date_only = known.str.len_chars() == 10
    long = pl.when(date_only).then(known + "T00:00:00").otherwise(known)
    utc = long.str.strip_suffix("Z")
    zoned = utc.str.contains("T.*[+-][0-9]{2}:?[0-9]{2}$")
    offset = pl.when(zoned).then(utc.str.replace(_ZONE, "$1:$2"))
    naive = (
        pl.when(~zoned).then(utc).str.to_datetime(_STAMP, time_unit="us", strict=False)
    )
    elsewhere = offset.str.to_datetime(
        _STAMP + "%:z", time_unit="us", time_zone="UTC", strict=False
    )
    return naive.dt.replace_time_zone("UTC").fill_null(elsewhere)


def iso(time: pl.Expr) -> pl.Expr:
    """Write UTC datetimes in ISO 8601, with milliseconds where there are some."""
    ms = time.dt.truncate("1ms")
    plain = ms.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        pl.when(ms == ms.dt.truncate("1s"))
        .then(plain)
        .otherwise(ms.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    )


def inferred(text: pl.Expr) -> pl.Expr:
    """Find out what a text is: whole number, number, boolean, array, or text.

    As Braze's CSV Lambda does, value by value: a number with a leading zero is text,
    and text keeps the blanks around it. Other than there, arrays may be JSON.

    Source: braze-inc/growth-shares-lambda-user-csv-import, README and behaviour.
    """
    bare = text.str.strip_chars()
    zero = bare.str.contains("^0[^.]")
    low = bare.str.to_lowercase()
    return (
        pl.when(bare.str.contains("^-?[0-9]+$") & ~zero)
        .then(_digits(bare))
        .when(bare.str.contains(r"^-?([0-9]+\.[0-9]*|\.[0-9]+)$") & ~zero)
        .then(floats(bare.cast(pl.Float64, strict=False)))
        .when(low.is_in(["true", "false"]))
        .then(low)
        .when(_looks_like_array(bare))
        .then(pl.coalesce(array(bare), string(text)))
        .otherwise(string(text))
    )


def worded(text: pl.Expr) -> pl.Expr:
    """Take a text of a typed file: an array if it looks like one, else as it is."""
    bare = text.str.strip_chars()
    return (
        pl.when(_looks_like_array(bare))
        .then(pl.coalesce(array(bare), string(text)))
        .otherwise(string(text))
    )


def array(text: pl.Expr) -> pl.Expr:
    """Read arrays: JSON, or as Python writes them (``['a', 'b']``)."""
    bare = text.str.strip_chars()
    return _each(pl.when(_looks_like_array(bare)).then(bare), values.array)


def items(text: pl.Expr) -> pl.Expr:
    """Read what is added to or removed from an array: an array, or one item."""
    bare = text.str.strip_chars()
    return (
        pl.when(_looks_like_array(bare))
        .then(_each(pl.when(_looks_like_array(bare)).then(bare), values.array))
        .otherwise(pl.format("[{}]", inferred(text)))
    )


def nested(text: pl.Expr) -> pl.Expr:
    """Read JSON objects, and arrays of objects."""
    return _each(text, values.object_)


def properties(text: pl.Expr) -> pl.Expr:
    """Read the properties of events and purchases: one JSON object."""
    return _each(text, values.properties)


def email(text: pl.Expr) -> pl.Expr:
    """Read addresses."""
    plain = text.str.strip_chars()
    usual = plain.str.contains(_EMAIL) & (plain.str.len_bytes() <= 254)
    odd = _each(pl.when(~usual).then(plain), people.email)
    return quoted(pl.when(usual).then(plain).otherwise(odd))


def phone(text: pl.Expr, region: str = "") -> pl.Expr:
    """Read phone numbers into E.164; those without ``+`` are of *region*."""
    plain = text.str.strip_chars()
    usual = plain.str.contains(_E164)
    odd = _each(pl.when(~usual).then(plain), partial(people.phone, region=region))
    return quoted(pl.when(usual).then(plain).otherwise(odd))


def country(text: pl.Expr) -> pl.Expr:
    """Read countries into ISO 3166-1 alpha-2."""
    low = text.str.strip_chars().str.to_lowercase()
    codes = people.countries()
    return quoted(low.replace_strict(codes, default=None, return_dtype=pl.String))


def language(text: pl.Expr) -> pl.Expr:
    """Read languages into ISO 639-1; of a locale such as ``en-US`` the first part."""
    code = text.str.strip_chars().str.to_lowercase().str.replace(r"[-_].*$", "")
    return quoted(pl.when(code.is_in(sorted(people.languages()))).then(code))


def time_zone(text: pl.Expr) -> pl.Expr:
    """Keep names of IANA time zones."""
    plain = text.str.strip_chars()
    return quoted(pl.when(plain.is_in(sorted(people.time_zones()))).then(plain))


def gender(text: pl.Expr) -> pl.Expr:
    """Read Braze's letters, and the words for them; unknown becomes null."""
    low = text.str.strip_chars().str.to_lowercase()
    return low.replace_strict(_GENDERS, default=None, return_dtype=pl.String)


def subscription(text: pl.Expr) -> pl.Expr:
    """Keep Braze's words for a subscription, exactly."""
    plain = text.str.strip_chars()
    return quoted(pl.when(plain.is_in(_SUBSCRIPTIONS)).then(plain))


def location(text: pl.Expr) -> pl.Expr:
    """Read objects with longitude and latitude, in degrees."""
    return _each(text, values.location_)


def groups(text: pl.Expr) -> pl.Expr:
    """Read arrays of objects, such as subscription groups and push tokens."""
    return _each(text, values.objects_)


READERS: dict[str, Read] = {
    "string": string,
    "varchar": string,
    "integer": integer,
    "float": number,
    "decimal": number,
    "boolean": boolean,
    "date": day,
    "dob": day,
    "datetime": moment,
    "array": array,
    "object": nested,
    "inferred": inferred,
    "worded": worded,
    "email": email,
    "phone": phone,
    "country": country,
    "language": language,
    "time_zone": time_zone,
    "gender": gender,
    "subscription": subscription,
    "location": location,
    "subscription_groups": groups,
    "push_tokens": groups,
}
"""By kind of column."""

WANTED = {
    "string": "a text of at most 255 characters",
    "varchar": "a text of at most 255 characters",
    "inferred": "a text of at most 255 characters",
    "worded": "a text of at most 255 characters",
    "text": "a text that is short enough",
    "integer": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "boolean": "true or false",
    "date": "a date, as in 2026-01-31",
    "dob": "a date, as in 1990-01-31",
    "datetime": "a time, as in 2026-01-31T12:00:00Z",
    "array": "an array of at most 500 texts, numbers or booleans",
    "object": "a JSON object of at most 100 KB, or an array of such",
    "email": "an email address",
    "phone": "a phone number with +, or of phone_region",
    "country": "a country (ISO 3166)",
    "language": "a language (ISO 639-1)",
    "time_zone": "an IANA time zone",
    "gender": "one of M, F, O, N, P",
    "subscription": "one of opted_in, subscribed, unsubscribed",
    "location": "an object with longitude and latitude",
    "subscription_groups": "a JSON array of objects",
    "push_tokens": "a JSON array of objects",
}
"""What a rejected cell should have been."""


def _json(value: pl.Expr) -> pl.Expr:
    """Write values as JSON; null stays null."""
    whole = pl.struct(value.alias("v")).struct.json_encode()
    text = whole.str.slice(len('{"v":')).str.strip_suffix("}")
    return pl.when(text != NULL).then(text)


def _digits(text: pl.Expr) -> pl.Expr:
    """Write whole numbers as JSON does: no leading zeros, no minus before zero."""
    return (
        pl.when(text.str.contains(_WHOLE) & (text != "-0"))
        .then(text)
        .otherwise(text.cast(pl.Int64, strict=False).cast(pl.String))
    )


def _looks_like_array(text: pl.Expr) -> pl.Expr:
    return text.str.starts_with("[") & text.str.ends_with("]")


def _each(text: pl.Expr, read: Callable[[str], str | None]) -> pl.Expr:
    """Read each distinct text once, in Python."""

    def all_of(series: pl.Series) -> pl.Series:
        known = series.drop_nulls().unique()
        if known.is_empty():
            return pl.repeat(None, len(series), dtype=pl.String, eager=True)
        read_ = pl.Series([read(one) for one in known], dtype=pl.String)
        return series.replace_strict(known, read_, default=None, return_dtype=pl.String)

    return text.map_batches(all_of, return_dtype=pl.String, is_elementwise=True)
