"""Error of the attention matrix against the budget at one length, a panel for each oracle: below
its curve lies what no method that it bounds can reach."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import axes as ax
from . import bounds, error, figure, style, summary
from .units import length_text

NAME = "bound"


def common_length(bound):
    """The largest n at which most series were measured."""
    counts = bound.rows.groupby("n")["series"].nunique()
    return counts[counts == counts.max()].index.max()


def points_of(bound):
    """method, series, budget, value, low, high at the common length."""
    table = bounds.medians(bound)
    table = table[table["n"] == common_length(bound)].copy()
    methods = bound.rows.drop_duplicates("series").set_index("series")["method"]
    at_n = bound.rows[bound.rows["n"] == common_length(bound)]
    budgets = at_n.groupby("series")["keys_per_query"].max()
    table["method"] = table["series"].map(methods)
    table["budget"] = table["series"].map(budgets)
    return table.sort_values(["budget", "value"])


def drawable(view):
    """Bounds with several budgets of the oracle."""
    found = [(bound, points_of(bound)) for bound in bounds.find(view)]
    return [(bound, points) for bound, points in found
            if points.loc[points["method"] == bound.oracle, "budget"].nunique() > 1
            and (points["method"] != bound.oracle).any()]


def applies(view):
    return bool(drawable(view))


def panels(view):
    return len(drawable(view))


def caption(view):
    parts = [f"{bounds.WHAT[bound.column]} at n = {length_text(common_length(bound))}, bounded by "
             f"{bound.oracle}" for bound, _ in drawable(view)]
    return (f"Distance from the exact attention matrix against the budget, {view.title}: "
            f"{'; '.join(parts)}. Budget: keys that a query attends to, or features (rows of the "
            "state) that it meets. Shaded: what no method that the oracle bounds can reach; between "
            "two budgets of the oracle the error at the larger one counts.")


def first_series(context, view, method):
    """Whose look the curve has that joins the settings of a method."""
    return context.ordered(view.rows.loc[view.rows["method"] == method, "series"].unique())[0]


def draw(axes_list, view, context):
    drawn, seen = figure.Drawn(), {}
    for axes, (bound, points) in zip(axes_list, drawable(view)):
        ax.length_axis(axes, points["budget"])
        points = figure.without_exact(points, drawn)
        floor = summary.positive_floor(points["value"], 1e-8)
        values = np.maximum(np.concatenate([points["low"], points["high"]]), floor)
        ax.log_y(axes, values, "error", share=0.1, least=1.35)
        own = points[points["method"] == bound.oracle]
        edge = np.concatenate([[axes.get_xlim()[0]], own["budget"]])
        height = np.maximum(np.concatenate([own["value"][:1], own["value"]]), floor)
        axes.fill_between(edge, height, axes.get_ylim()[0], step="pre", alpha=0.35, linewidth=0,
                          color=style.ORACLE_SHADE, zorder=1)
        for method in points["method"].unique():
            part = points[points["method"] == method]
            series = first_series(context, view, method)
            line = context.curves[series].line()
            axes.plot(part["budget"], np.maximum(part["value"], floor),
                      zorder=3 if method == bound.oracle else 4, **line)
            text = error.name_with_mark(view, series).replace(series, method)
            handle = Line2D([], [], **line)
            if method == bound.oracle:
                text += " (bound)"
                handle = (Patch(facecolor=style.ORACLE_SHADE, alpha=0.35, linewidth=0), handle)
            drawn.handles[series] = handle
            seen[series] = text
        axes.set_xlabel("keys or features per query")
        axes.set_ylabel(bounds.LABELS[bound.column])
        axes.set_title(f"bounded by {bound.oracle}, n = {length_text(common_length(bound))}")
    drawn.entries = [(series, seen[series]) for series in context.ordered(seen)]
    drawn.notes += error.mark_notes(view, seen)
    return drawn
