"""Every unified feed worked out again from all events, row by row in plain Python.

Written from Amperity's documentation and the descriptions of the contracts' columns;
it shares no code with the product and does not read the contracts. Files are read with
fastavro, and of an event that came twice the first delivery counts.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import fastavro

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

Row = dict[str, Any]

_KEY = re.compile(
    r".*event_type=(?P<event>[^/]+)/date=(?P<hour>[^/]+)/.*"
    r"\+(?P<partition>\d+)\+(?P<offset>\d+)\.avro"
)
_HIDDEN = "[REDACTED]"
"""What a connector puts in place of a text that it may not give away."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """One event as Braze wrote it, and where."""

    type: str
    file: str
    row: int
    fields: Mapping[str, Any]

    @property
    def moment(self) -> datetime:
        """Return when it happened: exactly, where Braze says it exactly."""
        millis = self.fields.get("time_ms")
        if millis is None:
            millis = self.fields["time"] * 1000
        return _EPOCH + timedelta(milliseconds=millis)

    @property
    def word(self) -> str:
        """Return the last word of the event type."""
        return self.type.rsplit(".", 1)[-1]

    def first(self, *names: str) -> Any:
        """Return the value of the first of these fields that says something."""
        values = (self.fields.get(name) for name in names)
        return next((one for one in values if one not in (None, "", _HIDDEN)), None)

    def lower(self, name: str) -> str:
        """Return a text in lower case, empty if there is none."""
        return (self.fields.get(name) or "").lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the operator decided."""

    brand: str = "default"
    brands: Mapping[str, str] = field(default_factory=dict)
    region: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """Of email_events."""

    def brand_of(self, event: Event) -> str:
        """Return the brand of a row, which is never without one."""
        return _named(event, self.brands) or self.brand

    def region_of(self, event: Event) -> str | None:
        """Return the region of a row, if it has one."""
        return _named(event, self.regions) or self.region


NOTHING_ASKED = Asked()


def _named(event: Event, names: Mapping[str, str]) -> str | None:
    for name in ("subscription_group_id", "app_group_id", "from_domain"):
        if event.fields.get(name) in names:
            return names[event.fields[name]]
    return None


@dataclass(slots=True)
class Feed:
    """What a feed must hold, and what must be in its rejects."""

    rows: list[Row] = field(default_factory=list)
    rejects: set[tuple[str, int]] = field(default_factory=set)
    """File and row."""


# Reading


def delivered(source: Path, groups: Iterable[Iterable[str]]) -> list[Event]:
    """Return every event once: the first delivery, in Braze's order in each group.

    Args:
        source: Folder of the Currents files.
        groups: Keys of the readable files that came together, group by group.
    """
    events: dict[tuple[str, str], Event] = {}
    for group in groups:
        for key in sorted(group, key=_order):
            for event in _read(source, key):
                if _good(event):
                    events.setdefault((event.type, event.fields["id"]), event)
    return list(events.values())


def _order(key: str) -> tuple[str, int, int]:
    found = _KEY.fullmatch(key)
    assert found
    return found["hour"], int(found["partition"]), int(found["offset"])


def _read(source: Path, key: str) -> Iterator[Event]:
    found = _KEY.fullmatch(key)
    assert found
    with (source / key).open("rb") as file:
        reader = fastavro.reader(file)
        floats = {
            each["name"]
            for each in reader.writer_schema["fields"]
            if each["type"] in ("float", ["null", "float"])
        }
        for number, row in enumerate(reader):
            exact = {
                name: shortest(row[name]) for name in floats if row[name] is not None
            }
            yield Event(found["event"], key, number, row | exact)


def shortest(value: float) -> str:
    """Return the shortest text that is the same 32-bit float."""
    for digits in range(1, 18):
        text = f"{value:.{digits}g}"
        if struct.pack("f", float(text)) == struct.pack("f", value):
            return text
    raise AssertionError


def _good(event: Event) -> bool:
    """Tell whether it is an event at all: it has an id and a time in our age."""
    end = (_END - _EPOCH).total_seconds()
    return bool(event.fields["id"]) and 0 <= event.fields["time"] < end


# Feeds of events


def feed(name: str, events: Iterable[Event], asked: Asked = NOTHING_ASKED) -> Feed:
    """Return what a feed must hold of these events."""
    make, required = FEEDS[name]
    out = Feed()
    for event in events:
        row = make(event, asked)
        if row is None:
            continue
        if any(row[column] is None for column in required):
            out.rejects.add((event.file, event.row))
        else:
            out.rows.append(row)
    return out


