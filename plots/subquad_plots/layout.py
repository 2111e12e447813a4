"""Placing panels, the legend below them and the small print, in inches, so that a figure has
exactly the width it is to be printed at and nothing is clipped or overlaps."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from . import style

PAD = 0.04  # inches at every edge


def new_figure(rows=1, columns=1, width=style.COLUMN_WIDTH):
    """A figure and its axes (a list, row by row). arrange() sets the final places."""
    figure, grid = plt.subplots(rows, columns, figsize=(width, 2.4 * rows), squeeze=False)
    return figure, [axes for row in grid for axes in row]


def overhang(axes, renderer):
    """Inches that tick labels, labels and titles stick out: left, right, below, above."""
    window, dpi = axes.get_window_extent(renderer), axes.figure.dpi
    box = axes.get_tightbbox(renderer)
    return [max(0.0, inches / dpi) for inches in
            (window.x0 - box.x0, box.x1 - window.x1, window.y0 - box.y0, box.y1 - window.y1)]


def make_legend(figure, entries, title, width, renderer):
    """A legend with as many columns as fit; None without entries."""
    if not entries:
        return None, 0.0
    handles, labels = zip(*entries)
    for columns in range(min(4, len(entries)), 0, -1):
        # A last row with a single entry looks like a mistake; prefer fewer columns then.
        if columns > 2 and len(entries) % columns == 1:
            continue
        legend = figure.legend(handles, labels, title=title, ncol=columns, loc="upper left",
                               bbox_to_anchor=(0, 1), bbox_transform=figure.transFigure)
        legend._legend_box.align = "left"
        box = legend.get_window_extent(renderer)
        if box.width / figure.dpi <= width or columns == 1:
            return legend, box.height / figure.dpi
        legend.remove()
    raise AssertionError("unreachable: one column always returns")


def wrapped(figure, text, width, renderer):
    """Small print, wrapped to `width` inches; measured, not guessed."""
    if not text:
        return None, 0.0
    characters = int(width * 72 / style.FOOTER_SIZE / 0.5)
    while True:
        lines = "\n".join("\n".join(textwrap.wrap(part, characters)) for part in text.split("\n"))
        artist = figure.text(0, 0, lines, fontsize=style.FOOTER_SIZE, color="#555555",
                             verticalalignment="bottom", linespacing=1.15)
        box = artist.get_window_extent(renderer)
        if box.width / figure.dpi <= width or characters <= 20:
            return artist, box.height / figure.dpi
        artist.remove()
        characters -= 2


def arrange(figure, axes_list, columns=1, entries=(), legend_title=None, footer="",
            panel_height=1.75):
    """Sets the size of the figure and the places of everything in it."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    width = figure.get_figwidth()
    rows = [axes_list[i:i + columns] for i in range(0, len(axes_list), columns)]
    over = [[overhang(axes, renderer) for axes in row] for row in rows]
    left = [max(row[c][0] for row in over) for c in range(columns)]
    right = [max(row[c][1] for row in over) for c in range(columns)]
    gap = 0.12
    panel_width = (width - 2 * PAD - sum(left) - sum(right) - gap * (columns - 1)) / columns

    legend, legend_height = make_legend(figure, list(entries), legend_title, width - 2 * PAD,
                                        renderer)
    small, small_height = wrapped(figure, footer, width - 2 * PAD, renderer)
    below = [max(item[2] for item in row) for row in over]
    above = [max(item[3] for item in row) for row in over]
    height = (2 * PAD + sum(below) + sum(above) + len(rows) * panel_height
              + gap * (len(rows) - 1) + (legend_height + 0.08 if legend else 0)
              + (small_height + 0.07 if small else 0))
    figure.set_size_inches(width, height)

    y = height - PAD
    for r, row in enumerate(rows):
        y -= above[r] + panel_height
        x = PAD
        for c, axes in enumerate(row):
            x += left[c]
            axes.set_position([x / width, y / height, panel_width / width, panel_height / height])
            x += panel_width + right[c] + gap
        y -= below[r] + gap
    y += gap
    if legend:
        y -= 0.08
        legend.set_bbox_to_anchor((PAD / width, y / height), transform=figure.transFigure)
    if small:
        small.set_position((PAD / width, PAD / height))


def save(figure, directory, name, formats):
    """Writes the figure once per format -> names of the files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = []
    for kind in formats:
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(directory / f"{name}.{kind}", metadata=metadata)
        names.append(f"{name}.{kind}")
    plt.close(figure)
    return names
