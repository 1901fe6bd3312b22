"""`python -m currents_ingest.sandbox`: prints its base URL, then serves."""

from __future__ import annotations

import argparse
import sys

from currents_ingest.sandbox.faults import KINDS, Faults
from currents_ingest.sandbox.options import SandboxOptions
from currents_ingest.sandbox.server import run


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        options = _options(given)
    except ValueError as error:
        parser.error(str(error))
    run(options, ready=_announce)


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


def _options(given: argparse.Namespace) -> SandboxOptions:
    faults = Faults(
        seed=given.seed,
        share=given.faults,
        kinds=tuple(filter(None, given.fault_kinds.split(","))),
        hang=given.hang,
    )
    return SandboxOptions(
        port=given.port,
        api_key=given.key,
        partner_key=given.partner_key,
        data_import_key=given.data_import_key,
        delay=given.delay,
        batch_limit=given.batch_limit,
        legacy_batches=given.legacy_batches,
        requests=given.requests,
        per=given.per,
        hourly=given.hourly,
        mau_headers=given.mau,
        faults=faults,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="currents-ingest sandbox",
        description="A local server that answers as Braze's REST API does.",
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 is any free one")
    add("--key", default="", help="the only key taken; without it any is")
    add("--partner-key", default="", help="of cohorts; without it any is taken")
    add("--data-import-key", default="", help="of cohorts; without it any is taken")
    add("--delay", type=float, default=0.05, help="seconds from answer to effect")
    add("--faults", type=float, default=0.0, metavar="SHARE", help="0 to 1")
    add("--fault-kinds", default=",".join(KINDS), metavar="A,B", help="%(default)s")
    add("--seed", type=int, default=0, help="of the faults")
    add("--hang", type=float, default=60.0, help="seconds a time-out holds back")
    add("--requests", type=int, default=3000, help="to /users/track; 0 is no limit")
    add("--per", type=float, default=3.0, help="seconds for --requests")
    add("--hourly", type=int, default=0, help="requests in a clock hour")
    add("--mau", action="store_true", help="rate headers of contracts by MAU")
    add("--batch-limit", type=int, default=75, help="objects of one request")
    add("--legacy-batches", action="store_true", help="count it in each array")
    return parser


if __name__ == "__main__":  # pragma: no cover - runs in a process of its own
    main()
