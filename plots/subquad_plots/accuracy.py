"""Quality of trained models on the test split, against n or, at one length, by method."""

import math

from . import axes as ax
from . import figure, training

NAME = "accuracy"
LABEL = {"accuracy": "accuracy on the test split", "bits": "bits per symbol on the test split",
         "loss": "loss on the test split"}
FLOOR_STYLE = {"color": "#777777", "linewidth": 0.8, "linestyle": (0, (2, 2)), "zorder": 1}


def applies(view):
    return view.pass_name == "train" and training.main_quality(view.rows) is not None


def caption(view):
    quality = training.main_quality(view.rows)
    return (f"{LABEL[quality].capitalize()}, {view.title}: means over seeds, bars from the lowest "
            "to the highest. Of each method the training parameters that were best on the "
            "validation split. Dashed: floors that need no attention, computed by the task.")


def draw(axes, view, context):
    drawn = figure.Drawn()
    quality, rows, notes = training.shown(view)
    table = training.points(rows, quality)
    floors = training.floors(rows, quality)
    if table["n"].nunique() > 1:
        against_length(axes, context, table, rows, quality, drawn)
    else:
        by_method(axes, context, table, floors, quality, drawn)
    drawn.notes += notes
    return drawn


def against_length(axes, context, table, rows, quality, drawn):
    ax.length_axis(axes, table["n"])
    for series in context.ordered(table["series"].unique()):
        figure.draw_curve(axes, context, series, table[table["series"] == series])
        drawn.entries.append((series, series))
    by_length = {n: training.floors(part, quality) for n, part in rows.groupby("n")}
    ends = {}
    for name in sorted({name for found in by_length.values() for name in found}):
        lengths = sorted(n for n, found in by_length.items() if name in found)
        values = [by_length[n][name] for n in lengths]
        axes.plot(lengths, values, **FLOOR_STYLE)
        ends.setdefault(lengths[-1], {})[name] = values[-1]
    span = 1 if quality == "accuracy" else table["high"].max()
    for n, found in ends.items():
        for names, value in training.floor_lines(found, span, room=0.04):  # the height of a text
            axes.annotate(names, (n, value), xytext=(0, 2), textcoords="offset points",
                          ha="right", va="bottom", fontsize=5.5, color="#555555")
    axes.set_ylabel(LABEL[quality])
    if quality == "accuracy":
        axes.set_ylim(0, 1.03)
    else:
        axes.set_ylim(bottom=0)


MOST_BESIDE_NAMES = 8  # methods, before the floors' names would stand on their numbers


# Of a figure one column wide, a panel of 1.75 inches: what texts take, in inches, or as shares of
# the axis up to `top`.
LETTER, PANEL = 0.042, 1.75
NAME_WIDTH, NUMBER = 0.035, 0.15


def free_side(name, value, points, top):
    """Which edge of a floor's name touches its line ("left": it stands to the right of it), so that
    it covers neither markers nor numbers of the methods beside it, the last one first; or None."""
    rows = math.ceil(len(name) * LETTER / (PANEL / (len(points) + 0.2)) + 0.15)

    def free(low, high):
        taken = [(point["low"] - 0.02 * top, point["high"] + NUMBER * top)
                 for point in points[:rows]]
        return all(high <= start or low >= end for start, end in taken)

    if free(value, value + NAME_WIDTH * top):
        return "left"
    if value > 0.1 * top and free(value - NAME_WIDTH * top, value):  # not over the axis
        return "right"
    return None


def by_method(axes, context, table, floors, quality, drawn):
    """One line per method, its number at the point; floors as vertical lines, named beside them or,
    where methods leave no room, below the figure."""
    order = context.ordered(table["series"].unique())
    top = 1.0 if quality == "accuracy" else 1.12 * max(list(table["high"]) + list(floors.values()))
    for place, series in enumerate(order):
        point = table[table["series"] == series].iloc[0]
        curve = dict(context.curves[series].line(), linestyle="none", markersize=5)
        axes.plot([0, point["value"]], [place] * 2, color=curve["color"], linewidth=2.2, alpha=0.35,
                  solid_capstyle="butt", zorder=2)
        axes.errorbar([point["value"]], [place],
                      xerr=[[point["value"] - point["low"]], [point["high"] - point["value"]]],
                      elinewidth=0.8, capsize=1.8, zorder=3, **curve)
        # Above the floors' names, which stand beside their lines.
        axes.annotate(f"{point['value']:.3f}", (point["high"], place), xytext=(6, 0),
                      textcoords="offset points", va="center", ha="left", fontsize=6, zorder=5,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    for value in floors.values():
        axes.axvline(value, **FLOOR_STYLE)
    below = []  # names that have no room beside their lines
    if len(order) > MOST_BESIDE_NAMES:
        below = sorted(floors.items(), key=lambda f: f[1])
    else:
        for name, value in training.floor_lines(floors, top):
            side = free_side(name, value, [table[table["series"] == series].iloc[0]
                                           for series in reversed(order)], top)
            if side is None:
                below.append((name, value))
                continue
            axes.annotate(name, (value, len(order) - 0.45), xytext=(2 if side == "left" else -2, 0),
                          textcoords="offset points", rotation=90, va="bottom", ha=side,
                          fontsize=5.5, color="#555555", zorder=2.5, bbox=training.NAME_BOX)
    if below:
        drawn.notes.append("dashed: " + ", ".join(f"{name} {value:.3f}" for name, value in below))
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, top * 1.12)  # room for the numbers
    axes.grid(False, axis="y")
    axes.set_xlabel(LABEL[quality])
