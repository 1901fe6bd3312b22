"""SQL with which an operator checks a feed in Amperity (Spark SQL)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from currents_ingest.unified import UnifiedContract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from currents_ingest.contracts import Contract

_ALWAYS = {
    "rows, and whether any key came twice": """\
SELECT
  COUNT(*) AS row_count,
  COUNT(DISTINCT {key}) AS keys,
  MAX({last_updated}) AS newest
FROM {table}""",
}
_EMAIL = {
    "events a day by word, only Amperity's seven": """\
SELECT
  DATE(event_datetime) AS day,
  event_type,
  COUNT(*) AS events
FROM Unified_Email_Events
GROUP BY DATE(event_datetime), event_type
ORDER BY day DESC, event_type""",
    "what only one of the two tables has": """\
SELECT
  COALESCE(b.event_type, u.event_type) AS event_type,
  COUNT(b.send_id) AS only_here,
  COUNT(u.send_id) AS only_in_unified_email_events
FROM {table} AS b
FULL OUTER JOIN Unified_Email_Events AS u
  ON b.send_id = u.send_id
  AND b.email = u.email
  AND b.event_type = u.event_type
  AND b.event_datetime = u.event_datetime
WHERE b.send_id IS NULL OR u.send_id IS NULL
GROUP BY COALESCE(b.event_type, u.event_type)""",
    "opens and clicks without their send, from before the feed began": """\
SELECT
  e.event_type,
  COUNT(*) AS events
FROM Unified_Email_Events AS e
LEFT JOIN Unified_Email_Events AS s
  ON s.send_id = e.send_id
  AND s.event_type = 'Sent'
WHERE e.event_type IN ('Open', 'Click') AND s.send_id IS NULL
GROUP BY e.event_type""",
    "months of history, of which the raw route needs fifteen": """\
SELECT
  MIN(event_datetime) AS first_event,
  MONTHS_BETWEEN(CURRENT_DATE, MIN(event_datetime)) AS months
FROM Unified_Email_Events""",
}
_CONSENT = {
    "people by state": """\
SELECT
  brand,
  {flag},
  COUNT(*) AS people,
  MAX(state_changed_at) AS last_change
FROM {table}
GROUP BY brand, {flag}""",
}
_FLAGS = ("email-opt/is-email-opted-in", "sms-opt/is-sms-opted-in")


def of(
    contract: Contract | UnifiedContract, table: str, key: Sequence[str]
) -> dict[str, str]:
    """Return queries by what they show.

    Args:
        contract: The feed's contract.
        table: The domain table's name in SQL.
        key: The feed's key columns.
    """
    columns = contract.columns if isinstance(contract, UnifiedContract) else ()
    tags = {column.tag: column.name for column in columns if column.tag}
    flag = next((tags[tag] for tag in _FLAGS if tag in tags), "")
    wanted = {
        **_ALWAYS,
        **(_EMAIL if "email-event/event-type" in tags else {}),
        **(_CONSENT if flag else {}),
    }
    names = {
        "key": ", ".join(key),
        "last_updated": contract.last_updated,
        "table": table,
        "flag": flag,
    }
    return {title: query.format(**names) for title, query in wanted.items()}