def _of_event(event: Event, asked: Asked) -> Row:
    """Return what every feed of events has, but the time of delivery."""
    return {
        "event_id": event.first("id"),
        "brand": asked.brand_of(event),
        "external_id": event.first("external_user_id"),
        "braze_id": event.first("user_id"),
        "braze_event_type": event.type,
        "app_group_id": event.first("app_group_id"),
        "source_file": event.file,
    }


def _same(event: Event, *names: str) -> Row:
    """Return columns that are named like the field they come from."""
    return {name: event.first(name) for name in names}


_MESSAGE = (
    *("campaign_id", "campaign_name", "canvas_id", "canvas_name"),
    *("canvas_step_id", "canvas_step_name"),
)
_DEVICE = ("platform", "os_version", "device_model", "device_id")


def _treatment(event: Event) -> Row:
    return {
        "treatment_id": event.first("message_variation_id", "canvas_variation_id"),
        "treatment_name": event.first(
            "message_variation_name", "canvas_variation_name"
        ),
    }


WORDS = {
    "users.messages.email.Send": "Sent",
    "users.messages.email.Open": "Open",
    "users.messages.email.Click": "Click",
    "users.messages.email.Bounce": "Bounce",
    "users.messages.email.SoftBounce": "Bounce",
    "users.messages.email.Unsubscribe": "Unsubscribe",
}


def email_word(event: Event, options: Mapping[str, str]) -> str | None:
    """Return Amperity's word for an email event, or None if it has none."""
    kind, word = event.type.removeprefix("users."), WORDS.get(event.type)
    if kind == "messages.email.Open" and event.lower("machine_open") == "true":
        return _unless(options.get("machine_opens"), word)
    if kind == "messages.email.Click" and event.fields.get("is_suspected_bot_click"):
        return _unless(options.get("suspected_bot_clicks"), word)
    if kind == "messages.email.SoftBounce":
        return _unless(options.get("soft_bounces"), word)
    if kind == "messages.email.MarkAsSpam":
        spam = options.get("spam_complaints") == "unsubscribe"
        return "Unsubscribe" if spam else None
    if kind == "behaviors.subscription.GlobalStateChange" and _is_email(event):
        state = {True: "Optin", False: "Unsubscribe", None: None}[opted_in(event)]
        return _unless(options.get("state_changes"), state)
    return word


def _unless(option: str | None, word: str | None) -> str | None:
    return None if option == "drop" else word


def opted_in(event: Event) -> bool | None:
    """Return the state that a subscription event tells; None for no known one."""
    states = {"subscribed": True, "opted in": True, "unsubscribed": False}
    return states.get(event.lower("subscription_status"))


def _is_email(event: Event) -> bool:
    """Tell whether a state is of email: Braze says so, or it has an address."""
    channel = event.lower("channel")
    return channel == "email" if channel else bool(event.fields.get("email_address"))


def _address(event: Event, *names: str) -> str | None:
    text = event.first(*names)
    return (text.strip().lower() or None) if text else None


def send_id(event: Event) -> str:
    """Return one text for all events of one delivery to one person."""
    person, moment = event.first("user_id"), event.moment
    if sent_at := event.fields.get("send_time"):
        moment = datetime.fromtimestamp(sent_at, UTC)
    day, sent = f"{moment:%Y%m%d}", event.first("dispatch_id", "send_id")
    if sent and not person:
        person = event.first("email_address")
    if person:
        if sent:
            return f"{sent}:{person}"
        if message := event.first("campaign_id", "canvas_step_id"):
            return f"{message}:{person}:{day}"
    return str(event.fields["id"])


def _bounce_class(event: Event) -> str | None:
    if event.type == "users.messages.email.SoftBounce":
        return "soft"
    if event.type == "users.messages.email.Bounce":
        return "drop" if event.fields.get("is_drop") else "hard"
    return None


def _message_source(event: Event) -> str | None:
    if event.first("campaign_id"):
        return "campaign"
    return "canvas" if event.first("canvas_id") else None


