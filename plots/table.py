#!/usr/bin/python3
"""Prints pivot tables of a run directory. `subquad table` calls this."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

try:
    from subquad_plots import load, table
    from subquad_plots.errors import UserError
except ImportError as error:
    print(f"table.py: {error}; install the Debian package python3-pandas, and use "
          "/usr/bin/python3", file=sys.stderr)
    sys.exit(2)


def split(values):
    return [part for value in values for part in value.split(",") if part]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="directory that `subquad run` has written")
    parser.add_argument("--format", choices=list(table.FORMATS), default="markdown")
    parser.add_argument("--rows", default="label", help="column that makes the rows")
    parser.add_argument("--columns", default="n", help="column that makes the columns")
    parser.add_argument("--value", default="time_s",
                        help="time_s, speedup, or another column with numbers")
    parser.add_argument("--spread", choices=list(table.SPREADS), default="none")
    parser.add_argument("--task", action="append", default=[], help="only these tasks")
    parser.add_argument("--pass", action="append", default=[], dest="passes",
                        help="only these passes")
    parser.add_argument("--best", action="store_true", help="best of each column in bold")
    parser.add_argument("--include-unstable", action="store_true",
                        help="also rows whose numbers are in doubt")
    parser.add_argument("--allow-mixed", action="store_true",
                        help="also several CPU models or builds in one table")
    options = parser.parse_args(arguments)
    try:
        results = load.load(options.results, split(options.task), split(options.passes),
                            options.include_unstable, options.allow_mixed)
        tables = table.make(results, options.rows, options.columns, options.value)
        text = table.FORMATS[options.format](tables, options.spread, options.best)
    except UserError as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 2
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
