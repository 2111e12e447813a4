"""Share of the machine's limit against n: of the multiply-add peak, or of the memory's bandwidth
when decoding."""

from . import axes as ax
from . import figure, summary

NAME = "peak"


def column_of(view):
    return "fraction_of_bandwidth" if view.pass_name == "decode" else "fraction_of_peak"


def limit(view):
    return "memory bandwidth" if view.pass_name == "decode" else "multiply-add peak"


def applies(view):
    return view.rows[column_of(view)].notna().any()


def caption(view):
    above = ("above 1 the state is served by a cache" if view.pass_name == "decode" else
             "only operations that the method declares useful are counted")
    return (f"Share of the {limit(view)} against sequence length, {view.title}; the limit is "
            f"measured in the same run, and {above}. Medians over rounds; bars from smallest to "
            "largest.")


def draw(axes, view, context, details=True):
    drawn = figure.Drawn()
    table = summary.medians(view.rows, column_of(view))
    ax.length_axis(axes, table["n"])
    for series in context.ordered(table["series"].unique()):
        figure.draw_curve(axes, context, series, table[table["series"] == series])
        drawn.entries.append((series, series))
    axes.set_ylim(0, max(1, 1.05 * table["high"].max()))
    axes.axhline(1, color="black", linewidth=0.9, zorder=2)
    axes.set_ylabel(f"share of the {limit(view)}")
    return drawn
