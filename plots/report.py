#!/usr/bin/python3
"""Writes one self-contained HTML page of a run directory. `subquad report` calls this."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
os.environ["MPLBACKEND"] = "Agg"

try:
    from subquad_plots.errors import UserError
    from subquad_report import data, drawing, page
except ImportError as error:
    print(f"report.py: {error}; install the Debian packages python3-matplotlib, python3-pandas and "
          "python3-yaml, and use /usr/bin/python3", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[1]


def report(options):
    found = data.read(options.results, options.include_unstable, options.allow_mixed)
    glyphs, drawn = drawing.Glyphs(), []
    if found.results is not None and not options.no_figures:
        drawn = drawing.draw(found.results, glyphs)
    text = page.make(found, drawn, glyphs, data.column_descriptions(ROOT))
    target = Path(options.out) if options.out else Path(options.results) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(target)  # a page is there whole, or not at all
    for notice in found.notices:
        print(f"report.py: {notice}", file=sys.stderr)
    print(f"wrote {target}: {len(found.rows)} rows, {len(drawn)} figures, "
          f"{target.stat().st_size / 1e6:.1f} MB")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="directory that `subquad run` has written")
    parser.add_argument("-o", "--out", help="file of the page (default: RESULTS/report.html)")
    parser.add_argument("--no-figures", action="store_true", help="tables and rows alone")
    parser.add_argument("--include-unstable", action="store_true",
                        help="figures and tables also of rows whose numbers are in doubt")
    parser.add_argument("--allow-mixed", action="store_true",
                        help="figures and tables also of several CPU models or builds")
    options = parser.parse_args(arguments)
    try:
        report(options)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"report.py: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
