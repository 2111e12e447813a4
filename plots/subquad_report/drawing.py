"""The figures of `subquad plot` as SVG inside the page: curves carry the label of their method, so
that the page can filter them, and colours are variables, so that they follow the theme."""

import html
import multiprocessing
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from subquad_plots import figure, figures, layout, overview, style, training, views

MARK = "series-"
LETTER = "DejaVu"  # how the ids of its letters begin
# Of the style sheet of the figures; each is a variable of the page (page.css).
THEMED = ("ffffff", "000000", "202020", "404040", "555555", "606060", "777777", "8c8c8c", "b0b0b0", "dddddd",
          "0072b2", "d55e00", "009e73", "cc79a7", "56b4e9", "e69f00", "7a4fbf", "a08c00")


@dataclass(frozen=True)
class Marked(style.Curve):
    mark: str = ""

    def line(self):
        return {**super().line(), "gid": self.mark}


@dataclass
class Figure:
    view: str      # title of the view: mqar, forward, causal
    task: str
    pass_name: str
    kind: str      # time, error, ...
    caption: str
    svg: str       # without glyphs
    wide: bool


def mark_curves(results):
    """(series -> Marked, mark -> label)"""
    frame = results.everything.drop_duplicates("series").set_index("series")
    curves, labels = {}, {}
    for place, (series, curve) in enumerate(style.assign(results.everything,
                                                         results.series_order).items()):
        curves[series] = Marked(curve.color, curve.marker, curve.dashes, curve.hollow,
                                f"{MARK}{place}")
        labels[f"{MARK}{place}"] = frame.loc[series, "label"] or frame.loc[series, "method"]
    return curves, labels


def mark_bars(panel):
    """The bars of an interval belong to their curve."""
    for axes in panel.axes:
        for container in axes.containers:
            line = container.lines[0] if hasattr(container, "lines") else None
            if line is None or not (line.get_gid() or "").startswith(MARK):
                continue
            for artist in [*container.lines[1], *container.lines[2]]:
                artist.set_gid(line.get_gid())


def themed(match):
    colour = match.group(2).lower()
    return f"{match.group(1)}: var(--f-{colour})" if colour in THEMED else match.group(0)


def shorter(match):
    """A hundredth of a point is enough for a place; factors keep their digits."""
    value = float(match.group(0))
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"


class Glyphs:
    """Letters as paths, which all figures share: id -> element."""

    def __init__(self):
        self.found, self.names = {}, {}

    def name(self, letter):
        """Short, for a figure names each of its letters."""
        return self.names.setdefault(letter, f"g{len(self.names)}")

    def take(self, match):
        name = self.name(match.group(1))
        self.found[name] = match.group(0).replace(match.group(1), name, 1)
        return ""

    def sprite(self):
        return ('<svg class="sprite" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
                + "".join(self.found[name] for name in sorted(self.found)) + "</defs></svg>")


def inlined(svg, prefix, title, labels, glyphs):
    """An SVG file of matplotlib as an element of the page: ids of its own, no foreign names."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r"> <", "><", svg)
    svg = re.sub(r'<path id="(DejaVu[^"]+)".*?/>', glyphs.take, svg)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)

    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))

    def own(match):
        name = match.group(2)
        if match.group(1) == 'id="' and name.startswith(MARK):
            return f'data-label="{html.escape(labels[name])}"'
        if match.group(1) == 'id="' and name not in used:
            return ""
        return (match.group(1) + (glyphs.name(name) if name.startswith(LETTER) else prefix + name)
                + match.group(3))

    svg = re.sub(r"-?\d+\.\d{4,}", shorter, svg)  # before the labels come, which may hold numbers
    svg = re.sub(r'(id=")([^"]+)(")', own, svg)
    svg = re.sub(r'(href="#)([^"]+)(")', own, svg)
    svg = re.sub(r"(url\(#)([^)]+)(\))", own, svg)
    svg = re.sub(r"\b(fill|stroke): #([0-9a-fA-F]{6})\b", themed, svg)
    svg = svg.replace("<g >", "<g>")
    head, rest = svg.split(">", 1)
    sizes = re.search(r'viewBox="[^"]*"', head)
    return (f'<svg {sizes.group(0)} role="img" aria-label="{html.escape(title)}" focusable="false">'
            + re.sub(r"<style[^>]*>.*?</style>", "", rest, flags=re.DOTALL))


_job = {}  # what a process that draws knows


def start_drawing(results, folder):
    style.use()
    curves, labels = mark_curves(results)
    context = figure.Context(curves, results.series_order, results.crossover,
                             training.read_curves(results.directory))
    _job.update(results=results, folder=folder, context=context, views=views.views(results))
    return labels


def draw_view(place):
    """[(kind, caption, file, wide)] of one view; place -1: the overview."""
    job, out = _job, []
    if place < 0:
        view = overview.choose(job["views"])
        panel = figures.overview_panel(view, job["context"], job["results"])
        mark_bars(panel)
        files = layout.save(panel, job["folder"], "overview", ["svg"])
        return [(overview.NAME, overview.caption(view), files[0], True)]
    view = job["views"][place]
    for kind in figures.FIGURES:
        if not kind.applies(view):
            continue
        panel = figures.panel_of(kind, view, job["context"], job["results"])
        mark_bars(panel)
        wide = panel.get_figwidth() > style.COLUMN_WIDTH
        files = layout.save(panel, job["folder"], f"{kind.NAME}-{place}", ["svg"])
        out.append((kind.NAME, kind.caption(view), files[0], wide))
    return out


def draw(results, glyphs, processes=None):
    """Every figure of `subquad plot`, the overview first. Views are drawn side by side."""
    with tempfile.TemporaryDirectory() as folder:
        labels = start_drawing(results, folder)
        found = _job["views"]
        places = list(range(len(found)))
        if overview.choose(found) is not None:
            places.insert(0, -1)
        processes = min(processes or len(os.sched_getaffinity(0)), len(places))
        if processes > 1 and len(places) > 4:
            forked = multiprocessing.get_context("fork")  # they know the results already
            with ProcessPoolExecutor(processes, mp_context=forked) as pool:
                parts = list(pool.map(draw_view, places, chunksize=1))
        else:
            parts = [draw_view(place) for place in places]
        out = []
        for place, drawn in zip(places, parts):
            view = overview.choose(found) if place < 0 else found[place]
            for kind, caption, file, wide in drawn:
                svg = inlined(Path(folder, file).read_text(encoding="utf-8"), f"f{len(out)}-",
                              f"{kind}: {view.title}", labels, glyphs)
                out.append(Figure("Overview" if place < 0 else view.title, view.task,
                                  view.pass_name, kind, caption, svg, wide))
        return out
