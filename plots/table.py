#!/usr/bin/python3
"""Prints pivot tables of a run directory. `subquad table` calls this."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from subquad_plots import script

try:
    from subquad_plots import table
except ImportError as error:
    script.missing("table.py", error, ["pandas"])


def write(options):
    tables = table.make(script.loaded(options), options.rows, options.columns, options.value)
    sys.stdout.write(table.FORMATS[options.format](tables, options.spread, options.best))
    sys.stdout.flush()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="directory that `subquad run` has written")
    parser.add_argument("--format", choices=list(table.FORMATS), default="markdown")
    parser.add_argument("--rows", default="label", help="column that makes the rows")
    parser.add_argument("--columns", default="n", help="column that makes the columns")
    parser.add_argument("--value", default="time_s",
                        help="time_s, speedup, or another column with numbers")
    parser.add_argument("--spread", choices=list(table.SPREADS), default="none")
    parser.add_argument("--best", action="store_true", help="best of each column in bold")
    script.add_row_options(parser, " in one table")
    options = parser.parse_args(arguments)
    return script.framed("table.py", lambda: write(options))


if __name__ == "__main__":
    sys.exit(main())
