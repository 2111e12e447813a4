"""One figure over both columns: time, speed-up, memory and error of one view; of trained models
their quality and learning curves, and against the length time and memory."""

from . import accuracy, curves, error, figure, memory, speedup, summary, time

NAME = "overview"
PANELS = [(time, "time"), (speedup, "speed-up"), (memory, "memory"), (error, "error")]


def panels(view):
    """[(kind of figure, title, draw)], row by row, two in a row."""
    def brief(kind):
        return lambda axes, context: kind.draw(axes, view, context, False)

    def whole(kind):
        return lambda axes, context: kind.draw(axes, view, context)

    if not accuracy.applies(view):
        return [(kind, title, brief(kind)) for kind, title in PANELS]
    if curves.applies(view):  # one length: a point each for time and memory would say little
        return [(accuracy, "quality", whole(accuracy)), (curves, "learning", whole(curves))]
    return [(accuracy, "quality", whole(accuracy)), (time, "time", brief(time)),
            (speedup, "speed-up", brief(speedup)), (memory, "memory", brief(memory))]


def choose(views):
    """The forward view with most methods, then most rows: the one to show first; or None."""
    candidates = [view for view in views
                  if view.pass_name != "decode" and any(p.applies(view) for p, _, _ in panels(view))]
    return max(candidates, default=None, key=lambda view: (
        sum(panel.applies(view) for panel, _, _ in panels(view)), view.pass_name == "forward",
        view.rows["series"].nunique(), len(view.rows)))


def caption(view):
    if not accuracy.applies(view):
        return (f"Overview, {view.title}: time per call, speed-up over dense, peak memory and error "
                "against exact attention. Medians over rounds.")
    if curves.applies(view):
        return f"Overview, {view.title}: quality on the test split and learning curves."
    return (f"Overview, {view.title}: quality on the test split, time per step, speed-up over dense "
            "and peak memory.")


def draw(axes_list, view, context):
    """Draws the panels; a panel without data says so. One legend serves all."""
    drawn, seen = figure.Drawn(), {}
    for axes, (kind, title, draw_panel) in zip(axes_list, panels(view)):
        axes.set_title(title)
        if not kind.applies(view):
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center",
                      va="center", color="#777777")
            axes.set_axis_off()
            continue
        part = draw_panel(axes, context)
        seen.update({series: text for series, text in part.entries})
        drawn.notes += [note for note in part.notes if note not in drawn.notes]
    oracles = summary.of_kind(view.rows, "oracle", 1)
    for series in context.ordered(seen):
        name = series if accuracy.applies(view) else error.name_with_mark(view, series)
        drawn.entries.append((series, f"{name} (oracle)" if series in oracles else name))
    return drawn
