"""Stored profiles, and what the objects of a request do to them.

A profile is a plain dict in the shape of an answer of `POST /users/export/ids`:
`braze_id`, `created_at`, then whichever of `external_id`, `user_aliases`, Braze's own
fields, `subscription_groups`, `custom_events` and `purchases` it has, and always
`custom_attributes`.

Source: Braze docs, "POST /users/track" and "User attributes object".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.custom import SCALARS, is_nested, set_custom, spoils
from currents_ingest.sandbox.fields import IGNORED, NO_CUSTOM, STORED, UNSTORED
from currents_ingest.sandbox.values import MAX_TEXT, instant, is_long, is_phone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from currents_ingest.sandbox.objects import Object

    Profile = dict[str, Any]

_OTHERS = NO_CUSTOM - {"external_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The valid objects of one request, to be applied in this order."""

    attributes: Sequence[Object] = ()
    events: Sequence[Object] = ()
    purchases: Sequence[Object] = ()


@dataclass(slots=True)
class Store:
    """All profiles with their indexes, and all events and purchases."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    """By braze_id, in the order in which they were created."""
    by_external_id: dict[str, Profile] = field(default_factory=dict)
    by_alias: dict[tuple[str, str], Profile] = field(default_factory=dict)
    """By label and name."""
    by_email: dict[str, tuple[Profile, ...]] = field(default_factory=dict)
    """Least recently updated first, as in `by_phone`."""
    by_phone: dict[str, tuple[Profile, ...]] = field(default_factory=dict)
    by_device: dict[str, Profile] = field(default_factory=dict)
    """Of people without external_id, by the device_id of a push token."""
    events: list[Object] = field(default_factory=list)
    """Events and purchases in the order stored, with `kind` and `braze_id`."""


def apply(store: Store, batch: Batch, now: str) -> list[Profile]:
    """Apply what was accepted: attributes, then events, then purchases.

    One invalid nested value keeps every nested value of the batch from being applied.

    Args:
        store: Changed in place.
        batch: Valid objects; they may be changed too.
        now: ISO 8601 time for profiles that are created.

    Returns:
        The profile of each object, without those that were not found.
    """
    plain = [_is_plain(obj) for obj in batch.attributes]
    nested = all(
        simple or not any(map(spoils, obj.values()))
        for simple, obj in zip(plain, batch.attributes, strict=True)
    )
    touched = []
    for simple, obj in zip(plain, batch.attributes, strict=True):
        profile = _open(store, obj, now)
        if profile is None:
            continue
        touched.append(profile)
        if simple:
            obj.pop("external_id", None)
            profile["custom_attributes"].update(obj)
        else:
            _set_all(store, profile, obj, nested=nested)
    touched += _add_all(store, batch.events, "event", now)
    touched += _add_all(store, batch.purchases, "purchase", now)
    return touched


def find(store: Store, obj: Object) -> Profile | None:
    """Return the profile that the identifiers of *obj* stand for, if there is one."""
    if external_id := obj.get("external_id"):
        return store.by_external_id.get(str(external_id))
    if alias := obj.get("user_alias"):
        return find_alias(store, alias)
    if braze_id := obj.get("braze_id"):
        return store.profiles.get(braze_id)
    return _find_by_address(store, obj)


def find_alias(store: Store, alias: object) -> Profile | None:
    """Return the profile of a `user_alias` object, which may be malformed."""
    if not isinstance(alias, dict):
        return None
    label, name = alias.get("alias_label"), alias.get("alias_name")
    return store.by_alias.get((str(label), str(name)))


def find_device(store: Store, device: str) -> Profile | None:
    """Return the profile without external_id that has a device."""
    profile = store.by_device.get(device)
    return profile if profile and device in devices_of(profile) else None


def devices_of(profile: Profile) -> list[str]:
    """Return the device_ids of a profile's push tokens."""
    tokens = profile.get("push_tokens", [])
    return [token["device_id"] for token in tokens if "device_id" in token]


def _find_by_address(store: Store, obj: Object) -> Profile | None:
    """Email wins over phone; of several, the last updated, with external_id first."""
    if email := obj.get("email"):
        found = store.by_email.get(email.lower(), ())
    else:
        found = store.by_phone.get(obj["phone"], ())
    identified = [profile for profile in found if "external_id" in profile]
    return (identified or found or (None,))[-1]


def _is_plain(obj: Object) -> bool:
    """Say whether *obj* holds only an external_id and short scalar custom values."""
    return (
        SCALARS.issuperset(map(type, obj.values()))
        and _OTHERS.isdisjoint(obj)
        and max(map(len, obj)) <= MAX_TEXT
        and "" not in obj
        and not any(map(is_long, obj.values()))
    )


def _open(store: Store, obj: Object, now: str) -> Profile | None:
    """Find or create the profile of *obj*, and note that it was updated last."""
    profile = find(store, obj)
    if profile is None:
        return _create(store, obj, now) if _creates(obj) else None
    if len(store.by_email.get(profile.get("email", ""), ())) > 1:
        _index(store.by_email, profile["email"], profile)
    if len(store.by_phone.get(profile.get("phone", ""), ())) > 1:
        _index(store.by_phone, profile["phone"], profile)
    return profile


