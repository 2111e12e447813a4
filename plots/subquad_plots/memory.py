"""Peak memory of a pass against n; what the method says it should be as a thin dashed line."""

import numpy as np

from . import axes as ax
from . import figure, summary

NAME = "memory"


def column_of(view):
    """decode: cache policies are about the cache."""
    if view.pass_name == "decode" and view.rows["kv_bytes"].notna().any():
        return "kv_bytes"
    return "peak_bytes"


def applies(view):
    return view.rows[column_of(view)].notna().any()


def caption(view):
    what = ("Peak bytes of keys and values or state" if column_of(view) == "kv_bytes" else
            "Peak allocation of preparation and pass beyond inputs and outputs")
    dashed = "" if column_of(view) == "kv_bytes" else (
        " Thin dashed: what the method declares analytically.")
    return f"{what} against sequence length, {view.title}. Medians over rounds.{dashed}"


def draw(axes, view, context, details=True):
    drawn = figure.Drawn()
    column = column_of(view)
    table = summary.medians(view.rows, column)
    claimed = summary.medians(view.rows, "analytic_bytes")
    if column == "kv_bytes" or not details:
        claimed = claimed[:0]
    claimed = claimed[claimed["value"] > 0]
    everything = np.concatenate([table["value"], claimed["value"]])
    floor = summary.positive_floor(everything, 1.0)
    if (table["value"] <= 0).any():
        drawn.notes.append("0 bytes are drawn at the lower edge")
    for series in context.ordered(table["series"].unique()):
        figure.draw_curve(axes, context, series, table[table["series"] == series], floor)
        analytic = claimed[claimed["series"] == series]
        axes.plot(analytic["n"], analytic["value"], color=context.curves[series].color,
                  linewidth=0.6, linestyle=(0, (4, 3)), zorder=2)
        drawn.entries.append((series, series))
    if len(claimed):
        drawn.notes.append("thin dashed: declared by the method")
    ax.length_axis(axes, table["n"])
    ax.log_y(axes, np.maximum(everything, floor), "bytes")
    axes.set_ylabel("cache" if column == "kv_bytes" else "peak memory")
    return drawn
