"""Templates of what people read: Markdown, and HTML that loads nothing."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"


def templates(*, escape: bool) -> Environment:
    """Return the environment of the package's templates; *escape* for HTML."""
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=escape,  # noqa: S701 (Markdown has nothing to escape)
        trim_blocks=True,
        undefined=StrictUndefined,
    )
