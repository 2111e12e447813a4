#!/usr/bin/python3
"""Runs the configs of a paper's tables and judges them by their expectation files. `subquad
reproduce` calls this."""

import argparse
import io
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
os.environ["MPLBACKEND"] = "Agg"

from subquad_plots import script
from subquad_plots.errors import UserError

try:
    from subquad_plots import load
    from subquad_reproduce import (catalog, committed, evaluate, integrity, render, running)
    from subquad_reproduce.expectation import SCALES
except ImportError as error:
    script.missing("reproduce.py", error, ["matplotlib", "pandas", "yaml"])

FAILED = 1


def say(text):
    print(text, file=sys.stderr, flush=True)


def print_list(read):
    for each in read:
        scales = [name for name in SCALES if name in each.scales and not each.scales[name].skip]
        minutes = f"{each.minutes:g} min" if each.minutes is not None else "no run"
        print(f"{each.entry:34} {len(each.claims):3} claims {minutes:>8}  {each.title}"
              + (f" ({', '.join(scales)})" if scales else ""))


def with_unstable(options, scale):
    """Nothing is claimed about times at smoke scale, so rows whose times are in doubt count."""
    return options.include_unstable or scale == SCALES[0]


def needs_crossover(each):
    return any(claim.check and claim.check.kind == "crossover" for claim in each.claims)


def draw(each, directory, out, formats, options, include_unstable):
    """The figures that the file asks for; they are beside the point of the exit status."""
    if not each.figures:
        return
    from subquad_plots import figures
    try:
        if options.subquad:
            running.write_crossover(options.subquad, directory)
        results = load.load(directory, include_unstable=include_unstable,
                            allow_mixed=options.allow_mixed, stream=io.StringIO())
        written = figures.draw_all(results, Path(out), formats, each.figures)
    except UserError as error:
        say(f"warning: no figures: {error}")
        return
    say(f"wrote {sum(len(files) for files, _ in written)} figures into {out}")


def make(each, options):
    """(Evaluation, directory or None, exit status of its run) of one entry."""
    if each.config is None:
        return evaluate.evaluate(each, None), None, 0
    if options.results:
        directory, status = Path(options.results), 0
        scale = options.scale or running.record(directory).get("scale", "laptop")
    else:
        wanted = options.scale or "laptop"
        scale, overlay = running.scale_of(each, wanted)
        if overlay.skip:
            return evaluate.unrun(each, scale, overlay.skip), None, 0
        base = Path(options.out) if options.out else Path("results/reproduce") / scale
        directory = base / each.paper / each.name if options.many or not options.out else base
        say(f"{each.entry}: running it at scale {scale}, into {directory}")
        status = running.run(options.subquad, each, scale, directory, options.rounds)
        if status not in (0, FAILED):
            return None, directory, status
    if options.subquad and needs_crossover(each):
        running.write_crossover(options.subquad, directory)
    found = evaluate.evaluate(each, directory, scale, with_unstable(options, scale),
                              options.allow_mixed)
    return found, directory, status


def again(options):
    words = ["subquad", "reproduce", options.what]
    for option, value in (("--scale", options.scale), ("--out", options.out),
                          ("--rounds", options.rounds)):
        words += [option, str(value)] if value else []
    return " ".join(shlex.quote(word) for word in words)


def reproduce(read, options):
    worst, summary = 0, []
    for each in read:
        found, directory, status = make(each, options)
        if found is None:
            if status >= 128:
                say(f"interrupted; the same command goes on: {again(options)}")
            return status
        machine = record = ""
        unstable = with_unstable(options, found.scale)
        if directory is not None:
            machine = render.machine_text(directory, unstable)
            record = running.record(directory).get("command", "")
        print(render.text(found, machine, record), flush=True)
        if directory is not None and not options.results and not options.no_plots:
            draw(each, directory, directory / "figures", ["png", "svg"], options, unstable)
        if directory is not None and options.publish:
            target = committed.publish(found, directory, None, unstable)
            draw(each, directory, target / "figures", ["svg"], options, unstable)
            say(f"wrote {target}")
        worst = max(worst, status, FAILED if found.surprising else 0)
        summary.append(found)
    if len(summary) > 1:
        for found in summary:
            print(f"{found.expectation.entry:34} {found.verdict}")
    return worst


def check(read, options):
    faults = [fault for each in read for fault in committed.check(each, options.subquad)]
    if options.what == "all":
        faults += committed.page_fault()
    for fault in faults:
        print(f"reproduce.py: {fault}", file=sys.stderr)
    if not faults:
        print(f"{sum((committed.place(each) / 'results.csv').exists() for each in read)} committed "
              "tables follow from their results")
    return FAILED if faults else 0


def write_page():
    path = catalog.ROOT / "results" / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(committed.with_page(text, committed.page(catalog.find("all"))),
                    encoding="utf-8")
    print(f"wrote {path}")
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split()))
    parser.add_argument("what", nargs="?", default="", help="PAPER, PAPER/TABLE or all")
    parser.add_argument("--scale", choices=SCALES, help="smoke, laptop (default) or paper")
    parser.add_argument("--out", help="where results go (default: results/reproduce/SCALE/...)")
    parser.add_argument("--results", help="judge this results directory, run nothing")
    parser.add_argument("--rounds", type=int, default=0,
                        help="instead of the config's; adds to what was run before")
    parser.add_argument("--list", action="store_true", help="the tables there are")
    parser.add_argument("--check", action="store_true",
                        help="only whether committed tables follow from their results")
    parser.add_argument("--page", action="store_true",
                        help="write the page of claims into results/README.md")
    parser.add_argument("--publish", action="store_true",
                        help="copy the results to results/papers/")
    parser.add_argument("--no-plots", action="store_true", help="draw no figures")
    script.add_doubt_options(parser, "")
    parser.add_argument("--subquad", default="", help="the program that runs configs")
    return parser.parse_args(arguments)


def work(options):
    if options.page:
        return write_page()
    if not options.what and not (options.list or options.check):
        raise UserError("expected PAPER, PAPER/TABLE or all; see subquad reproduce --list")
    options.what = options.what or "all"
    read = catalog.find(options.what)
    options.many = len(read) > 1
    if options.list:
        print_list(read)
        return 0
    if options.check:
        return check(read, options)
    if options.results and options.many:
        raise UserError(f"--results: {options.what} has {len(read)} tables, expected one")
    if not options.results and not options.subquad and any(each.config for each in read):
        raise UserError("--subquad: the program that runs configs is missing; use "
                        "`subquad reproduce`, or --results DIR")
    return reproduce(read, options)


def main(arguments=None):
    options = parse(arguments)
    return script.framed("reproduce.py", lambda: work(options), storage=[integrity.Damaged])


if __name__ == "__main__":
    sys.exit(main())
