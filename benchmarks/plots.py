# SPDX-License-Identifier: BSD-3-Clause
"""Time against size, log-log, a panel for each family of workloads, on all threads.

python -m benchmarks.plots [RESULT [SVG]]
"""

import itertools
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks import results
from benchmarks.results import CPU_OPS, Result
from fastdet.report.figures import three_digits

GROWTH = CPU_OPS.with_name("growth.svg")

COLOURS = {
    "fastdet": "#2f6fde",
    "torchvision": "#d9622b",
    "OpenCV": "#2a9d6e",
    "NumPy": "#8a6d00",
    "fastdet.numpy": "#0f8fb3",
    "SciPy": "#7a4fb5",
}
OTHERS = ("#b0417f", "#5b6470", "#a3561f")  # other packages of a panel, in turn
COLUMNS = 3
LABEL_GAP = 0.075  # of the panel's height

Lines = dict[str, list[tuple[int, float]]]  # side -> (size, ms)


def panels(result: Result) -> dict[tuple[str, str], Lines]:
    """(title, axis) -> the lines of each side."""
    found: dict[tuple[str, str], Lines] = defaultdict(lambda: defaultdict(list))
    for row in result.rows:
        if row.point and row.threads == result.threads:
            for name, side in row.sides.items():
                found[row.point.panel, row.point.axis][name].append((row.point.x, side.ms))
    return found


def draw(result: Result, path: Path) -> None:
    """Writes the plots."""
    found = panels(result)
    rows = -(-len(found) // COLUMNS)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text, and the file small
        "svg.hashsalt": "fastdet",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, COLUMNS, figsize=(11, 3.1 * rows), squeeze=False)
        for axis in axes.flat[len(found) :]:
            axis.remove()
        for axis, ((title, x_label), lines) in zip(axes.flat, found.items(), strict=False):
            _panel(axis, lines)
            axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
            axis.set_xlabel(x_label)
        for axis in axes[:, 0]:
            axis.set_ylabel("ms")
        figure.tight_layout(w_pad=2.5, h_pad=2)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _colours(lines: Lines) -> dict[str, str]:
    others = itertools.cycle(OTHERS)
    return {name: COLOURS[name] if name in COLOURS else next(others) for name in lines}


def _panel(axis: Axes, lines: Lines) -> None:
    colours = _colours(lines)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for name, points in lines.items():
        axis.plot(
            *zip(*sorted(points), strict=True),
            color=colours[name],
            linewidth=2.2 if name == "fastdet" else 1.5,
            marker="o",
            markersize=4,
        )
    axis.minorticks_off()
    axis.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.grid(color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.42)  # room for the names
    low, high = axis.get_ylim()
    ends = [max(x for x, _ in points) for points in lines.values()]
    early = sum(end < max(ends) for end in ends)
    axis.set_ylim(low, high * (high / low) ** (0.1 + 0.1 * early))
    _name_lines(axis, lines)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 and value % 1000 == 0 else f"{value:,g}"


def _name_lines(axis: Axes, lines: Lines) -> None:
    """Each line's name and last figure at its end, moved up where it would cover another.

    They stand to the right; to the left where the line ends before the panel does, because others
    go on there.
    """
    place = axis.transScale + axis.transLimits
    ends = sorted((max(points) for points in lines.values()), key=lambda end: end[1])
    colours = _colours(lines)
    names = {max(points): name for name, points in lines.items()}
    last = max(x for x, _ in ends)
    free = {True: -1.0, False: -1.0}  # the lowest free height on either side
    for x, ms in ends:
        at_right = x == last
        right, up = place.transform((x, ms))
        height = max(up if at_right else up + 0.03, free[at_right])
        free[at_right] = height + LABEL_GAP
        axis.text(
            right + (0.03 if at_right else -0.03),
            height,
            f"{names[x, ms]} {three_digits(ms)}",
            transform=axis.transAxes,
            color=colours[names[x, ms]],
            horizontalalignment="left" if at_right else "right",
            verticalalignment="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    source, target = (arguments + [CPU_OPS, GROWTH][len(arguments) :])[:2]
    draw(results.read(source), target)
