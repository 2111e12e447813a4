"""Speed-up over dense against n, with the crossover marked."""

import numpy as np
import pandas as pd

from . import axes as ax
from . import crossover as cross
from . import figure, summary

NAME = "speedup"


def applies(view):
    rows = view.rows[view.rows["time_s"] > 0]
    baseline = summary.baseline_series(rows, None)
    return baseline is not None and len(summary.ratios(rows, "time_s", baseline)) > 0


def caption(view):
    return (f"Speed-up over dense against sequence length, {view.title}: ratio of times within "
            "one round, median over rounds; bars from the smallest to the largest round. Large "
            "markers on the line at 1: the length from which the method is faster for good, with "
            "its 95 % bootstrap interval (crossover.csv), also given in the legend.")


def mark_crossover(axes, context, series, found, limits):
    """The crossover on the line at 1, with its interval cut off at the edges of the axes."""
    if found.outcome != "crossover":
        return
    color = context.curves[series].color
    if found.low == found.low:
        low, high = max(found.low, limits[0]), min(found.high, limits[1])
        axes.plot([low, high], [1, 1], color=color, linewidth=2.6, alpha=0.45, zorder=5,
                  solid_capstyle="butt")
    axes.plot([found.n], [1], marker=context.curves[series].marker, markersize=6, color=color,
              markerfacecolor="white", markeredgewidth=1.2, linestyle="none", zorder=6)


def draw(axes, view, context, details=True):
    drawn = figure.Drawn()
    rows = view.rows[view.rows["time_s"] > 0]
    baseline = summary.baseline_series(rows, context.order)
    pairs = summary.ratios(rows, "time_s", baseline)
    table = summary.medians(pairs, "ratio")
    crossovers = cross.of_view(context.crossover, view, "time") if details else {}
    ax.length_axis(axes, pd.concat([table["n"], rows["n"]]))
    ax.log_y(axes, list(table["low"]) + list(table["high"]) + [0.85, 1.18], "factor")
    axes.axhline(1, color="black", linewidth=0.9, zorder=2)
    for series in context.ordered(table["series"].unique()):
        figure.draw_curve(axes, context, series, table[table["series"] == series])
        found = crossovers.get(series)
        label = series
        if found is not None:
            mark_crossover(axes, context, series, found, axes.get_xlim())
            label = f"{series}  {cross.text(found)}"
        drawn.entries.append((series, label))
    if crossovers:
        drawn.legend_title = f"faster than {baseline} from n (95 % interval)"
    elif details and context.crossover is None:
        drawn.notes.append("no crossover lengths: `subquad plot` computes them")
    if not details or np.isfinite(table["value"]).any():
        axes.set_ylabel(f"speed-up over {baseline}")
    return drawn
