"""The partner cohort API as a set of ids by cohort; says what each request held.

It knows everyone, so that membership is what was sent, whatever people Braze has. The
sandbox, which knows only its own profiles, judges the rest.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from tests.sandbox_server import SUCCESS, Reply, stub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.sandbox_server import Got, Stub

ENVIRONMENT = {
    "BRAZE_PARTNER_KEY": "sesame-partner-5c1d",
    "BRAZE_DATA_IMPORT_KEY": "sesame-import-9f27",
}
USER, DEVICE, ALIAS = "user_ids", "device_ids", "aliases"
Id = tuple[str, str]
"""Kind and id; an alias is its name and label."""


def body_of(got: Got) -> dict[str, Any]:
    """Return a request's body without the keys, which every one must have."""
    found: dict[str, Any] = json.loads(got.body)
    assert found.pop("partner_api_key") == ENVIRONMENT["BRAZE_PARTNER_KEY"]
    assert found.pop("client_secret") == ENVIRONMENT["BRAZE_DATA_IMPORT_KEY"]
    return found


def ids_of(changes: list[dict[str, Any]], *, leave: bool) -> list[Id]:
    """Return the ids of a request that join, or those that leave."""
    return [
        (
            kind,
            one
            if isinstance(one, str)
            else f"{one['alias_name']} of {one['alias_label']}",
        )
        for change in changes
        if change.get("should_remove", False) is leave
        for kind in (USER, DEVICE, ALIAS)
        for one in change.get(kind, ())
    ]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that changed members."""

    cohort: str
    joins: list[Id]
    leaves: list[Id]

    @property
    def ids(self) -> list[Id]:
        """Return all of them."""
        return self.joins + self.leaves


@dataclass(frozen=True, slots=True)
class Partner:
    """A running partner API."""

    stub: Stub
    members: dict[str, set[Id]]
    """By cohort_id."""

    @property
    def url(self) -> str:
        """Return where it listens."""
        return self.stub.url

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """Return what defined a cohort, in order."""
        return [body_of(one) for one in self.stub.got if one.path.endswith("/cohorts")]

    @property
    def sent(self) -> list[Sent]:
        """Return what changed members, in order, refused requests too."""
        found = [body_of(one) for one in self.stub.got if one.path.endswith("/users")]
        return [
            Sent(
                one["cohort_id"],
                ids_of(one["cohort_changes"], leave=False),
                ids_of(one["cohort_changes"], leave=True),
            )
            for one in found
        ]

    def forget(self) -> None:
        """Forget requests, not members."""
        self.stub.got.clear()


def _as_braze(_: Got) -> None:
    """Leave the answer to the server."""


@contextmanager
def partner(
    refuse: Callable[[Got], Reply | None] = _as_braze,
    spoil: Callable[[Got], Reply | None] = _as_braze,
) -> Iterator[Partner]:
    """Run one for the block.

    Args:
        refuse: Returns the answer in place of taking a request; None takes it.
        spoil: Returns the answer to a request that was taken; None says so.
    """
    members: dict[str, set[Id]] = {}
    alone = Lock()

    def answer(got: Got) -> Reply:
        with alone:
            if reply := refuse(got):
                return reply
            body = body_of(got)
            if "name" in body:
                members.setdefault(body["cohort_id"], set())
                return SUCCESS
            if body["cohort_id"] not in members:
                return Reply(400, {"message": "Invalid cohort_id"})
            changes = body["cohort_changes"]
            members[body["cohort_id"]] |= set(ids_of(changes, leave=False))
            members[body["cohort_id"]] -= set(ids_of(changes, leave=True))
            return spoil(got) or SUCCESS

    with stub(answer) as running:
        yield Partner(running, members)