def email_events(event: Event, asked: Asked) -> Row | None:
    """Return a row of email engagement."""
    word = email_word(event, asked.options)
    if word is None:
        return None
    return (
        _of_event(event, asked)
        | {
            "email": _address(event, "email_address", "channel_identifier"),
            "event_datetime": event.moment,
            "event_type": word,
            "send_id": send_id(event),
            "campaign_id": event.first("campaign_id", "canvas_id"),
            "campaign_name": event.first("campaign_name", "canvas_name"),
            "region": asked.region_of(event),
            "message_source": _message_source(event),
            "braze_send_id": event.first("send_id"),
            "bounce_class": _bounce_class(event),
        }
        | _treatment(event)
        | _same(event, "dispatch_id", "canvas_id", "canvas_step_id", "canvas_step_name")
        | _same(event, "url", "link_id", "link_alias", "machine_open", "bounce_reason")
        | _same(event, "is_suspected_bot_click", "state_change_source", "device_class")
        | _same(event, "device_os", "browser", "mailbox_provider", "from_domain")
        | _same(event, "ip_pool")
    )


CHANNELS = {
    "pushnotification": "push",
    "sms": "sms",
    "rcs": "rcs",
    "whatsapp": "whatsapp",
    "line": "line",
    "inappmessage": "in-app message",
    "contentcard": "content card",
    "banner": "banner",
    "webhook": "webhook",
    "liveactivity": "live activity",
    "featureflag": "feature flag",
    "landingpage": "landing page",
    "survey": "survey",
    "newsfeedcard": "news feed",
}


def message_events(event: Event, asked: Asked) -> Row | None:
    """Return a row of any message but email."""
    parts = event.type.split(".")
    if parts[:2] != ["users", "messages"] or parts[2] == "email":
        return None
    return (
        _of_event(event, asked)
        | {
            "event_datetime": event.moment,
            "channel": CHANNELS[parts[2]],
            "event_type": event.word,
            "recipient": event.first(
                "to_phone_number", "user_phone_number", "native_line_id", "bsuid"
            ),
            "sender": event.first(
                "from_phone_number",
                "inbound_phone_number",
                "line_channel_id",
                "from_rcs_sender",
            ),
            "card_id": event.first("card_id", "content_card_id"),
            "button": event.first("button_id", "button_string", "button_action_type"),
            "url": event.first("url", "short_url"),
            "error": event.first(
                "provider_error_code", "error", "abort_type", "retry_type"
            ),
        }
        | _treatment(event)
        | _same(event, *_MESSAGE, *_DEVICE, "app_id", "dispatch_id", "send_id")
        | _same(event, "subscription_group_id", "banner_placement_id", "message_body")
        | _same(event, "is_unique", "is_suspected_bot_click", "message_extras")
    )


def _float(event: Event, name: str) -> float | None:
    value = event.fields.get(name)
    return None if value is None else float(value)


def behavior_events(event: Event, asked: Asked) -> Row | None:
    """Return a row of what people did, without purchases and consent."""
    elsewhere = ("Purchase", "subscription.", "subscriptiongroup.")
    behavior = event.type.removeprefix("users.behaviors.")
    if behavior == event.type or behavior.startswith(elsewhere):
        return None
    return (
        _of_event(event, asked)
        | {
            "event_datetime": event.moment,
            "event_type": event.word,
            "event_name": event.first("name"),
            "session_seconds": _float(event, "duration"),
            "latitude": _float(event, "latitude"),
            "longitude": _float(event, "longitude"),
            "attribution_source": event.first("source"),
            "token_state": event.first("push_token_state_change_type"),
        }
        | _same(event, *_DEVICE, "app_id", "sdk_version", "properties", "session_id")
    )


def purchases(event: Event, asked: Asked) -> Row | None:
    """Return a row of a purchase."""
    if event.type != "users.behaviors.Purchase":
        return None
    price = event.fields.get("price")
    if price is not None:
        price = Decimal(price).quantize(Decimal("0.000001"))
    row = (
        _of_event(event, asked)
        | {"purchase_datetime": event.moment, "price": price}
        | _same(event, *_DEVICE, "app_id", "product_id", "currency", "properties")
    )
    del row["braze_event_type"]  # there is but one
    return row


