"""Learning curves: quality on the validation split against training steps."""

import numpy as np

from . import figure, training

NAME = "curves"
MOST_SHADED = 5  # curves; more shadings than that hide each other
LABEL = {"validation_accuracy": "accuracy on the validation split",
         "validation_loss": "loss on the validation split"}


def column_of(view):
    return ("validation_accuracy" if training.main_quality(view.rows) == "accuracy"
            else "validation_loss")


def applies(view):
    return (view.pass_name == "train" and training.main_quality(view.rows) is not None
            and view.rows["n"].nunique() == 1)


def caption(view):
    return (f"Learning curves, {view.title}: {LABEL[column_of(view)]} against training steps, means "
            "over seeds, shaded from the lowest to the highest where there are few. Of each method the "
            "training parameters that were best at the end.")


def draw(axes, view, context):
    drawn = figure.Drawn()
    _, rows, notes = training.shown(view)
    column = column_of(view)
    curves = context.training
    if curves is None:
        drawn.notes.append("no curves.csv beside the results")
        return drawn
    last = curves.drop_duplicates(["cell_id", "round", "step"], keep="last")
    both = last.merge(rows[["cell_id", "round", "series", "seed"]], on=["cell_id", "round"])
    shaded = both["series"].nunique() <= MOST_SHADED
    for series in context.ordered(both["series"].unique()):
        steps = both[both["series"] == series].groupby("step")[column].agg(["mean", "min", "max"])
        curve = context.curves[series]
        if shaded:
            axes.fill_between(steps.index, steps["min"], steps["max"], color=curve.color,
                              alpha=0.18, linewidth=0)
        axes.plot(steps.index, steps["mean"],
                  markevery=max(1, len(steps) // 8), **curve.line())
        drawn.entries.append((series, series))
    if column == "validation_accuracy":
        axes.set_ylim(0, 1.03)
        floors = training.floors(rows, "accuracy")
        for value in floors.values():
            axes.axhline(value, color="#777777", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for name, value in training.floor_lines(floors, 1, room=0.04):  # the height of a text
            below = value > 0.08  # models lie on a floor or above it: the name leaves them that room
            axes.annotate(name, (1, value), xycoords=("axes fraction", "data"),
                          xytext=(-2, -2 if below else 2), textcoords="offset points", ha="right",
                          va="top" if below else "bottom", fontsize=5.5, color="#555555",
                          zorder=1.5, bbox=training.NAME_BOX)
    elif len(both):
        low, high = np.nanmin(both[column]), np.nanquantile(both[column], 0.98)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)
    axes.set_xlim(left=0)
    axes.set_xlabel("training steps")
    axes.set_ylabel(LABEL[column])
    drawn.notes += notes
    return drawn
