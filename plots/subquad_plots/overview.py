"""One figure over both columns: time, speed-up, memory and error of one view."""

from . import error, figure, memory, speedup, summary, time

NAME = "overview"
PANELS = [(time, "time"), (speedup, "speed-up"), (memory, "memory"), (error, "error")]


def choose(views):
    """The forward view with most methods, then most rows: the one to show first; or None."""
    candidates = [view for view in views
                  if view.pass_name != "decode" and any(p.applies(view) for p, _ in PANELS)]
    return max(candidates, default=None, key=lambda view: (
        sum(panel.applies(view) for panel, _ in PANELS), view.pass_name == "forward",
        view.rows["series"].nunique(), len(view.rows)))


def caption(view):
    return (f"Overview, {view.title}: time per call, speed-up over dense, peak memory and error "
            "against exact attention. Medians over rounds.")


def draw(axes_list, view, context):
    """Draws the four panels; a panel without data says so. One legend serves all."""
    drawn, seen = figure.Drawn(), {}
    for axes, (panel, name) in zip(axes_list, PANELS):
        axes.set_title(name)
        if not panel.applies(view):
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center",
                      va="center", color="#777777")
            axes.set_axis_off()
            continue
        part = panel.draw(axes, view, context, False)
        seen.update({series: text for series, text in part.entries})
        drawn.notes += [note for note in part.notes if note not in drawn.notes]
    oracles = summary.of_kind(view.rows, "oracle", 1)
    for series in context.ordered(seen):
        name = error.name_with_mark(view, series)
        drawn.entries.append((series, f"{name} (oracle)" if series in oracles else name))
    return drawn
