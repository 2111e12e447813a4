#!/usr/bin/python3
"""Draws the attention matrices that `subquad plot --attention` has written, side by side."""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
os.environ["MPLBACKEND"] = "Agg"

from subquad_plots import script

try:
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.colors import PowerNorm

    from subquad_plots import style
except ImportError as error:
    script.missing("attention.py", error)

LARGEST = 256  # cells of a side; longer sequences are drawn by the largest weight of each cell


def shrunk(matrix):
    """Largest weight of each square cell, so that a single bright key stays visible."""
    n = matrix.shape[0]
    side = -(-n // LARGEST)
    if side == 1:
        return matrix
    edges = np.arange(0, n, side)
    rows = np.maximum.reduceat(matrix, edges, axis=0)
    return np.maximum.reduceat(rows, edges, axis=1)


def overlap(dense, other):
    """1 - total variation, mean over queries, the other's rows scaled to one."""
    sums = other.sum(axis=1, keepdims=True)
    scaled = np.divide(other, sums, out=np.zeros_like(other), where=sums > 0)
    return float(np.minimum(dense, scaled).sum(axis=1).mean())


def panels_of(folder, about):
    dense = np.load(folder / "dense.npy")
    panels = [("dense attention", dense, "of the same q and k")]
    estimate = folder / "estimated.npy"
    if estimate.exists():
        matrix = np.load(estimate)
        panels.append((f"estimated by {about['method']}", matrix,
                       f"overlap with dense {overlap(dense, matrix):.2f}"))
    matrix = np.load(folder / "method.npy")
    panels.append((f"{about['method']}: what weighs the values", matrix,
                   f"overlap with dense {overlap(dense, matrix):.2f}"))
    return panels


def draw(folder, formats):
    about = json.loads((folder / "attention.json").read_text())
    style.use()
    panels = panels_of(folder, about)
    n = about["n"]
    # Each panel by its own largest weight: an estimate is spread over cells of many keys.
    figure, axes = plt.subplots(1, len(panels), figsize=(style.PAGE_WIDTH, 2.4), sharey=True,
                                layout="constrained")
    for axis, (title, matrix, note) in zip(np.atleast_1d(axes), panels):
        small = shrunk(matrix)
        image = axis.imshow(small, cmap="magma_r", norm=PowerNorm(0.5, 0, max(small.max(), 1e-9)),
                            extent=(0, n, n, 0), interpolation="nearest")
        axis.grid(False)
        axis.set_title(title)
        axis.set_xlabel(f"key\n{note}")
        bar = figure.colorbar(image, ax=axis, shrink=0.72, pad=0.02, aspect=24)
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=style.FOOTER_SIZE)
    np.atleast_1d(axes)[0].set_ylabel("query")
    figure.suptitle(f"{about['task']}, layer {about['layer']}, head {about['head']}, test example "
                    f"{about['example']} (colour: square root of the weight)",
                    fontsize=style.TEXT_SIZE + 0.5)
    for kind in formats:
        figure.savefig(folder / f"attention.{kind}")
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder that `subquad plot --attention` has written")
    parser.add_argument("--format", action="append", default=[], help="png, svg (default) or pdf")
    options = parser.parse_args(arguments)
    formats = script.split(options.format) or ["png", "svg"]
    status = script.framed("attention.py", lambda: draw(Path(options.folder), formats),
                           storage=[ValueError])
    if status == 0:
        print(f"wrote {', '.join(f'{options.folder}/attention.{kind}' for kind in formats)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
