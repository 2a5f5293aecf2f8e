# SPDX-License-Identifier: BSD-3-Clause
"""Line charts as inline SVG. Colours are CSS variables and CSS classes that the page defines.

The variables of the lines are --c0 to --c7. `page` defines the styles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
MAX_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One named line; `x` is in ascending order."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_max: float | None = None,
    x_range: tuple[float, float] | None = None,
) -> str:
    """An SVG chart with a legend below it, as an HTML fragment.

    Args:
        lines: the lines to draw; the colours follow their order.
        x_label: label of the x axis.
        y_label: label of the y axis.
        y_max: upper end of the y axis, which starts at 0; None: from the largest y.
        x_range: ends of the x axis; None: from the data.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return '<p class="absent">No data.</p>'
    x_low, x_high = x_range or (min(line.x[0] for line in lines), max(line.x[-1] for line in lines))
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_low + 0.5
    y_ticks = _ticks(0.0, y_max or max(1e-9, *(max(line.y) for line in lines), 0.0))
    y_high = y_max or y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - min(y, y_high) / y_high * (HEIGHT - TOP - BOTTOM),
        )

    whole = all(float(x).is_integer() for line in lines for x in line.x)
    x_ticks = _ticks(x_low, x_high, least=1.0 if whole else 0.0)
    parts = [_axes(place, x_ticks, y_ticks, (x_low, x_high), y_high)]
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="label" x="{middle_x}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" transform="translate(13 {middle_y}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    for index, line in enumerate(lines):
        parts.append(_curve(line, index % COLOURS, place))
    legend = "".join(
        f'<span><i style="background:var(--c{index % COLOURS})"></i>{escape(line.name)}</span>'
        for index, line in enumerate(lines)
    )
    description = escape(f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{description}">'
        f'{"".join(parts)}</svg><div class="legend">{legend}</div>'
    )


def _curve(line: Line, colour: int, place) -> str:
    stride = max(1, math.ceil(len(line.x) / MAX_POINTS))
    chosen = sorted({*range(0, len(line.x), stride), len(line.x) - 1})
    points = [place(line.x[i], line.y[i]) for i in chosen]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    curve = (
        f'<polyline class="line" points="{path}" style="stroke:var(--c{colour})">'
        f"<title>{escape(line.name)}</title></polyline>"
    )
    if len(points) <= 20:
        curve += "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:var(--c{colour})">'
            f"<title>{escape(line.name)}: {line.y[i]:.3f}</title></circle>"
            for i, (x, y) in zip(chosen, points, strict=True)
        )
    return curve


def _axes(place, x_ticks, y_ticks, x_range, y_high) -> str:
    parts = []
    bottom = HEIGHT - BOTTOM
    for tick in y_ticks:
        if tick <= y_high * 1.0001:
            y = place(x_range[0], tick)[1]
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{tick:g}</text>'
            )
    for tick in x_ticks:
        if x_range[0] <= tick <= x_range[1]:
            x = place(tick, 0)[0]
            parts.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                f'<text class="tick" x="{x:.1f}" y="{bottom + 17}">{tick:g}</text>'
            )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    )
    return "".join(parts)


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """About five round numbers that cover low..high, with a step of at least `least`."""
    rough = max((high - low) / 5, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]
