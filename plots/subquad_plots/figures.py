"""The list of figures, and drawing all of them for a run directory."""

from pathlib import Path

from . import (accuracy, bound, budget, curves, decode, error, figure, layout, matrix_error, memory,
               overview, pareto, peak, speedup, style, time, training, views)

# Each has NAME, applies(view), caption(view) and draw(axes, view, context). To add a figure, write
# such a module and name it here. One with panels(view), the number of its panels, gets a list of
# axes and both columns of the page when there are several.
FIGURES = [accuracy, curves, time, decode, speedup, memory, error, matrix_error, bound, budget,
           pareto, peak]


def panel_of(kind, view, context, results):
    """The finished figure of one kind and view."""
    count = kind.panels(view) if hasattr(kind, "panels") else 1
    panel, axes = layout.new_figure(1, count, style.PAGE_WIDTH if count > 1 else style.COLUMN_WIDTH)
    if hasattr(kind, "panels"):
        drawn = kind.draw(axes, view, context)
        drawn.notes.insert(0, view.title)
    else:
        drawn = kind.draw(axes[0], view, context)
        axes[0].set_title(view.title)
    layout.arrange(panel, axes, count, entries=figure.legend_entries(context, drawn),
                   legend_title=drawn.legend_title,
                   footer=figure.small_print(view, results, drawn.notes))
    return panel


def draw_one(kind, view, context, results, directory, formats):
    """Files that were written."""
    panel = panel_of(kind, view, context, results)
    return layout.save(panel, directory, f"{kind.NAME}-{view.slug}", formats)


def overview_panel(view, context, results):
    rows = (len(overview.panels(view)) + 1) // 2
    panel, axes = layout.new_figure(rows, 2, style.PAGE_WIDTH)
    drawn = overview.draw(axes, view, context)
    panel.suptitle("")
    drawn.notes.insert(0, view.title)
    layout.arrange(panel, axes, 2, figure.legend_entries(context, drawn),
                   footer=figure.small_print(view, results, drawn.notes), panel_height=1.55 if rows > 1 else 1.75)
    return panel


def draw_overview(view, context, results, directory, formats):
    panel = overview_panel(view, context, results)
    return layout.save(panel, directory, overview.NAME, formats)


def draw_all(results, directory, formats=("png", "svg"), names=None):
    """Draws every figure that applies, or those of these names -> list of (files, caption)."""
    style.use()
    context = figure.Context(style.assign(results.everything, results.series_order),
                             results.series_order, results.crossover,
                             training.read_curves(results.directory))
    found, written = views.views(results), []
    chosen = overview.choose(found) if names is None else None
    if chosen is not None:
        files = draw_overview(chosen, context, results, directory, formats)
        written.append((files, overview.caption(chosen)))
    for view in found:
        for kind in FIGURES:
            if (names is None or kind.NAME in names) and kind.applies(view):
                files = draw_one(kind, view, context, results, directory, formats)
                written.append((files, kind.caption(view)))
    return written


def write_index(directory, written, results):
    """index.md: every figure with its caption."""
    lines = [f"# Figures of {results.directory.resolve().name}", ""]
    for files, caption in written:
        shown = next((name for name in files if name.endswith((".png", ".svg"))), None)
        if shown:
            lines += [f"![{shown}]({shown})", ""]
        links = ", ".join(f"[{name}]({name})" for name in files)
        lines += [f"{caption} ({links})", ""]
    Path(directory, "index.md").write_text("\n".join(lines), encoding="utf-8")
