# SPDX-License-Identifier: BSD-3-Clause
"""Precision-recall curves as a matplotlib Figure.

The figure does not use pyplot, so it needs no display, no global state and no close. Save it with
`figure.savefig(path)`.
"""

from matplotlib import colormaps
from matplotlib.figure import Figure

from fastdet.evaluation.coco_metrics import CocoMetrics

# More colours than this cannot be distinguished, and the legend would be too long.
MAX_NAMED = 20


def pr_figure(metrics: CocoMetrics, title: str = "Precision and recall at IoU 0.5") -> Figure:
    """Plots one curve for each class that has objects; the best class is first in the legend.

    With more than `MAX_NAMED` classes the curves are thin and have no names, and their mean is
    drawn.
    """
    figure = Figure(figsize=(7.5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    ap50 = {row.name: row.AP50 for row in metrics.per_class}
    curves = sorted(metrics.pr_curves.items(), key=lambda item: -ap50[item[0]])
    if len(curves) > MAX_NAMED:
        for _, (recall, precision) in curves:
            axes.plot(recall, precision, color="tab:blue", alpha=0.15, linewidth=1)
        mean = sum(precision for _, (_, precision) in curves) / len(curves)
        label = f"mean of {len(curves)} classes  {metrics.stats['AP50']:.3f}"
        axes.plot(curves[0][1][0], mean, color="black", linewidth=2, label=label)
    else:
        # Colours depend on the order of the classes, so they are the same in the plots of two runs.
        palette = colormaps["tab10" if len(metrics.per_class) <= 10 else "tab20"]
        colour = {row.name: palette(k % palette.N) for k, row in enumerate(metrics.per_class)}
        for name, (recall, precision) in curves:
            label = f"{name}  {ap50[name]:.3f}"
            axes.plot(recall, precision, color=colour[name], linewidth=1.8, label=label)
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        figure.legend(loc="outside right upper", title="class  AP50", frameon=False, fontsize=9)
    return figure
