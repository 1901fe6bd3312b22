"""``sandbox``: a local server that answers as Braze's REST API does."""

from __future__ import annotations

import typer  # noqa: TC002 (typer reads it)

AS_GIVEN = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
"""The server reads its options itself: ``python -m currents_ingest.sandbox``, too."""


def sandbox(context: typer.Context) -> None:
    """Run a local server that answers as Braze does; --help lists its options."""
    from currents_ingest.sandbox.__main__ import main

    main(context.args)
