"""What every kind of figure shares: the interface, curves with intervals, small print."""

from dataclasses import dataclass, field

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import style, summary

DAGGER = "\u2020"


@dataclass
class Drawn:
    """What a figure's draw() leaves for the legend and the small print."""

    entries: list = field(default_factory=list)  # (series, text of the legend)
    handles: dict = field(default_factory=dict)  # series -> handle, where it is not the curve's
    legend_title: str = None
    notes: list = field(default_factory=list)    # small print below the figure


@dataclass
class Context:
    """What figures know beside their view."""

    curves: dict     # series -> style.Curve
    order: list      # of all series
    crossover: object = None  # rows of crossover.csv of this view, or None
    training: object = None   # curves.csv, or None

    def ordered(self, series):
        return sorted(series, key=self.order.index)


def handle(context, series):
    return Line2D([], [], **context.curves[series].line())


def legend_entries(context, drawn):
    return [(drawn.handles.get(series) or handle(context, series), text)
            for series, text in drawn.entries]


def draw_curve(axes, context, series, points, floor=None):
    """Medians with interval bars; one point is drawn as a point. Zeros are drawn at `floor`."""
    value = points["value"].to_numpy(dtype=float)
    low, high = points["low"].to_numpy(dtype=float), points["high"].to_numpy(dtype=float)
    if floor is not None:
        value, low, high = (np.maximum(array, floor) for array in (value, low, high))
    bars = np.vstack([np.maximum(value - low, 0), np.maximum(high - value, 0)])
    axes.errorbar(points["n"], value, yerr=bars, elinewidth=0.7, capsize=1.4, capthick=0.6,
                  zorder=3 if series == summary.BASELINE else 4, **context.curves[series].line())


def without_exact(table, drawn):
    """Leaves out points whose error is rounding only, where there are others: they would take the
    whole axis. (A budget that covers all keys at the shortest lengths.)"""
    inexact = table["value"] > summary.EXACT_BELOW
    if inexact.all() or not inexact.any():
        return table
    note = "not drawn: points that are exact up to rounding"
    if note not in drawn.notes:
        drawn.notes.append(note)
    return table[inexact]


def oracle_handle(context, series):
    """A line over a shade: nothing of this kind can lie below."""
    return (Patch(facecolor=style.ORACLE_SHADE, alpha=0.35, linewidth=0), handle(context, series))


def small_print(view, results, notes):
    """Machine, rounds and what was left out, after the notes of the figure itself."""
    return "\n".join(list(notes) + [summary.provenance(view.rows, view.dropped)])
