"""What the scripts of this folder share: options, and how mistakes end. It imports nothing but the standard library, so
that it can say what is missing."""

import os
import sys


def missing(name, error, packages=("matplotlib", "pandas")):
    """Ends the script: a library that it needs is not there."""
    wanted = ", ".join(f"python3-{package}" for package in packages)
    print(f"{name}: {error}; install the Debian packages {wanted}, and use /usr/bin/python3",
          file=sys.stderr)
    sys.exit(2)


def split(values):
    """The values of an option that may be repeated and may hold several, by comma."""
    return [part for value in values for part in value.split(",") if part]


def add_doubt_options(parser, where):
    parser.add_argument("--include-unstable", action="store_true",
                        help="also rows whose numbers are in doubt")
    parser.add_argument("--allow-mixed", action="store_true",
                        help=f"also several CPU models or builds{where}")


def add_row_options(parser, where):
    """Which rows of a results directory."""
    parser.add_argument("--task", action="append", default=[], help="only these tasks")
    parser.add_argument("--pass", action="append", default=[], dest="passes",
                        help="only these passes")
    add_doubt_options(parser, where)


def loaded(options):
    """The results that the row options choose."""
    from . import load  # not above: this module is there before pandas is
    return load.load(options.results, split(options.task), split(options.passes),
                     options.include_unstable, options.allow_mixed)


def framed(name, work, storage=()):
    """Exit status of `work()`: its own, or that of what it raises, which is said line by line. `storage`: further
    exceptions that mean a file which cannot be read or written."""
    from .errors import UserError
    try:
        return work() or 0
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, *storage) as error:
        status, message = 3, error
    except UserError as error:
        status, message = 2, error
    for line in str(message).splitlines():
        print(f"{name}: {line}", file=sys.stderr)
    return status
