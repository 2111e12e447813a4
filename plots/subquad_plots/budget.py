"""Error and time against the budget at one length: what a method gains by spending more keys or
features per query. Curves join the settings of a method whose names differ in numbers only."""

import re

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from . import axes as ax
from . import error, figure, style, summary
from .units import length_text

NAME = "budget"
MIN_BUDGETS = 3
PLAIN = (summary.BASELINE, "dense_naive")  # black and grey everywhere


def curve_name(series, alone):
    """'recover 16' -> 'recover'; a curve of one setting keeps its name."""
    if alone:
        return series
    name = re.sub(r"[=\s_-]*\d+(\.\d+)?", "", series)
    return re.sub(r"\s+", " ", name).strip(" ,;:-_") or series


def common_length(view):
    """The largest n at which most series were measured."""
    counts = view.rows.groupby("n")["series"].nunique()
    return counts[counts == counts.max()].index.max()


def points_of(view):
    """curve, series, budget and the medians of error and time at the common length."""
    rows = view.rows[view.rows["n"] == common_length(view)]
    errors = summary.medians(rows, "rel_error").set_index("series")
    times = summary.medians(rows, "time_s", "time_q25_s", "time_q75_s").set_index("series")
    budgets = rows.groupby("series")["keys_per_query"].max()
    stems = {one: re.sub(r"\d+(\.\d+)?", "#", one) for one in rows["series"].unique()}
    sizes = pd.Series(stems).value_counts()
    table = pd.DataFrame({"series": list(stems)})
    table["curve"] = [curve_name(one, sizes[stems[one]] == 1) for one in stems]
    for column, source in (("budget", budgets), ("error", errors["value"]),
                           ("error_low", errors["low"]), ("error_high", errors["high"]),
                           ("time", times["value"]), ("time_low", times["low"]),
                           ("time_high", times["high"])):
        table[column] = table["series"].map(source)
    return table.sort_values("budget")


def drawable(view):
    """The curves with several budgets."""
    points = points_of(view).dropna(subset=["budget", "error"])
    counts = points.groupby("curve")["budget"].nunique()
    return set(counts[counts >= MIN_BUDGETS].index)


def applies(view):
    return view.pass_name != "train" and bool(drawable(view))


def panels(view):
    return 2


def caption(view):
    return (f"Error of the {error.what(view)} and time per call against the budget at n = "
            f"{length_text(common_length(view))}, {view.title}: keys, features or columns of the "
            "attention matrix that a query meets. Methods without such a parameter are horizontal "
            "lines. Medians over rounds and seeds; bars from smallest to largest.")


def looks(points, view, context):
    """curve -> style.Curve, one colour each, in the order of the series."""
    rows = view.rows.drop_duplicates("series").set_index("series")
    first = points.sort_values("series", key=lambda column: column.map(context.order.index))
    made = pd.DataFrame({
        "series": first["curve"].to_numpy(),
        "method": [rows.loc[series, "method"] if rows.loc[series, "method"] in PLAIN else one
                   for one, series in zip(first["curve"], first["series"])],
        "oracle": [rows.loc[series, "oracle"] for series in first["series"]]})
    order = list(dict.fromkeys(made["series"]))
    return order, style.assign(made, order)


def draw_panel(axes, points, what, order, curves, wide, floor):
    for curve in order:
        part = points[(points["curve"] == curve) & points[what].notna()]
        if part.empty:
            continue
        line = curves[curve].line()
        value, low, high = (np.maximum(part[name].to_numpy(dtype=float), floor)
                            for name in (what, f"{what}_low", f"{what}_high"))
        if curve not in wide:
            axes.axhline(np.median(value), color=line["color"], linestyle=line["linestyle"],
                         linewidth=1.0, zorder=2)
            continue
        axes.errorbar(part["budget"], value, yerr=[value - low, high - value], elinewidth=0.6,
                      capsize=1.2, capthick=0.5, zorder=4, **line)


def draw(axes_list, view, context):
    drawn, wide = figure.Drawn(), drawable(view)
    points = points_of(view)
    order, curves = looks(points, view, context)
    inexact = points["error"] > summary.EXACT_BELOW
    judged = points[inexact]
    if (~inexact & points["curve"].isin(wide)).any():
        drawn.notes.append("errors: points that are exact up to rounding are not drawn")
    floor = summary.positive_floor(judged["error"], 1e-8)
    for axes, what, part in ((axes_list[0], "error", judged), (axes_list[1], "time", points)):
        ax.length_axis(axes, points.loc[points["curve"].isin(wide), "budget"])
        ax.log_y(axes, np.concatenate([part[f"{what}_low"], part[f"{what}_high"]]),
                 "error" if what == "error" else "time", share=0.08, least=1.3)
        draw_panel(axes, part, what, order, curves, wide, floor if what == "error" else 0)
        axes.set_xlabel("keys, features or columns per query")
    axes_list[0].set_ylabel(f"relative error of the {error.what(view)}")
    axes_list[1].set_ylabel("time per call")
    for curve in order:
        series = points.loc[points["curve"] == curve, "series"].iloc[0]
        name = error.name_with_mark(view, series).replace(series, curve)
        if series in summary.of_kind(view.rows, "oracle", 1):
            name += " (oracle)"
        line = curves[curve].line()
        if curve not in wide:
            line["marker"] = ""
        drawn.handles[curve] = Line2D([], [], **line)
        drawn.entries.append((curve, name))
    for axes in axes_list:
        axes.set_title(f"n = {length_text(common_length(view))}")
    drawn.notes += error.mark_notes(view, list(points["series"]))
    return drawn
