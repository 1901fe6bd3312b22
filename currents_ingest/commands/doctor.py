"""``doctor``: what does not work, and how to mend it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from currents_ingest.commands.shared import ConfigOption, JsonOption, config_path
from currents_ingest.output import out, print_json

_MARKS = {
    "ok": "[green]ok     [/]",
    "warning": "[yellow]warning[/]",
    "problem": "[bold red]problem[/]",
    "skipped": "skipped",
}


def doctor(
    config: ConfigOption = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Write nothing, not even a probe.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Try all that a run needs, and say how to mend what does not work."""
    from currents_ingest.doctor import examine

    found = examine(config_path(config), read_only=read_only)
    if json_:
        policy = json.loads(found.policy) if found.policy else None
        findings = list(map(asdict, found.findings))
        print_json({"findings": findings, "policy": policy})
    else:
        for one in found.findings:
            out.print(f"{_MARKS[one.state]} {escape(one.tried)}: {escape(one.came)}")
            if one.mend:
                out.print(f"        {escape(one.mend)}")
        counts = Counter[str](one.state for one in found.findings)
        told = ", ".join(f"{counts[state]} {state}" for state in _MARKS)
        out.print(f"\n{told}")
        if found.policy:
            out.print("\nThe least that this role has to be allowed in AWS:")
            out.print(escape(found.policy))
    if not found.usable:
        raise typer.Exit(2)
    raise typer.Exit(1 if found.problems else 0)
