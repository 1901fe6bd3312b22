"""Charts as SVG text: no script, colours by CSS, as wide as there is room.

Altair says what a chart is, vl-convert draws it. Where vl-convert has no wheel there
are no charts but sparklines, which are made here by hand, for a page may have a
hundred of them.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_COLOURS = {
    "#010101": "currentColor",
    "#020202": "var(--first)",
    "#030303": "var(--second)",
    "#040404": "var(--line)",
}
"""What is drawn in these becomes what the page's style says, in light and in dark."""
_INK, _FIRST, _SECOND, _LINE = _COLOURS
_COUNT = "datum.value ? format(datum.value, '~s') : '0'"
_SPANS = {30: "30 min", 60: "1 h", 180: "3 h", 720: "12 h", 2880: "2 d", 10080: "7 d"}


def can_draw() -> bool:
    """Tell whether charts can be made on this machine."""
    try:
        import vl_convert  # noqa: F401 (only whether it is there)
    except ImportError:
        return False
    return True


def hours(rows: Iterable[tuple[datetime, int]], title: str, width: int) -> str:
    """Return rows an hour as an area.

    Args:
        rows: By hour, without gaps.
        title: What the chart says, for who does not see it.
        width: Pixels that the text is sized for.
    """
    import altair as alt

    values = [{"at": f"{at:%Y-%m-%dT%H:%M:%SZ}", "rows": n} for at, n in rows]
    area: Any = _chart(values).mark_area(
        color=_FIRST, opacity=0.35, line={"color": _FIRST, "strokeWidth": 1.5}
    )
    return _drawn(
        area.encode(
            x=_time_axis(width),
            y=alt.Y("rows:Q", axis=alt.Axis(title=None, tickCount=4, labelExpr=_COUNT)),
        ),
        title,
        width,
    )


def spans(days: Iterable[tuple[datetime, str, float]], title: str, width: int) -> str:
    """Return lines of minutes by day and name, on a scale from minutes to days."""
    import altair as alt

    minutes = list(days)
    most = max((one for _, _, one in minutes), default=0)
    top = next((one for one in _SPANS if one >= max(most, 180)), max(_SPANS))
    labels = " : ".join(f"datum.value == {at} ? '{one}'" for at, one in _SPANS.items())
    axis = alt.Axis(title=None, values=list(_SPANS), labelExpr=f"{labels} : ''")
    scale = alt.Scale(type="log", domain=[10, top], clamp=True)
    return _lines(minutes, title, width, alt.Y("value:Q", axis=axis, scale=scale))


def shares(days: Iterable[tuple[datetime, str, float]], title: str, width: int) -> str:
    """Return lines of shares by day and name."""
    import altair as alt

    axis = alt.Axis(title=None, format="~%", tickCount=4)
    return _lines(days, title, width, alt.Y("value:Q", axis=axis))


def sparkline(now: Sequence[int], before: Sequence[int]) -> str:
    """Return a line of counts over those of as many hours before, without text."""
    top = max(*now, *before, 1)
    high = 24

    def points(values: Sequence[int]) -> str:
        return " ".join(
            f"{x} {high - n * high / top:.3g}" for x, n in enumerate(values)
        )

    end = len(now) - 1
    return (
        f'<svg class="spark" viewBox="0 -1 {end} {high + 2}" aria-hidden="true" '
        'preserveAspectRatio="none">'
        f'<path class="before" d="M0 {high}L{points(before)}L{end} {high}Z"/>'
        f'<path class="now" d="M{points(now)}"/></svg>'
    )


def _lines(
    days: Iterable[tuple[datetime, str, float]], title: str, width: int, y: Any
) -> str:
    import altair as alt

    rows: list[dict[str, Any]] = [
        {"at": f"{at:%Y-%m-%dT12:00:00Z}", "name": name, "value": value}
        for at, name, value in days
    ]
    names = list(dict.fromkeys(one["name"] for one in rows))
    legend = alt.Legend(title=None, orient="top", symbolStrokeWidth=2, symbolSize=300)
    few = len({one["at"] for one in rows}) < 3  # too few for a line to be seen
    chart: Any = _chart(rows).mark_line(strokeWidth=2, point=few)
    return _drawn(
        chart.encode(
            x=_time_axis(width),
            y=y,
            color=alt.Color(
                "name:N",
                scale=alt.Scale(domain=names, range=[_FIRST, _SECOND]),
                legend=legend,
            ),
            strokeDash=alt.StrokeDash(
                "name:N",
                scale=alt.Scale(domain=names, range=[[1, 0], [5, 3]]),
                legend=legend,
            ),
        ),
        title,
        width,
    )


def _chart(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Chart(alt.Data(values=values))  # type: ignore[no-untyped-call]


def _time_axis(width: int) -> Any:
    import altair as alt

    axis = alt.Axis(title=None, format="%d %b", tickCount=width // 75, labelFlush=True)
    return alt.X("at:T", scale=alt.Scale(type="utc"), axis=axis)


def _drawn(chart: Any, title: str, width: int) -> str:
    """Draw a chart for a page: sized by its box, coloured by its style."""
    import vl_convert

    told = chart.properties(
        width=width, height=190, autosize={"type": "fit", "contains": "padding"}
    )
    told = told.configure(background="transparent", aria=False, font="system-ui")
    told = told.configure_view(stroke=None).configure_legend(
        labelColor=_INK, labelFontSize=12
    )
    told = told.configure_axis(
        labelColor=_INK,
        labelFontSize=12,
        gridColor=_LINE,
        domainColor=_LINE,
        tickColor=_LINE,
    )
    svg: str = vl_convert.vegalite_to_svg(told.to_dict(validate=False))
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    view = re.search(r'viewBox="[^"]*"', svg)
    inner = svg[svg.index(">") + 1 :]
    return (
        f'<svg role="img" xmlns="http://www.w3.org/2000/svg" '
        f"{view[0] if view else ''}><title>{escape(title)}</title>{inner}"
    )