def _creates(obj: Object) -> bool:
    """An alias creates only when told to; a braze_id and a bad phone number never."""
    only = obj.get("_update_existing_only")
    if obj.get("external_id"):
        return only is not True
    if obj.get("user_alias"):
        return only is False
    if obj.get("braze_id"):
        return False
    return only is not True and bool(obj.get("email") or _is_number(obj["phone"]))


def _is_number(phone: object) -> bool:
    return isinstance(phone, str) and bool(is_phone(phone))


def _create(store: Store, obj: Object, now: str) -> Profile:
    braze_id = f"{len(store.profiles):024x}"
    profile: Profile = {"braze_id": braze_id, "created_at": now}
    store.profiles[braze_id] = profile
    if external_id := obj.get("external_id"):
        profile["external_id"] = str(external_id)
        store.by_external_id[str(external_id)] = profile
    elif alias := obj.get("user_alias"):
        label, name = alias["alias_label"], alias["alias_name"]
        profile["user_aliases"] = [{"alias_name": name, "alias_label": label}]
        store.by_alias[label, name] = profile
    elif obj.get("email"):
        _set_email(store, profile, obj["email"].lower())
    else:
        _set_phone(store, profile, obj["phone"])
    profile["custom_attributes"] = {}
    return profile


def _set_all(store: Store, profile: Profile, obj: Object, *, nested: bool) -> None:
    merge = obj.get("_merge_objects") is True
    for name, value in obj.items():
        if name in STORED:
            _set_field(store, profile, name, value)
        elif name == "subscription_groups":
            _set_groups(store, profile, value or [])
        elif name not in UNSTORED and (nested or not is_nested(value)):
            set_custom(profile["custom_attributes"], name, value, merge=merge)


def _set_field(store: Store, profile: Profile, name: str, value: object) -> None:
    stored: Any = None if value is None else STORED[name](value)
    if stored is IGNORED:
        return
    if name == "email":
        _set_email(store, profile, stored)
    elif name == "phone":
        _set_phone(store, profile, stored)
    elif name == "email_subscribe":
        for one in _sharing(store, profile):
            _set_or_remove(one, name, stored)
    elif name == "push_tokens":
        _set_tokens(store, profile, stored)
    else:
        _set_or_remove(profile, name, stored)


def _set_tokens(store: Store, profile: Profile, tokens: list[Any] | None) -> None:
    """Add tokens, each once; null removes all."""
    known = profile.get("push_tokens", [])
    added = [token for token in tokens or [] if token not in known]
    _set_or_remove(profile, "push_tokens", [*known, *added] if tokens else None)
    if "external_id" not in profile:
        devices = (token.get("device_id") for token in added)
        store.by_device.update((one, profile) for one in devices if one)


def _set_or_remove(profile: Profile, name: str, value: object) -> None:
    if value is None:
        profile.pop(name, None)
    else:
        profile[name] = value


def _sharing(store: Store, profile: Profile) -> Sequence[Profile]:
    """All profiles whose email is this one's: subscriptions hold for the address."""
    return store.by_email.get(profile.get("email", "")) or (profile,)


def _set_groups(store: Store, profile: Profile, groups: Sequence[Object]) -> None:
    states = {g["subscription_group_id"]: g["subscription_state"] for g in groups}
    for one in _sharing(store, profile) if states else ():
        one["subscription_groups"] = one.get("subscription_groups", {}) | states


def _set_email(store: Store, profile: Profile, email: str | None) -> None:
    _unindex(store.by_email, profile.get("email", ""), profile)
    _set_or_remove(profile, "email", email)
    if email:
        _index(store.by_email, email, profile)


def _set_phone(store: Store, profile: Profile, phone: str | None) -> None:
    _unindex(store.by_phone, profile.get("phone", ""), profile)
    _set_or_remove(profile, "phone", phone)
    if phone and is_phone(phone):
        _index(store.by_phone, phone, profile)


def _index(index: dict[str, tuple[Profile, ...]], key: str, profile: Profile) -> None:
    """Put *profile* last among those of *key*."""
    others = tuple(one for one in index.get(key, ()) if one is not profile)
    index[key] = (*others, profile)


def _unindex(index: dict[str, tuple[Profile, ...]], key: str, profile: Profile) -> None:
    others = tuple(one for one in index.get(key, ()) if one is not profile)
    if others:
        index[key] = others
    else:
        index.pop(key, None)


def _add_all(
    store: Store, objects: Sequence[Object], kind: str, now: str
) -> list[Profile]:
    found = []
    for obj in objects:
        profile = _open(store, obj, now)
        if profile is not None:
            store.events.append({"kind": kind, "braze_id": profile["braze_id"], **obj})
            _count(profile, obj, kind)
            found.append(profile)
    return found


def _count(profile: Profile, obj: Object, kind: str) -> None:
    """Keep first, last and count of each event name and product."""
    summary, name = (
        ("purchases", obj["product_id"])
        if kind == "purchase"
        else ("custom_events", obj["name"])
    )
    rows = profile.setdefault(summary, [])
    time, number = obj["time"], obj.get("quantity", 1)
    row = next((row for row in rows if row["name"] == name), None)
    if row is None:
        rows.append({"name": name, "first": time, "last": time, "count": number})
        return
    row["count"] += number
    row["first"], _, row["last"] = sorted([row["first"], time, row["last"]], key=_when)


def _when(time: str) -> datetime:
    """Order times; a stored one has been checked, so the other value never is."""
    return instant(time) or datetime.min.replace(tzinfo=UTC)
