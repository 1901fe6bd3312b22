"""Made-up values for every Currents field, realistic and awkward, already encoded.

A field's values form a pool; rows are put together from pools, which is what makes
millions of rows cheap. All pools have one size: a person or a message is an index
into all of theirs, so a user id always comes with the same address. Nobody here
exists; addresses and links are at example.com.
"""

from __future__ import annotations

import hashlib
import io
import json
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING

import fastavro

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from currents_ingest.schemas import Field, Json

    Make = Callable[[Random, int], object]
    """A value for the pool's entry of this number."""
    Table = tuple[tuple[str, Make], ...]
    """Values by field name; the first glob that matches counts."""

NULLS = 0.3
"""Share of nulls in a nullable field."""
_REDACTED = "[REDACTED]"
"""Source: Braze docs, "Setting up Currents", field transformations."""
_LONG = 20_000
"""Characters of the one very long text in a pool of long texts."""

AWKWARD = (
    "",
    " leading and trailing ",
    "null",
    "\\N",
    "NaN",
    "0012",
    "=1+1",
    "true",
    _REDACTED,
    "It's 5\" wide, they said; 'fine'",
    "C:\\new\\table",
    "line one\nline two\r\n\tindented",
    "nul \x00 bell \x07 escape \x1b delete \x7f",
    "comma,semicolon;pipe|tab\t",
    "<b>5 &gt; 4</b> & {{${first_name} | default: 'you'}}",
    '{"cut": "in the mid',
    "Spring \U0001f337 sale \U0001f6cd\ufe0f",
    "family \U0001f469\u200d\U0001f469\u200d\U0001f467 flag \U0001f1e9\U0001f1ea",
    "\u062a\u0631\u062d\u064a\u0628 \u05e9\u05dc\u05d5\u05dd",
    "over\u202eride\u202c",
    "zero\u200bwidth\ufeff",
    "e\u0301 is \u00e9, \ufb01 is fi, \u0130 is i",
    "\u65e5\u672c\u8a9e \U0002070e",
    "\u2028line and paragraph separator\u2029",
    "\ufffd \uffff \U0010ffff",
)
"""Text that breaks readers which are not careful. All of it is valid UTF-8."""

_WORDS = ("spring", "welcome", "back", "order", "cart", "sale", "gift", "survey")
_ZONES = (
    "UTC",
    "America/New_York",
    "America/Argentina/Buenos_Aires",
    "Europe/Berlin",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Etc/GMT+12",
)
_APPLE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15"
_AGENTS = (
    f"{_APPLE} (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) Chrome/126.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (compatible; ExampleBot/1.0; +https://www.example.com/bot)",
)


def pool(field: Field, *, seed: int, size: int) -> list[bytes]:
    """Return *size* encoded values of a field, with its share of nulls."""
    rng = Random(f"{seed} {field.name} {field.type}")
    make = _maker(_VALUES[field.type], field.name)
    values = [_allowed(make(rng, index), field) for index in range(size)]
    if field.nullable:
        values = [None if rng.random() < NULLS else value for value in values]
    return [encode(field.schema, value) for value in values]


def placeholder(field: Field, rng: Random) -> bytes:
    """Return what Braze's "Send Test Events" puts into a field: no sensible value.

    Source: Braze docs, "Event delivery semantics", test events; public samples.
    """
    make = _maker(_PLACEHOLDERS[field.type], field.name)
    value = make(rng, 0)
    if value is None:
        value = f"{field.name}-filler-events"
    return encode(field.schema, [value] if field.type == "array" else value)


