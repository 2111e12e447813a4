"""Time per call against n, with the fitted exponent of every method."""

from . import axes as ax
from . import figure, fit, summary

NAME = "time"
Y_LABEL = {"forward_backward": "time per call", "decode": "time per token",
           "train": "time per step", "fit": "time"}


def applies(view):
    return view.pass_name != "decode" and (view.rows["time_s"] > 0).any()


def caption(view):
    return (f"Time against sequence length, {view.title}. Medians over rounds; bars from the "
            "lowest lower quartile to the highest upper quartile of a round. The legend gives the "
            f"exponent of n with its interval: {fit.RULE}.")


def draw(axes, view, context, exponents=True):
    drawn = figure.Drawn(legend_title="exponent of n, 95 % interval" if exponents else None)
    rows = view.rows[view.rows["time_s"] > 0]
    table = summary.medians(rows, "time_s", "time_q25_s", "time_q75_s")
    for series in context.ordered(table["series"].unique()):
        points = table[table["series"] == series]
        figure.draw_curve(axes, context, series, points)
        slope = fit.exponent_text(points["n"], points["value"]) if exponents else ""
        drawn.entries.append((series, f"{series}  {slope}" if slope else series))
    ax.length_axis(axes, table["n"])
    ax.log_y(axes, list(table["low"]) + list(table["high"]), "time")
    axes.set_ylabel(Y_LABEL.get(view.pass_name, "time per call"))
    return drawn
