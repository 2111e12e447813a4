"""Error of the attention matrix against n at one budget, a panel for each oracle: what no method
that the oracle bounds can reach at that budget is shaded."""

import numpy as np

from . import axes as ax
from . import bounds, error, figure, style, summary

NAME = "matrix_error"


def drawable(view):
    """Bounds with something beside the oracle at its budget."""
    found = [(bound, *bounds.one_budget(bound)) for bound in bounds.find(view)]
    return [item for item in found if item[3]]


def applies(view):
    return bool(drawable(view))


def panels(view):
    return len(drawable(view))


def caption(view):
    parts = [f"{bounds.WHAT[bound.column]}, bounded by {bound.oracle} at {limit:g} keys or features "
             "per query" for bound, limit, _, _ in drawable(view)]
    return (f"Distance from the exact attention matrix, {view.title}: {'; '.join(parts)}. Shaded: "
            "what no method that the oracle bounds can reach with this budget. Of every method the "
            "largest budget up to it is drawn.")


def draw(axes_list, view, context):
    drawn, seen = figure.Drawn(), {}
    for axes, (bound, limit, oracle, others) in zip(axes_list, drawable(view)):
        table = bounds.medians(bound)
        table = table[table["series"].isin(others + [oracle])]
        ax.length_axis(axes, table["n"])
        table = figure.without_exact(table, drawn)
        floor = summary.positive_floor(table["value"], 1e-8)
        ax.log_y(axes, np.maximum(np.concatenate([table["low"], table["high"]]), floor), "error",
                 share=0.1, least=1.35)
        own = table[table["series"] == oracle]
        axes.fill_between(own["n"], np.maximum(own["value"], floor), axes.get_ylim()[0],
                          color=style.ORACLE_SHADE, alpha=0.35, linewidth=0, zorder=1)
        for series in context.ordered(others + [oracle]):
            figure.draw_curve(axes, context, series, table[table["series"] == series], floor)
            name = error.name_with_mark(view, series)
            if series == oracle:
                name += " (bound)"
                drawn.handles[series] = figure.oracle_handle(context, series)
            if series == oracle or series not in seen:
                seen[series] = name
        axes.set_ylabel(bounds.LABELS[bound.column])
        axes.set_title(f"bounded by {bound.oracle}, {limit:g} per query")
    drawn.entries = [(series, seen[series]) for series in context.ordered(seen)]
    drawn.notes += error.mark_notes(view, seen)
    return drawn
