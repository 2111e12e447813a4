#!/usr/bin/python3
"""Draws the figures of a run directory. `subquad plot` calls this after writing crossover.csv."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
os.environ["MPLBACKEND"] = "Agg"

try:
    from subquad_plots import figures, load
    from subquad_plots.errors import UserError
except ImportError as error:
    sys.exit(f"plot.py: {error}; install the Debian packages python3-matplotlib and "
             "python3-pandas, and use /usr/bin/python3")


def split(values):
    return [part for value in values for part in value.split(",") if part]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="directory that `subquad run` has written")
    parser.add_argument("-o", "--out", help="where the figures go (default: RESULTS/figures)")
    parser.add_argument("--format", action="append", default=[], help="png,svg (default), pdf")
    parser.add_argument("--task", action="append", default=[], help="only these tasks")
    parser.add_argument("--pass", action="append", default=[], dest="passes",
                        help="only these passes")
    parser.add_argument("--include-unstable", action="store_true",
                        help="also rows whose numbers are in doubt")
    parser.add_argument("--allow-mixed", action="store_true",
                        help="also several CPU models or builds in one figure")
    options = parser.parse_args(arguments)
    formats = split(options.format) or ["png", "svg"]
    unknown = [kind for kind in formats if kind not in ("png", "svg", "pdf")]
    if unknown:
        parser.error(f"--format: {unknown[0]!r} is not one of png, svg, pdf")
    try:
        results = load.load(options.results, split(options.task), split(options.passes),
                            options.include_unstable, options.allow_mixed)
        directory = Path(options.out or Path(options.results) / "figures")
        written = figures.draw_all(results, directory, formats)
        if not written:
            raise UserError(f"{options.results}: no row has a time, a memory or an error to draw")
        figures.write_index(directory, written, results)
    except UserError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 3
    print(f"{sum(len(files) for files, _ in written)} figures in {directory} (see index.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
