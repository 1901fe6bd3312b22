"""Kills by the dozen while cohorts are synced to a sandbox with faults.

    python -m tests.cohort_campaign --people 2000000 --kills 60 --seed 1 [--faults 0.02]

Syncs an export of ids in three cohorts, killing the process with SIGKILL at random
moments, most right after the sandbox took more, until as many kills were had as asked
for and a run has ended. Then who the sandbox has in each cohort is compared with the
export; then 1 % join and 1 % leave, under kills again, and once more in peace. Prints
one line of JSON and ends with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any

from tests.audience_campaign import (
    KILLED,
    Place,
    end,
    id_of,
    start,
    wait_for_a_moment,
    write_settings,
)
from tests.partner_server import ENVIRONMENT
from tests.sandbox_server import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sandbox_server import Sandbox

COHORTS, VERSIONS = "ABC", 3
DEFINED, CHANGED = "/partners/{name}/cohorts", "/partners/{name}/cohorts/users"


@dataclass(slots=True, kw_only=True)
class Phase:
    """One export, synced to its end."""

    version: int
    changes: int
    """Joins and leaves."""
    kills: int
    starts: int = 0
    requests: int = 0
    """That changed members, whatever was answered."""
    least: int = 0
    """Without kills and faults."""
    sent: int = 0
    """Ids that the sandbox accepted, again and again."""
    seconds: float = 0.0
    peak_mb: int = 0
    """Of the process that took most, killed ones too."""
    wrong: int = 0
    """Members too many or too few."""


def cohort_of(number: int) -> str:
    """Return a person's cohort: the same one for good."""
    place = number * 7919 % 10
    return "A" if place < 6 else "B" if place < 9 else "C"


def members(people: int, version: int) -> range:
    """Return who is in an export: with each version 1 % leave and 1 % join."""
    share = people // 100
    return range(version * share, people + version * share)


def everyone(people: int) -> range:
    """Return who is in any export."""
    return range(members(people, VERSIONS - 1).stop)


def changed(people: int, version: int) -> Iterator[int]:
    """Yield who joins or leaves with a version."""
    now = members(people, version)
    before = members(people, version - 1) if version else range(0)
    yield from range(before.start, now.start) if version else ()
    yield from range(max(before.stop, now.start), now.stop)


def write_export(place: Place, people: int, version: int) -> None:
    """Write ids and cohorts."""
    with place.export.open("w", encoding="utf-8") as file:
        file.write("external_id,treatment,note\n")
        for number in members(people, version):
            file.write(f"{id_of(number)},{cohort_of(number)},{version}\n")


def wrong_members(box: Sandbox, people: int, version: int) -> int:
    """Compare who is in each cohort with the export."""
    meant: dict[str, list[str]] = {name: [] for name in COHORTS}
    for number in members(people, version):
        meant[cohort_of(number)].append(id_of(number))
    found = box.cohorts()
    wrong = sum(
        len(one["user_ids"]) for name, one in found.items() if name not in meant
    )
    for name, ids in meant.items():
        has = found[name]["user_ids"] if name in found else []
        if has != ids:  # both are sorted
            wrong += len(set(has) ^ set(ids)) + abs(len(has) - len(set(has)))
    return wrong


def sync_under_kills(place: Place, box: Sandbox, phase: Phase, rng: Random) -> None:
    """Sync until a run ends by itself, after as many kills as can be had."""
    since, before, wanted = time.monotonic(), box.state(), phase.kills
    each = max(1, 2 * phase.changes // max(1, wanted))
    phase.kills = 0
    while True:
        process = start(place, "audience", "sync", "vips", "--json", **ENVIRONMENT)
        phase.starts += 1
        watch = Thread(target=_watch, args=(phase, process.pid))
        watch.start()
        if phase.kills < wanted:
            wait_for_a_moment(process, box, rng, each)
            process.kill()
        ended = end(process)
        watch.join()
        phase.kills += ended.status == KILLED
        if ended.status == 0:
            break
        assert ended.status in {1, KILLED}, ended.stderr
    after = box.state()
    phase.requests = asked(after, CHANGED) - asked(before, CHANGED)
    phase.sent = after["cohort_ids"] - before["cohort_ids"]
    phase.seconds = round(time.monotonic() - since, 1)


def _watch(phase: Phase, pid: int) -> None:
    """Note the most memory of a process while it runs (Linux)."""
    path = Path(f"/proc/{pid}/status")
    with suppress(OSError):
        while found := re.search(r"VmHWM:\s+(\d+) kB", path.read_text()):
            phase.peak_mb = max(phase.peak_mb, int(found[1]) // 1024)
            time.sleep(0.05)


def asked(state: dict[str, Any], path: str) -> int:
    """Return how many requests an endpoint had."""
    return sum(state["requests"].get(path, {}).values())


def main() -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kill cohort syncs and compare.")
    parser.add_argument("--people", type=int, default=2_000_000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=float, default=0.02)
    given = parser.parse_args()
    rng = Random(given.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        sandbox(seed=given.seed, hang=6, delay=0, batch_limit=1000) as box,
    ):
        place = Place(root=Path(folder), braze=box.url)
        write_settings(
            place,
            braze={"timeout": "3s"},
            kind="cohort",
            cohort_column="treatment",
        )
        known = ({"external_id": id_of(one)} for one in everyone(given.people))
        box.people(known, most=1000)
        phases = campaign(place, box, given, rng)
        state = box.state()
    figures = {
        "people": given.people,
        "phases": [asdict(one) for one in phases],
        "kills": sum(one.kills for one in phases),
        "faults": state["faults"],
        "definitions": asked(state, DEFINED),
        "most_ids": state["most_ids"],
        "contradictions": state["contradictions"],
        "peak_mb": max(one.peak_mb for one in phases),
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    peace = phases[-1]
    spare = len(COHORTS) + peace.least // 100  # for ends of cohorts and of ranges
    fewest = peace.sent == peace.changes and peace.requests <= peace.least + spare
    within = state["most_ids"] <= 1000 and not state["contradictions"]
    return int(any(one.wrong for one in phases) or not (fewest and within))


def campaign(
    place: Place, box: Sandbox, given: argparse.Namespace, rng: Random
) -> list[Phase]:
    """Sync three exports: all join, then twice 1 % join and leave, at last in peace."""
    phases = []
    for version, kills in enumerate((given.kills, given.kills // 10, 0)):
        box.faults(share=given.faults if kills else 0)
        write_export(place, given.people, version)
        changes = list(changed(given.people, version))
        least = sum(
            -(-one // 1000) for one in Counter(map(cohort_of, changes)).values()
        )
        phase = Phase(version=version, changes=len(changes), kills=kills, least=least)
        sync_under_kills(place, box, phase, rng)
        phase.wrong = wrong_members(box, given.people, version)
        sys.stderr.write(f"{phase}\n")
        phases.append(phase)
    return phases


if __name__ == "__main__":
    sys.exit(main())