def encode(schema: Json, value: object) -> bytes:
    """Return the Avro binary form of one value."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


def _maker(table: Table, name: str) -> Make:
    return next(make for glob, make in table if fnmatchcase(name, glob))


def _allowed(value: object, field: Field) -> object:
    """Take nulls out of an array whose items cannot be null."""
    if not isinstance(value, list) or '"null"' in json.dumps(_items(field.schema)):
        return value
    return [item for item in value if item is not None]


def _items(schema: Json) -> Json:
    branches = schema if isinstance(schema, list) else [schema]
    return next(each["items"] for each in branches if isinstance(each, dict))


def _one_of(*values: object) -> Make:
    return lambda rng, _index: rng.choice(values)


def _numbered(form: str) -> Make:
    return lambda _rng, index: form.format(index)


def _hex(digits: int) -> Make:
    return lambda rng, _index: f"{rng.getrandbits(4 * digits):0{digits}x}"


def _token(rng: Random, _index: int) -> str:
    return f"{rng.getrandbits(88):022x}:APA91b{rng.getrandbits(512):0128x}"


def _uuid(rng: Random, _index: int) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join(
        (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    )


def _whole(low: int, high: int) -> Make:
    return lambda rng, _index: rng.randint(low, high)


def _decimal(low: float, high: float, digits: int = 2) -> Make:
    return lambda rng, _index: round(rng.uniform(low, high), digits)


def _every(step: int, values: tuple[object, ...], otherwise: Make) -> Make:
    """Put one of *values*, in turn, into every *step*-th entry."""

    def make(rng: Random, index: int) -> object:
        turn, rest = divmod(index, step)
        return values[turn % len(values)] if rest == 3 else otherwise(rng, index)

    return make


def _hidden(make: Make) -> Make:
    """Redact or hash a part of the values, as a connector may be told to."""

    def hidden(rng: Random, index: int) -> object:
        value = make(rng, index)
        if index % 40 == 1:
            return _REDACTED
        if index % 40 == 2:
            return hashlib.sha256(str(value).encode()).hexdigest()
        return value

    return hidden


def _words(rng: Random, _index: int) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(1, 5))).capitalize()


_TEXT = _every(8, AWKWARD, _words)


def _long_text(rng: Random, index: int) -> object:
    if index == 7:
        return (f"{_words(rng, index)} \U0001f4dc " * _LONG)[:_LONG]
    return _TEXT(rng, index)


def _properties(rng: Random, _index: int) -> str:
    content: Mapping[str, object] = {
        "colour": rng.choice(("red", "gr\u00fcn", "\U0001f7e6", None)),
        "quantity": rng.randint(0, 9),
        "total": round(rng.uniform(0, 300), 2),
        "gift": rng.random() < 0.5,
        "tags": rng.sample(_WORDS, k=rng.randint(0, 3)),
        "shop": {"name": _words(rng, 0), "floors": [1, None, {"up": -1.5e-7}]},
    }
    names = rng.sample(sorted(content), k=rng.randint(0, len(content)))
    return json.dumps({name: content[name] for name in names}, ensure_ascii=False)


_ODD_JSON = (
    "{}",
    "[]",
    "null",
    '{"a":1,"a":2}',
    "plain text",
    '{"cut": "in',
    '"\\ud83d"',
)
_JSON = _every(12, _ODD_JSON, _properties)
_URL = _every(
    10,
    ("https://www.example.com/s?q=%F0%9F%98%80&a=1&a=2#top", "http://example.com", ""),
    _numbered("https://www.example.com/offers/{0}?utm_source=braze"),
)
_EMAIL = _every(
    25,
    ("Upper.Case+Tag@Example.COM", '"odd, name"@example.com', "zo\u00eb@example.com"),
    _numbered("person{0}@example.com"),
)


def _list_of(make: Make) -> Make:
    def several(rng: Random, index: int) -> list[object]:
        items = [make(rng, index + at) for at in range(rng.randint(0, 3))]
        return [*items, None] if rng.random() < 0.2 else items

    return several


_STRINGS: Table = (
    ("user_id", _hidden(_hex(24))),
    ("orphaned_by_id", _hex(24)),
    ("external_user_id", _hidden(_numbered("customer-{0:06}"))),
    ("email_address", _hidden(_EMAIL)),
    ("channel_identifier", _hidden(_EMAIL)),
    ("*phone_number", _hidden(_numbered("+1202555{0:04}"))),
    ("*_rcs_sender", _numbered("rcs-agent-{0}")),
    ("native_line_id", _hidden(_hex(33))),
    ("timezone", _one_of(*_ZONES)),
    ("gender", _one_of("f", "m", "o", "n", "u", "p")),
    ("country", _one_of("US", "DE", "JP", "NA", "NO", "BR")),
    ("language", _one_of("en", "de", "ja", "pt-BR", "no", "zh-Hant")),
    ("locale_key", _one_of("en-us", "de", "ja-jp")),
    ("dob", _one_of("1990-02-28T00:00:00Z", "2000-02-29", "1899-12-31")),
    ("platform", _one_of("ios", "android", "web", "kindle", "tvos", "roku")),
    ("currency", _one_of("USD", "EUR", "JPY", "KWD")),
    ("machine_open", _one_of("true")),
    ("subscription_status", _one_of("Subscribed", "subscribed", "Unsubscribed")),
    ("state_change_source", _one_of("SDK", "Dashboard", "REST API", "User Merge")),
    ("category", _one_of("Opt-in", "opt-in", "Opt-out", "Help")),
    ("channel", _one_of("email", "ios_push", "sms", "whats_app")),
    ("push_token_state_change_type", _one_of("add", "update", "remove")),
    ("sending_ip", _one_of("192.0.2.1", "192.0.2.254", "2001:db8::1")),
    ("*_domain", _one_of("example.com", "mail.example.com")),
    ("host", _one_of("hooks.example.com")),
    ("esp", _one_of("SPARKPOST", "SENDGRID")),
    ("mailbox_provider", _one_of("gmail", "yahoo", "other")),
    ("user_agent", _every(20, ("", "curl/8.0 \u2603"), _one_of(*_AGENTS))),
    ("device_model", _one_of("iPhone15,2", "Pixel 8", "moto g\u2075\u2070 5G")),
    ("os_version", _one_of("17.5.1", "14", "Windows 11", "10.0")),
    ("sdk_version", _one_of("10.1.0", "30.0.0")),
    ("resolution", _one_of("1179x2556", "2880x1800")),
    ("ad_id_type", _one_of("ios_idfa", "google_ad_id")),
    ("product_id", _every(15, ("0012", "SKU \u2116 5/7"), _numbered("sku-{0:05}"))),
    ("url", _URL),
    ("*_url", _URL),
    ("url_path", _numbered("/hooks/{0}")),
    ("properties", _JSON),
    ("custom_attributes", _JSON),
    ("message_extras", _JSON),
    ("conversion_behavior", _JSON),
    ("flow_response_json", _JSON),
    ("tool_arguments", _JSON),
    ("answer_multiple_strings", _one_of("[]", '["yes"]', '["yes", "no, not yet"]')),
    ("message_body", _long_text),
    ("input", _long_text),
    ("output", _long_text),
    ("raw_response", _long_text),
    ("push_token", _token),
    ("*_token", _token),
    ("web_push_token_*", _hex(128)),
    ("agent_id", _hex(24)),
    ("button_id", _numbered("{0}")),
    ("provider_error_code", _one_of("30003", "131026", "05")),
    ("*_id", _uuid),
    ("*", _TEXT),
)

_INTS: Table = (
    ("push_token_*_at", _whole(1_600_000_000, 1_790_000_000)),
    ("send_time", _whole(1_785_000_000, 1_790_000_000)),
    ("conversion_behavior_index", _whole(0, 3)),
    ("*random_bucket_number", _whole(0, 9_999)),
    ("http_status_code", _one_of(200, 404, 410, 500, 503)),
    ("ios_push_token_apns_gateway", _one_of(1, 2)),
    ("*", _every(20, (-(2**31), 2**31 - 1, 0, -1), _whole(0, 5_000))),
)
_LONGS: Table = (
    ("*", _every(20, (-(2**63), 2**63 - 1, 2**53 + 1, 2**31), _whole(0, 10**9))),
)
_FLOATS: Table = (
    (
        "price",
        _every(15, (0.0, 0.01, -12.5, 1e-6, 16_777_216.0), _decimal(0, 250)),
    ),
    ("latitude", _every(25, (-90.0, 90.0, 0.0), _decimal(-60, 70, 5))),
    ("longitude", _every(25, (-180.0, 180.0, 0.0), _decimal(-180, 180, 5))),
    ("*", _every(20, (3.4028234663852886e38, 1e-45, -0.0, 3.14), _decimal(0, 900, 3))),
)
_DOUBLES: Table = (("*", _every(20, (1e308, 5e-324, 0.1), _decimal(-100, 100, 6))),)
_BOTH = (False, True)
_BOOLEANS: Table = (("*", _one_of(*_BOTH)),)
_ARRAYS: Table = (
    ("*_urls", _list_of(_URL)),
    ("*", _list_of(_every(8, AWKWARD, _one_of("user_agent", "data_center_ip")))),
)

_VALUES: Mapping[str, Table] = {
    "string": _STRINGS,
    "int": _INTS,
    "long": _LONGS,
    "float": _FLOATS,
    "double": _DOUBLES,
    "boolean": _BOOLEANS,
    "array": _ARRAYS,
}

_OWN_NAME: Make = _one_of(None)
_PLACEHOLDERS: Mapping[str, Table] = {
    "string": (
        ("gender", _one_of("gender_value")),
        ("timezone", _uuid),
        ("campaign_name", _uuid),
        ("ip_pool", _uuid),
        ("*_id", _uuid),
        ("*", _OWN_NAME),
    ),
    "int": (("*", _one_of(1)),),
    "long": (("*", _one_of(1)),),
    "float": (("*", _one_of(1.0)),),
    "double": (("*", _one_of(1.0)),),
    "boolean": (("*", _one_of(_BOTH[1])),),
    "array": (("*", _OWN_NAME),),
}