def canvas_campaign_events(event: Event, asked: Asked) -> Row | None:
    """Return a row of a journey."""
    sources = {"campaigns": "campaign", "canvas": "canvas", "canvasstep": "canvas"}
    parts = event.type.split(".")
    if parts[0] != "users" or parts[1] not in sources:
        return None
    return (
        _of_event(event, asked)
        | {
            "event_datetime": event.moment,
            "event_type": event.word,
            "message_source": sources[parts[1]],
            "conversion_index": event.first("conversion_behavior_index"),
        }
        | _treatment(event)
        | _same(event, *_MESSAGE, "app_id", "conversion_behavior", "experiment_step_id")
        | _same(event, "experiment_split_id", "experiment_split_name", "exit_reason")
        | _same(event, "in_control_group", "is_canvas_entry", "abort_type")
    )


def profile_lifecycle(event: Event, asked: Asked) -> Row | None:
    """Return a row of what became of a profile."""
    changes = {
        "users.UserOrphan": "merged",
        "users.UserDeleteRequest": "deleted",
        "users.RandomBucketNumberUpdate": "random bucket number",
    }
    if event.type not in changes:
        return None
    return (
        _of_event(event, asked)
        | {
            "event_datetime": event.moment,
            "change": changes[event.type],
            "merged_into_braze_id": event.first("orphaned_by_id"),
        }
        | _same(event, "random_bucket_number")
    )


# Tables of states


def _state(event: Event, asked: Asked) -> Row:
    return {
        "brand": asked.brand_of(event),
        "region": asked.region_of(event),
        "state_changed_at": event.moment,
        "state_change_source": event.first("state_change_source"),
        "event_id": event.first("id"),
        "braze_event_type": event.type,
        "source_file": event.file,
    }


def email_opt_status(event: Event, asked: Asked) -> Row | None:
    """Return a state of consent to email, one for each event that tells it."""
    match event.type:
        case "users.behaviors.subscription.GlobalStateChange":
            program, email = "global", _is_email(event)
        case "users.behaviors.subscriptiongroup.StateChange":
            program = event.first("subscription_group_id")
            other = not event.lower("channel") and event.fields.get("phone_number")
            email = _is_email(event) and not other
        case _:
            return None
    if not email:
        return None
    return _state(event, asked) | {
        "email": _address(event, "email_address", "channel_identifier"),
        "email_program": program,
        "is_email_opted_in": opted_in(event),
    }


def sms_opt_status(event: Event, asked: Asked) -> Row | None:
    """Return a state of consent to text messages, one for each event that tells it."""
    if event.type != "users.behaviors.subscriptiongroup.StateChange":
        return None
    only_phone = event.fields.get("phone_number") and not event.fields.get(
        "email_address"
    )
    channel = event.lower("channel")
    if not (channel == "sms" if channel else only_phone):
        return None
    phone = event.first("phone_number", "channel_identifier")
    return _state(event, asked) | {
        "phone": (phone.strip() or None) if phone else None,
        "sms_program": event.first("subscription_group_id"),
        "is_sms_opted_in": opted_in(event),
    }


STATES = {
    "email_opt_status": (("email", "brand", "email_program"), "is_email_opted_in"),
    "sms_opt_status": (("phone", "brand", "sms_program"), "is_sms_opted_in"),
}
"""Key, and the column that says the state."""


def latest(name: str, rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Return by key the rows of which one must be what a reader sees.

    The latest second counts, and in it who opted out. Which of several events that
    say the same in one second is shown is nobody's business, so it may be any.
    """
    key, state = STATES[name]
    of_key: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        of_key[tuple(row[column] for column in key)].append(row)

    def rank(row: Row) -> tuple[datetime, bool]:
        return row["state_changed_at"].replace(microsecond=0), not row[state]

    return {
        at: [row for row in found if rank(row) == max(map(rank, found))]
        for at, found in of_key.items()
    }


_EVENT = ("event_id", "event_datetime", "braze_event_type")
FEEDS: Mapping[str, tuple[Callable[[Event, Asked], Row | None], tuple[str, ...]]] = {
    "email_events": (email_events, (*_EVENT, "brand", "email", "send_id")),
    "message_events": (message_events, _EVENT),
    "behavior_events": (behavior_events, _EVENT),
    "purchases": (purchases, ("event_id", "purchase_datetime")),
    "canvas_campaign_events": (canvas_campaign_events, _EVENT),
    "profile_lifecycle": (profile_lifecycle, _EVENT),
    "email_opt_status": (
        email_opt_status,
        ("email", "brand", "email_program", "is_email_opted_in"),
    ),
    "sms_opt_status": (
        sms_opt_status,
        ("phone", "brand", "sms_program", "is_sms_opted_in"),
    ),
}
"""What makes a row of an event, and the columns without which there is no row."""
