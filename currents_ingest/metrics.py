"""What ``run`` counts, for Prometheus: names that stay, labels that are few.

Counters and histograms are of this process; gauges about the ledger are what it said
when it was last read. Labels name event types, audiences and tasks, never a key, an id
or a value. docs/metrics.md lists them all.
"""

from __future__ import annotations

from collections import Counter as Count
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from currents_ingest.cache_entries import ASIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from currents_ingest.api import Outcome
    from currents_ingest.audiences.work import Run
    from currents_ingest.cache import Cache
    from currents_ingest.manifest import Entry, Manifest
    from currents_ingest.pipeline import Committed
    from currents_ingest.silence import Sentinel

Kind = Literal["counter", "gauge", "histogram", "ledger"]
"""A ``ledger`` metric is a gauge that is read from the ledger."""
Result = Literal["ok", "stopped", "held", "retry", "failed"]
"""How a task ended: see docs/metrics.md."""
RESULTS: tuple[Result, ...] = get_args(Result)
SOURCES = ("ok", "stopped", "refused", "behind", "unknown")
VERDICTS = ("ok", "quiet", "behind", "new")
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
FOREIGN = "foreign"
"""Event type of files that are not Currents'."""
_MINUTES = (1, 5, 15, 60, 300, 900, 3600, 14400)
_DAYS = (60, 300, 900, 1800, 3600, 7200, 21600, 86400, 604800)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, without the suffixes that Prometheus adds."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    told: str
    buckets: tuple[int, ...] = ()


_TYPE, _AUDIENCE, _TASK = ("event_type",), ("audience",), ("task",)
METRICS = (
    Metric("currents_files", "counter", _TYPE, "Currents files ingested."),
    Metric("currents_read_bytes", "counter", _TYPE, "Bytes of these files."),
    Metric("currents_rows_in", "counter", _TYPE, "Rows read."),
    Metric("currents_rows_out", "counter", _TYPE, "Rows delivered."),
    Metric("currents_duplicates", "counter", _TYPE, "Rows that were known already."),
    Metric("currents_rejects", "counter", _TYPE, "Rows that break a rule."),
    Metric(
        "currents_unified_rejects",
        "counter",
        ("feed",),
        "Rows that a unified feed could not take.",
    ),
    Metric("currents_quarantines", "counter", _TYPE, "Files put into quarantine."),
    Metric("currents_drifts", "counter", _TYPE, "Schemas met for the first time."),
    Metric(
        "currents_delivery_delay_seconds",
        "histogram",
        (),
        "From a batch's newest event to its commit.",
        _DAYS,
    ),
    Metric(
        "currents_newest_event_timestamp_seconds",
        "gauge",
        _TYPE,
        "Newest event that this process delivered.",
    ),
    Metric("currents_unread_files", "gauge", (), "Files the last poll could not get."),
    Metric(
        "currents_queue_received_messages",
        "counter",
        ("fate",),
        "Messages of source.queue, by what became of them.",
    ),
    Metric(
        "currents_queue_messages",
        "gauge",
        ("state",),
        "Messages in source.queue at the last look: waiting or in_work.",
    ),
    Metric("currents_waiting_files", "gauge", (), "Files held back; feeds.max_wait."),
    Metric(
        "currents_task_runs", "counter", ("task", "result"), "Runs, by how they ended."
    ),
    Metric(
        "currents_task_duration_seconds",
        "histogram",
        ("task", "result"),
        "How long tasks took, by how they ended.",
        _MINUTES,
    ),
    Metric(
        "currents_task_last_end_timestamp_seconds",
        "gauge",
        ("task", "result"),
        "When a task last ended so.",
    ),
    Metric("currents_task_running", "gauge", _TASK, "1 while a task is at work."),
    Metric(
        "currents_task_next_timestamp_seconds", "gauge", _TASK, "When it is due next."
    ),
    Metric(
        "currents_task_late_seconds",
        "gauge",
        _TASK,
        "For how long a run that ends well is overdue; 0: it is not.",
    ),
    Metric(
        "currents_task_overruns",
        "counter",
        _TASK,
        "Times that came while the task still ran or waited.",
    ),
    Metric("currents_ready", "gauge", (), "1 if /readyz says 200."),
    Metric(
        "currents_audience_objects",
        "counter",
        ("audience", "result"),
        "Objects sent: acknowledged, failed or unknown.",
    ),
    Metric(
        "currents_audience_rows",
        "counter",
        ("audience", "change"),
        "Rows sent, by why: new, changed or left.",
    ),
    Metric(
        "currents_audience_rejected_rows",
        "counter",
        _AUDIENCE,
        "Rows of exports that were rejected.",
    ),
    Metric("currents_audience_requests", "counter", _AUDIENCE, "Requests to Braze."),
    Metric(
        "currents_audience_undecided_objects",
        "gauge",
        _AUDIENCE,
        "Objects of which nobody knows whether they arrived.",
    ),
    Metric("currents_ledger_entries", "ledger", (), "Entries of the ledger."),
    Metric(
        "currents_ledger_read_timestamp_seconds",
        "ledger",
        (),
        "When the ledger was last read for these gauges.",
    ),
    Metric(
        "currents_newest_queued_hour_timestamp_seconds",
        "ledger",
        _TYPE,
        "Newest queued hour that was delivered.",
    ),
    Metric(
        "currents_last_commit_timestamp_seconds",
        "ledger",
        _TYPE,
        "When rows were last delivered.",
    ),
    Metric(
        "currents_rejected_rows",
        "ledger",
        _TYPE,
        "Rows that broke a rule since the first batch.",
    ),
    Metric("currents_quarantined_files", "ledger", _TYPE, "Files in quarantine."),
    Metric(
        "currents_last_drift_timestamp_seconds",
        "ledger",
        _TYPE,
        "When a schema was last met that its contract does not know whole.",
    ),
    Metric(
        "currents_source_state",
        "ledger",
        ("state",),
        "1 for how Braze's side stands: ok, stopped, refused, behind or unknown.",
    ),
    Metric(
        "currents_event_type_state",
        "ledger",
        ("event_type", "state"),
        "1 for how an event type stands: ok, quiet, behind or new.",
    ),
)

