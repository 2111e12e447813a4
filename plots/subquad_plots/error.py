"""Error of the output against exact attention, against n. Oracles bound attention matrices, not
outputs: here they are lines without a shade (see matrix_error.py)."""

import numpy as np

from . import axes as ax
from . import figure, summary

NAME = "error"


def applies(view):
    return view.rows["rel_error"].notna().any()


def caption(view):
    return (f"Relative Frobenius error of the {what(view)} against exact softmax attention, "
            f"{view.title}. Medians over rounds; bars from smallest to largest. Oracles (hollow) see "
            "the exact attention matrix; what they bound is the matrix, not this error. Methods that "
            f"are exact up to rounding are named, not drawn. {figure.DAGGER}: computes another "
            "function of its own; its error describes it and does not judge it.")


def what(view):
    kinds = {kind for kind in view.rows["error_of"].unique() if kind}
    return "gradient" if kinds == {"gradient"} else "output"


def name_with_mark(view, series):
    """Methods with a kernel of their own do not try to reproduce softmax."""
    if series in summary.of_kind(view.rows, "approximates", "own_kernel"):
        return series + figure.DAGGER
    if series in summary.of_kind(view.rows, "approximates", "nothing"):
        return f"{series} (control)"
    return series


def mark_notes(view, series):
    if any(name_with_mark(view, one).endswith(figure.DAGGER) for one in series):
        return [f"{figure.DAGGER} computes its own kernel, does not approximate softmax"]
    return []


def draw(axes, view, context, details=True):
    drawn = figure.Drawn()
    table = summary.medians(view.rows, "rel_error")
    exact = summary.is_exact(view.rows)
    shown = [one for one in context.ordered(table["series"].unique()) if one not in exact]
    if not shown:  # nothing but rounding errors: draw those
        shown, exact = context.ordered(exact), set()
    table = table[table["series"].isin(shown)]
    ax.length_axis(axes, view.rows["n"])
    table = figure.without_exact(table, drawn)
    floor = summary.positive_floor(table["value"], 1e-8)
    values = np.maximum(np.concatenate([table["low"], table["high"]]), floor)
    ax.log_y(axes, values, "error", share=0.1)
    oracles = summary.of_kind(view.rows, "oracle", 1)
    for series in shown:
        points = table[table["series"] == series]
        name = name_with_mark(view, series)
        if series in oracles:
            name += " (oracle)"
        figure.draw_curve(axes, context, series, points, floor)
        drawn.entries.append((series, name))
    if exact:
        drawn.notes.append("exact up to rounding: " + ", ".join(context.ordered(exact)))
    drawn.notes += mark_notes(view, shown)
    axes.set_ylabel(f"relative error of the {what(view)}")
    return drawn
