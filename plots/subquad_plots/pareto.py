"""Error against time at one length: what a method costs and what it gives, and the front of those
that no other beats in both."""

import numpy as np

from . import axes as ax
from . import error as err
from . import figure, style, summary
from .units import length_text

NAME = "pareto"
MIN_SERIES = 2


def points_of(view):
    """One row per series and n that has both a time and an error."""
    rows = view.rows[(view.rows["time_s"] > 0) & view.rows["rel_error"].notna()]
    times = summary.medians(rows, "time_s", "time_q25_s", "time_q75_s")
    errors = summary.medians(rows, "rel_error")
    return times.merge(errors, on=["series", "n"], suffixes=("_time", "_error"))


def common_length(points):
    """The largest n that every series has, else the largest that most have."""
    counts = points.groupby("n")["series"].nunique()
    return counts[counts == counts.max()].index.max()


def applies(view):
    return points_of(view)["series"].nunique() >= MIN_SERIES


def caption(view):
    return (f"Error against time at n = {length_text(common_length(points_of(view)))}, the largest "
            f"length that all methods share, {view.title}. Lower left is better; the stepped line "
            "joins the methods that no other beats in both. Exact methods stand as vertical lines, "
            "since to the right of them an approximation is pointless; oracles as horizontal lines, "
            "whatever they cost.")


def front(times, errors):
    """Indices of the points that no other beats in both, fastest first. Of equals the first."""
    best, kept = np.inf, []
    for i in sorted(range(len(times)), key=lambda i: (times[i], errors[i])):
        if errors[i] < best:
            best = errors[i]
            kept.append(i)
    return kept


def draw_front(axes, times, errors, exact_time):
    """Steps through the front; down to zero error at the fastest exact method."""
    order = [i for i in front(times, errors) if not (exact_time and times[i] >= exact_time)]
    if not order:
        return
    top, bottom = axes.get_ylim()[1], axes.get_ylim()[0]
    x, y = [times[order[0]]], [top]
    for here, after in zip(order, order[1:] + [None]):
        end = times[after] if after is not None else exact_time or axes.get_xlim()[1]
        x += [times[here], end]
        y += [errors[here], errors[here]]
    if exact_time:
        x.append(exact_time)
        y.append(bottom)
    axes.plot(x, y, color="#606060", linewidth=0.9, linestyle="-", zorder=2)


def draw(axes, view, context, details=True):
    drawn = figure.Drawn()
    points = points_of(view)
    n = common_length(points)
    points = points[points["n"] == n]
    oracle_rows = points["series"].isin(summary.of_kind(view.rows, "oracle", 1))
    inexact = points["value_error"] > summary.EXACT_BELOW
    if (oracle_rows & inexact).any() or (~oracle_rows).any():
        points = points[~oracle_rows | inexact]  # an oracle that is exact at this length says nothing
    present = context.ordered(points["series"].unique())
    points = points.set_index("series").loc[present]
    exact = [one for one in present if one in summary.is_exact(view.rows)]
    if len(exact) == len(present):
        exact = []  # only rounding errors to compare: draw them as points
    oracles = [one for one in present if one in summary.of_kind(view.rows, "oracle", 1)]
    rivals = [one for one in present if one not in exact and one not in oracles]
    floor = summary.positive_floor(points.loc[rivals + oracles, "value_error"], 1e-8)
    errors = points["value_error"].clip(lower=floor)
    inside = rivals + [one for one in present if one in exact]
    ax.log_x(axes, list(points.loc[inside or present, "low_time"])
             + list(points.loc[inside or present, "high_time"]), "time", share=0.1, least=1.4)
    ax.log_y(axes, list(errors[rivals + oracles]), "error", share=0.12, least=1.5)

    for series in oracles:
        axes.axhline(errors[series], color=context.curves[series].color, linewidth=0.9,
                     linestyle=context.curves[series].dashes, zorder=2)
    for series in exact:
        axes.axvline(points.loc[series, "value_time"], color=context.curves[series].color,
                     linewidth=1.0, linestyle=context.curves[series].dashes, zorder=2)
    exact_time = min((points.loc[one, "value_time"] for one in exact), default=None)
    draw_front(axes, list(points.loc[rivals, "value_time"]), list(errors[rivals]), exact_time)
    for series in rivals:
        row, curve = points.loc[series], context.curves[series]
        axes.errorbar(
            [row["value_time"]], [errors[series]],
            xerr=[[max(0, row["value_time"] - row["low_time"])],
                  [max(0, row["high_time"] - row["value_time"])]],
            yerr=[[max(0, errors[series] - max(row["low_error"], floor))],
                  [max(0, row["high_error"] - errors[series])]],
            elinewidth=0.7, capsize=1.4, capthick=0.6, zorder=5,
            **{**curve.line(), "linestyle": "none", "markersize": 5})
    add_legend(drawn, view, context, present, exact, oracles)
    axes.set_xlabel(f"{figure_time_label(view)} at n = {length_text(n)}")
    axes.set_ylabel(f"relative error of the {err.what(view)}")
    drawn.notes += err.mark_notes(view, rivals)
    return drawn


def figure_time_label(view):
    return "time per token" if view.pass_name == "decode" else "time per call"


def add_legend(drawn, view, context, present, exact, oracles):
    from matplotlib.lines import Line2D
    for series in present:
        curve, name = context.curves[series], err.name_with_mark(view, series)
        if series in exact:
            drawn.handles[series] = Line2D([], [], color=curve.color, linestyle=curve.dashes,
                                           linewidth=1.0)
            name += " (exact)"
        elif series in oracles:
            drawn.handles[series] = Line2D([], [], color=curve.color, linestyle=curve.dashes,
                                           linewidth=0.9)
            name += " (oracle)"
        else:
            drawn.handles[series] = Line2D([], [], **{**curve.line(), "linestyle": "none"})
        drawn.entries.append((series, name))
