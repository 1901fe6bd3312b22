"""Airflow 3: a poll every five minutes, each audience on its own schedule.

Plain operators that run the command, so that Airflow needs nothing of currents-ingest's
in its own environment. Secrets come from the environment of the workers.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

COMMAND = "/opt/currents/bin/currents-ingest --config /etc/currents/currents.toml"
AUDIENCES = {"vip": "0 * * * *", "high_value": "30 6 * * *"}
"""When each audience is sent."""
COMMON = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,  # a poll takes all there is
    "max_active_runs": 1,
    "tags": ["currents"],
    "default_args": {
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "execution_timeout": timedelta(hours=6),
    },
}

with DAG("currents_poll", schedule=timedelta(minutes=5), **COMMON):
    BashOperator(task_id="poll", bash_command=f"exec {COMMAND} poll --json")

with DAG("currents_daily", schedule="0 7 * * *", **COMMON):
    # Exit status 3, something needs a look, fails the task and so tells someone.
    BashOperator(
        task_id="status", bash_command=f"exec {COMMAND} status --strict", retries=0
    )

for name, schedule in AUDIENCES.items():
    with DAG(f"currents_audience_{name}", schedule=schedule, **COMMON):
        BashOperator(
            task_id="sync", bash_command=f"exec {COMMAND} audience sync {name} --json"
        )
