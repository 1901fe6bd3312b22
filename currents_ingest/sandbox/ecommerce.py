"""The strict schemas of Braze's six `ecommerce.*` events.

Source: Braze docs, "Recommended events", event schemas and event validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from currents_ingest.sandbox.values import is_currency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_BAD_CURRENCY = "'currency' must be an ISO 4217 currency"


@dataclass(frozen=True, slots=True)
class Schema:
    """The properties that one event must and may have."""

    required: frozenset[str]
    optional: frozenset[str]


def _schema(required: str, optional: str) -> Schema:
    return Schema(frozenset(required.split()), frozenset(optional.split()))


_MONEY = "subtotal_value tax shipping"
_DISCOUNTS = "total_discounts discounts metadata"
SCHEMAS = {
    "ecommerce.product_viewed": _schema(
        "product_id product_name variant_id price currency source",
        "image_url product_url type metadata",
    ),
    "ecommerce.cart_updated": _schema(
        "cart_id currency products source", f"action total_value {_MONEY} metadata"
    ),
    "ecommerce.checkout_started": _schema(
        "checkout_id total_value currency products source",
        f"cart_id {_MONEY} metadata",
    ),
    "ecommerce.order_placed": _schema(
        "order_id total_value currency products source",
        f"cart_id {_MONEY} {_DISCOUNTS}",
    ),
    "ecommerce.order_cancelled": _schema(
        "order_id total_value currency cancel_reason products source",
        f"{_MONEY} {_DISCOUNTS}",
    ),
    "ecommerce.order_refunded": _schema(
        "order_id total_value currency products source", _DISCOUNTS
    ),
}
_PRODUCT = _schema(
    "product_id product_name variant_id quantity price",
    "image_url product_url metadata",
)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_money(value: object) -> bool:
    return type(value) in {int, float} and value >= 0  # type: ignore[operator]


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_count(value: object) -> bool:
    return type(value) is int


def _is_action(value: object) -> bool:
    return value in {"add", "remove", "replace"}


_TYPES: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(["price", "total_value", "total_discounts"], _is_money),
    **dict.fromkeys(_MONEY.split(), _is_money),
    **dict.fromkeys(["products", "discounts", "type"], _is_list),
    "metadata": _is_object,
    "quantity": _is_count,
    "action": _is_action,
    "currency": is_currency,
}
"""What a property must be; a property not named here must be text."""


def ecommerce_errors(name: str, properties: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the schema of the event *name* finds wrong in its properties."""
    yield from _errors(SCHEMAS[name], properties, "#/properties")
    replaces = properties.get("action", "replace") == "replace"
    if name == "ecommerce.cart_updated" and replaces:
        yield from _missing({"total_value"}, properties, "#/properties")
    products = properties.get("products")
    for number, product in enumerate(products if isinstance(products, list) else ()):
        where = f"#/properties/products/{number}"
        if isinstance(product, dict):
            yield from _errors(_PRODUCT, product, where)
        else:
            yield f"The property '{where}' did not match the following type: object"


def is_currency_error(error: str) -> bool:
    """Say whether an error of `ecommerce_errors` is about the currency."""
    return error == _BAD_CURRENCY


def _errors(schema: Schema, given: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from _missing(schema.required, given, where)
    for name in sorted(given.keys() - schema.required - schema.optional):
        yield (
            f"The property '{where}/{name}' is not part of the schema; "
            "custom fields belong into 'metadata'"
        )
    for name in sorted(given.keys() & (schema.required | schema.optional)):
        if not _TYPES.get(name, _is_text)(given[name]):
            yield (
                _BAD_CURRENCY
                if name == "currency"
                else f"The property '{where}/{name}' did not match the schema"
            )


def _missing(
    required: frozenset[str] | set[str], given: Mapping[str, Any], where: str
) -> Iterator[str]:
    for name in sorted(required - given.keys()):
        yield f"The property '{where}' did not contain a required property of '{name}'"
