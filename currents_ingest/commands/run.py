"""``run``: polls, audiences on their schedules, and what they say of themselves."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from currents_ingest.commands.shared import ConfigOption, settings_of

if TYPE_CHECKING:
    from currents_ingest.service import Inbox


def run(config: ConfigOption = None) -> None:
    """Poll, and sync audiences on their schedules, until SIGTERM or Ctrl-C.

    The first signal ends after the batch in hand, a second one at once. run.listen
    serves /metrics, /healthz, /readyz and the report.
    """
    from queue import SimpleQueue

    from currents_ingest import service

    settings = settings_of(config)
    inbox: Inbox = SimpleQueue()
    _told_of_signals(inbox)
    service.serve(settings, inbox)


def _told_of_signals(inbox: Inbox) -> None:
    both = (signal.SIGTERM, signal.SIGINT)

    def first(number: int, _: object) -> None:
        for one in both:
            signal.signal(one, signal.SIG_DFL)
        inbox.put(number)  # may interrupt its own get, unlike an event's set

    for one in both:
        signal.signal(one, first)
