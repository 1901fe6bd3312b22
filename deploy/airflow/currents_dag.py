"""Currents in and audiences out, on Airflow 3: copy it into the folder of DAGs.

Workers need currents-ingest in an environment of its own (nothing of it is imported
here), its settings, and secrets in their environment; see docs/deploy.md.
"""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

COMMAND = os.environ.get("CURRENTS_COMMAND", "/opt/currents/bin/currents-ingest")
SETTINGS = os.environ.get("CURRENTS_SETTINGS", "/etc/currents/currents.toml")
AUDIENCES = tuple(tomllib.loads(Path(SETTINGS).read_text("utf-8")).get("audiences", ()))
SHARED = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,  # one poll takes all that is new, however many were missed
    "max_active_runs": 1,
    "max_active_tasks": 1,  # two syncs at once would each go at Braze's full rate
    "default_args": {
        # A run that is repeated goes on where it stopped.
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "execution_timeout": timedelta(hours=6),
    },
}


def task(name: str, arguments: str, **more: object) -> BashOperator:
    """Return a task that runs the command; it is SIGTERM that ends it, too."""
    command = f"exec {COMMAND} --config {SETTINGS} {arguments}"
    return BashOperator(task_id=name, bash_command=command, append_env=True, **more)


with DAG("currents_poll", schedule="*/5 * * * *", **SHARED) as poll:
    task("poll", "poll")

with DAG("currents_audiences", schedule="0 6 * * *", **SHARED) as audiences:
    sent = [task(f"sync_{name}", f"audience sync {name}") for name in AUDIENCES]
    # Status 3 fails it, and so tells someone, once a day: something needs a look.
    sent >> task("look", "status --strict", retries=0, trigger_rule="all_done")
