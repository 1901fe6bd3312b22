"""What becomes of people's data on its way: kept, hashed or dropped, field by field."""

from __future__ import annotations

from typing import Literal

Choice = Literal["keep", "hash", "drop"]

MARKED = frozenset(
    {
        "abort_log",
        "ad_id",
        "altitude",
        "bounce_reason",
        "channel_identifier",
        "country",
        "deferral_reason",
        "dob",
        "email_address",
        "external_user_id",
        "first_name",
        "flow_response_json",
        "gender",
        "home_city",
        "input",
        "language",
        "last_name",
        "latitude",
        "locale_key",
        "longitude",
        "message_extras",
        "native_line_id",
        "output",
        "phone_number",
        "template_name",
        "to_phone_number",
        "user_id",
        "user_phone_number",
    }
)
"""Fields that Braze's schemas mark as personal data (Currents v10)."""
SENSITIVE = frozenset(
    {
        "bsuid",
        "custom_attributes",
        "device_id",
        "media_urls",
        "message_body",
        "orphaned_by_id",
        "properties",
        "push_to_start_token",
        "push_token",
        "push_token_device_id",
        "url",
        "user_agent",
        "web_push_token_public_key",
        "web_push_token_user_auth",
        "web_push_token_vapid_public_key",
    }
)
"""Fields that are not marked, and yet tell of a person."""
PERSONAL = MARKED | SENSITIVE
FOLLOWS = {
    "channel_identifier": ("email_address", "phone_number"),
    "orphaned_by_id": ("user_id",),
    "to_phone_number": ("phone_number",),
    "user_phone_number": ("phone_number",),
}
"""Fields that hold what others do; unless named, they are treated as strictly."""
STRICTNESS: tuple[Choice, ...] = ("keep", "hash", "drop")
REDACTED = "[REDACTED]"
"""What a connector's field transformation leaves. Source: "Setting up Currents"."""
