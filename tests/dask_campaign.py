"""Kill whoever works on a cluster, again and again, and judge what is delivered.

``python -m tests.dask_campaign --kills 60 --seed 1``. Each kill hits, at a random
moment of a load's work, the coordinator, a worker, the scheduler, or two of them at
once; what was killed is started again. Everything is judged as in ``tests.campaign``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from currents_ingest.simulate import Simulation
from tests import campaign
from tests.clusters import cluster

if TYPE_CHECKING:
    import subprocess

    from tests.clusters import Cluster

WHO = ("coordinator", "worker", "scheduler")
DAYS = ("--since", "2026-08-01", "--until", "2027-08-01")


def more(rng: random.Random, place: campaign.Place, number: int) -> None:
    """Add the files of two more hours, many for the time that a load takes."""
    simulation = Simulation(
        seed=rng.randrange(10**9),
        events=campaign.EVENTS,
        end=campaign.FIRST + number * timedelta(hours=2),
        hours=2,
        files_per_hour=6,
        rows=400,
        torn=1,
        redelivered=0.1,
    )
    campaign.add_files(place, simulation)


def strike(
    rng: random.Random, made: Cluster, process: subprocess.Popen[str]
) -> list[str]:
    """Kill one or two, and start anew what belongs to the cluster."""
    chosen = rng.sample(WHO, 2 if rng.random() < 0.2 else 1)
    victims = {
        "coordinator": process,
        "worker": rng.choice(made.workers),
        "scheduler": made.scheduler,
    }
    for who in chosen:
        if victims[who] is not None:
            victims[who].kill()
    if "scheduler" in chosen:
        made.end()  # workers of a lost scheduler end by themselves, later
        made.start_scheduler()
        made.workers.clear()
    made.workers = [one for one in made.workers if one.poll() is None]
    while len(made.workers) < 2:
        made.start_worker()
    return chosen


def one_round(
    rng: random.Random, made: Cluster, place: campaign.Place, kills: int
) -> tuple[Counter[str], list[str]]:
    """Strike so often, then let it finish in peace and look at everything."""
    watch, struck, wrong = campaign.Watch(place), Counter[str](), list[str]()
    options = ("--engine", "dask", "--scheduler", made.address)
    while struck.total() < kills and not wrong:
        before = campaign.staged(place)
        process = campaign.start(place, "load", *DAYS, *options)
        campaign.wait_until_at_work(process, place, before)
        time.sleep(rng.uniform(0, 0.6))
        if process.poll() is None:
            struck.update(strike(rng, made, process))
        else:
            more(rng, place, len(list(place.tree.glob("expected-*.json"))))
        ended = campaign.end(process)
        known = "mend the cluster|lease|another process|at work on these feeds"
        if "Traceback" in ended.stderr or (
            ended.status not in (0, campaign.KILLED)
            and not re.search(known, ended.stderr)
        ):
            wrong.append(f"a run failed: {ended.told()}")
        wrong += watch.look()
        if ended.status == campaign.KILLED:
            time.sleep(1.1)  # its lease
    campaign.finish(replace(place, lease="60s"), "load", *DAYS, *options)
    verified = campaign.run(place, "verify", "--json")
    if verified.status or json.loads(verified.stdout)["differences"]:
        wrong.append(f"verify: {verified.told()}")
    return struck, [*wrong, *watch.look(), *campaign.judge(place)]


def main() -> int:
    """Run a campaign and print one line of figures; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng, began = random.Random(asked.seed), time.monotonic()
    struck, wrong, rounds = Counter[str](), list[str](), 0
    root = Path(tempfile.mkdtemp(prefix="dask-campaign-"))
    place = campaign.folder(root, lease="1s")
    place.disk.mkdir(parents=True)
    os.environ["DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT"] = "2s"
    with cluster(place.disk, environment=campaign.environment(place)) as made:
        while struck.total() < asked.kills and not wrong:
            if rounds % 3 == 0:
                campaign.begin_anew(place)
            more(rng, place, rounds % 3 * 20)
            found, wrong = one_round(rng, made, place, min(10, asked.kills))
            struck += found
            rounds += 1
            print(f"round {rounds}: {dict(struck)}", file=sys.stderr, flush=True)  # noqa: T201
    for one in wrong:
        print(one, file=sys.stderr)  # noqa: T201
    if not wrong:
        shutil.rmtree(root)
    told = ", ".join(f"{struck[who]} of a {who}" for who in WHO)
    print(  # noqa: T201 (the result)
        f"{struck.total()} kills: {told}; {rounds} rounds, {len(wrong)} differences, "
        f"{time.monotonic() - began:.0f} s"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
