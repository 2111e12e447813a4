#!/usr/bin/python3
"""Draws the figures of a run directory. `subquad plot` calls this after writing crossover.csv."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
os.environ["MPLBACKEND"] = "Agg"

from subquad_plots import script
from subquad_plots.errors import UserError

try:
    from subquad_plots import figures
except ImportError as error:
    script.missing("plot.py", error)


def draw(options, formats):
    results = script.loaded(options)
    directory = Path(options.out or Path(options.results) / "figures")
    written = figures.draw_all(results, directory, formats)
    if not written:
        raise UserError(f"{options.results}: no row has a time, a memory or an error to draw")
    figures.write_index(directory, written, results)
    print(f"{sum(len(files) for files, _ in written)} figures in {directory} (see index.md)")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="directory that `subquad run` has written")
    parser.add_argument("-o", "--out", help="where the figures go (default: RESULTS/figures)")
    parser.add_argument("--format", action="append", default=[], help="png,svg (default), pdf")
    script.add_row_options(parser, " in one figure")
    options = parser.parse_args(arguments)
    formats = script.split(options.format) or ["png", "svg"]
    unknown = [kind for kind in formats if kind not in ("png", "svg", "pdf")]
    if unknown:
        parser.error(f"--format: {unknown[0]!r} is not one of png, svg, pdf")
    return script.framed("plot.py", lambda: draw(options, formats))


if __name__ == "__main__":
    sys.exit(main())
