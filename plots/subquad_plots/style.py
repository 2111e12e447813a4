"""How curves look: one colour per method, one marker and line style per curve, in all figures of a
run directory. Colours are those of Okabe and Ito, which colour-blind readers can tell apart;
markers and line styles keep the curves apart in grey."""

from dataclasses import dataclass

import matplotlib
from matplotlib.colors import to_rgb

COLUMN_WIDTH = 3.35  # inches, one column of a two-column paper
PAGE_WIDTH = 7.0     # inches, both columns
TEXT_SIZE = 7.0      # points
FOOTER_SIZE = 5.5

BASELINE_COLOR = "#000000"
NAIVE_COLOR = "#8c8c8c"
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7a4fbf", "#a08c00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*"]
DASHES = ["-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1.2, 1.2)), (0, (7, 2, 1, 2, 1, 2))]
ORACLE_SHADE = "#b0b0b0"

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: same figure everywhere
    "mathtext.fontset": "dejavusans",
    "font.size": TEXT_SIZE, "axes.titlesize": TEXT_SIZE + 0.5, "axes.labelsize": TEXT_SIZE,
    "xtick.labelsize": TEXT_SIZE - 0.3, "ytick.labelsize": TEXT_SIZE - 0.3,
    "legend.fontsize": TEXT_SIZE - 0.3, "legend.title_fontsize": TEXT_SIZE - 0.3,
    "axes.linewidth": 0.6, "axes.edgecolor": "#404040", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.4,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.minor.size": 1.3, "ytick.minor.size": 1.3,
    "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0, "xtick.color": "#202020", "ytick.color": "#202020",
    "lines.linewidth": 1.1, "lines.markersize": 3.6, "lines.markeredgewidth": 0.7,
    "legend.frameon": False, "legend.handlelength": 2.4, "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2, "legend.labelspacing": 0.3, "legend.borderaxespad": 0.0,
    "legend.borderpad": 0.0,
    "savefig.dpi": 200, "figure.dpi": 200,
    "svg.hashsalt": "subquad",  # the same data gives the same bytes
    "pdf.fonttype": 42,
}


def use():
    matplotlib.use("Agg")
    matplotlib.rcParams.update(matplotlib.rcParamsDefault)
    matplotlib.use("Agg")
    matplotlib.rcParams.update(RC)


@dataclass(frozen=True)
class Curve:
    color: tuple
    marker: str
    dashes: object
    hollow: bool  # oracles: a bound, no competitor

    def line(self):
        """Keyword arguments of Axes.plot and errorbar."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.dashes,
                "markerfacecolor": "white" if self.hollow else self.color,
                "markeredgecolor": self.color}


def lighten(color, share):
    return tuple(part + (1 - part) * share for part in to_rgb(color))


def assign(frame, order):
    """series -> Curve, for all series of the run directory."""
    kinds = frame[["series", "method", "oracle"]].drop_duplicates("series").set_index("series")
    order = [series for series in order if series in kinds.index]
    by_method = {}
    for series in order:
        by_method.setdefault(kinds.loc[series, "method"], []).append(series)
    curves, used = {}, 0
    for place, (method, members) in enumerate(by_method.items()):
        if method == "dense":
            color = BASELINE_COLOR
        elif method == "dense_naive":
            color = NAIVE_COLOR
        else:
            color = COLORS[used % len(COLORS)]
            used += 1
        for member, series in enumerate(members):
            shade = 0.5 * member / max(1, len(members) - 1) if len(members) > 1 else 0.0
            curves[series] = Curve(
                color=lighten(color, shade), marker=MARKERS[(place + 5 * member) % len(MARKERS)],
                dashes=DASHES[(place if len(members) == 1 else place + member) % len(DASHES)],
                hollow=bool(kinds.loc[series, "oracle"] == 1))
    return curves
