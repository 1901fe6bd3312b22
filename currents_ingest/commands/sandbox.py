"""``sandbox``: a local server that answers as Braze's REST API does."""

from __future__ import annotations

from typing import Annotated

import typer

from currents_ingest.commands.shared import checked
from currents_ingest.output import err, out


def sandbox(  # the options of python -m currents_ingest.sandbox that people need
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8099,
    key: Annotated[str, typer.Option(help="Key that is taken; empty: any.")] = "",
    delay: Annotated[
        str, typer.Option(help="From an answer until it shows in profiles.")
    ] = "0.05s",
    faults: Annotated[
        float, typer.Option(help="Share of requests that go wrong, 0 to 1.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same faults.")] = 0,
    mau: Annotated[
        bool, typer.Option(help="Rate-limit headers of contracts by active users.")
    ] = False,
) -> None:
    """Try audiences without touching Braze: a local server that answers as it does."""
    from currents_ingest.sandbox.faults import Faults
    from currents_ingest.sandbox.options import SandboxOptions
    from currents_ingest.sandbox.server import run
    from currents_ingest.units import duration

    options = SandboxOptions(
        port=port,
        api_key=key,
        delay=checked(duration, delay).total_seconds(),
        mau_headers=mau,
        faults=Faults(seed=seed, share=faults),
    )
    run(options, ready=_ready)


def _ready(url: str) -> None:
    out.print(url)
    err.print(
        f'set url = "{url}" in \\[braze] and any key; {url}/_sandbox/profiles shows'
    )
    err.print("what came of it. Ctrl-C ends it, and what it holds is gone.")