_FROM_NONE = ("currents_rejects", "currents_quarantines", "currents_drifts")
"""Counters that begin with 0 for every known event type, so that a rise is seen."""
Samples = dict[str, dict[tuple[str, ...], float]]
"""Values by metric and labels."""


@dataclass(slots=True, eq=False)
class _Ledger(Collector):
    """Gauges that change all at once."""

    samples: Samples = field(default_factory=dict)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        samples = self.samples
        for one in METRICS:
            if one.kind == "ledger":
                family = GaugeMetricFamily(one.name, one.told, labels=one.labels)
                for labels, value in sorted(samples.get(one.name, {}).items()):
                    family.add_metric(labels, value)
                yield family


class Metrics:
    """All metrics of one process."""

    def __init__(self, tasks: Iterable[str], audiences: Iterable[str]) -> None:
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # noise
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self._ledger = _Ledger()
        self.registry.register(self._ledger)
        self._of = {one.name: self._made(one) for one in METRICS if one.kind in _KINDS}
        self._newest: dict[str, float] = {}
        for task in tasks:  # from the first scrape on, so that every rise is seen
            for result in RESULTS:
                self._of["currents_task_runs"].labels(task, result)
            self._of["currents_task_overruns"].labels(task)
        for audience in audiences:
            for became in ("acknowledged", "failed", "unknown"):
                self._of["currents_audience_objects"].labels(audience, became)
            self._of["currents_audience_rejected_rows"].labels(audience)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        found = self._of[name]
        (found.labels(*labels) if labels else found).set(value)

    def committed(self, one: Committed) -> None:
        """Count what a commit delivered."""
        if one.entry is None:
            return
        for batch in one.entry.batches:
            self._batch(batch, one.entry)
        for aside in one.entry.set_aside:
            self._add("currents_quarantines", 1, aside.event_type or FOREIGN)
        for drift in one.entry.schemas:
            self._add("currents_drifts", 1, drift.event_type)

    def polled(self, outcome: Outcome) -> None:
        """Take in what a poll left."""
        self.set("currents_waiting_files", outcome.waiting)
        self.set("currents_unread_files", len(outcome.unread))
        for fate, messages in outcome.messages.items():
            self._add("currents_queue_received_messages", messages, fate)

    def synced(self, run: Run) -> None:
        """Count what a run of an audience did."""
        name = run.audience
        objects = {
            "acknowledged": run.taken,
            "failed": run.failed,
            "unknown": run.unknown,
        }
        changes = {"new": run.new, "changed": run.changed, "left": run.left}
        for became, count in objects.items():
            self._add("currents_audience_objects", count, name, became)
        for change, count in changes.items():
            self._add("currents_audience_rows", count, name, change)
        self._add("currents_audience_rejected_rows", run.rejected, name)
        self._add("currents_audience_requests", run.requests, name)
        self.set("currents_audience_undecided_objects", run.undecided, name)

    def ended(self, task: str, result: Result, seconds: float, at: datetime) -> None:
        """Count a task that ended."""
        self._add("currents_task_runs", 1, task, result)
        self._of["currents_task_duration_seconds"].labels(task, result).observe(seconds)
        name = "currents_task_last_end_timestamp_seconds"
        self.set(name, at.timestamp(), task, result)

    def overran(self, task: str) -> None:
        """Count a time that came while the task ran or waited."""
        self._add("currents_task_overruns", 1, task)

    def looked(self, cache: Cache, sentinel: Sentinel, now: datetime) -> None:
        """Take in what the ledger and the sentinel say."""
        self._ledger.samples = found = _samples(cache, sentinel, now)
        for labels in found["currents_rejected_rows"]:
            for name in _FROM_NONE:
                self._of[name].labels(*labels)

    def _batch(self, batch: Manifest, entry: Entry) -> None:
        of = batch.event_type
        self._add("currents_files", len(batch.inputs), of)
        self._add("currents_read_bytes", sum(one.size for one in batch.inputs), of)
        self._add("currents_rows_in", batch.rows_in, of)
        self._add("currents_rows_out", batch.rows_out, of)
        self._add("currents_duplicates", batch.duplicates, of)
        self._add("currents_rejects", batch.rejects, of)
        for share in batch.shares:
            self._add("currents_unified_rejects", share.rejects, share.feed)
        last = [one.last_event for one in batch.outputs if one.last_event]
        if last:
            newest = max(last).timestamp()
            delay = max(0.0, entry.at.timestamp() - newest)
            self._of["currents_delivery_delay_seconds"].observe(delay)
            self._newest[of] = max(newest, self._newest.get(of, newest))
            name = "currents_newest_event_timestamp_seconds"
            self.set(name, self._newest[of], of)

    def _add(self, name: str, count: int, *labels: str) -> None:
        self._of[name].labels(*labels).inc(count)

    def _made(self, one: Metric) -> Any:
        more = {"buckets": one.buckets} if one.buckets else {}
        return _KINDS[one.kind](
            one.name, one.told, one.labels, registry=self.registry, **more
        )


