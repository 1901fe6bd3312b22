"""A feed's paper as Markdown, and as HTML that loads nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from currents_ingest.pages import templates

if TYPE_CHECKING:
    from currents_ingest.handover import Handover


def markdown(page: Handover) -> str:
    """Return Markdown; characters that would end a table's cell are escaped."""
    environment = templates(escape=False)
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    text = environment.get_template("contract.md").render(page=page)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def html(page: Handover) -> str:
    """Return a page of its own: no script, nothing from outside, all text escaped."""
    return templates(escape=True).get_template("contract.html").render(page=page)
