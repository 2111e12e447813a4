#!/usr/bin/python3
"""Writes one self-contained HTML page of a run directory. `subquad report` calls this."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
os.environ["MPLBACKEND"] = "Agg"

from subquad_plots import script

try:
    from subquad_report import data, drawing, page
except ImportError as error:
    script.missing("report.py", error, ["matplotlib", "pandas", "yaml"])

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
    script.add_doubt_options(parser, " in figures and tables")
    options = parser.parse_args(arguments)
    return script.framed("report.py", lambda: report(options))


if __name__ == "__main__":
    sys.exit(main())