def _samples(cache: Cache, sentinel: Sentinel, now: datetime) -> Samples:
    totals = {row["event_type"]: row for row in cache.table("totals")}
    aside = Count(one.event_type or FOREIGN for one in cache.files(ASIDE))
    return {
        "currents_ledger_entries": {(): cache.head},
        "currents_ledger_read_timestamp_seconds": {(): now.timestamp()},
        "currents_newest_queued_hour_timestamp_seconds": {
            (of,): row["watermark"] for of, row in totals.items()
        },
        "currents_last_commit_timestamp_seconds": {
            (of,): datetime.fromisoformat(row["committed_at"]).timestamp()
            for of, row in totals.items()
        },
        "currents_rejected_rows": {(of,): row["rejects"] for of, row in totals.items()},
        "currents_quarantined_files": {
            (of,): aside[of] for of in {*totals, FOREIGN, *aside}
        },
        "currents_last_drift_timestamp_seconds": {
            (one.event_type,): seen.timestamp()
            for one, seen in sorted(cache.drift(), key=lambda found: found[1])
        },
        "currents_source_state": {
            (state,): float(state == sentinel.source) for state in SOURCES
        },
        "currents_event_type_state": {
            (one.event_type, state): float(state == one.verdict)
            for one in sentinel.types
            for state in VERDICTS
        },
    }


_KINDS: Mapping[str, Any] = {
    "counter": prometheus.Counter,
    "gauge": prometheus.Gauge,
    "histogram": prometheus.Histogram,
}
