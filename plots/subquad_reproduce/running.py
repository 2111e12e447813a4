"""Running a config at a scale, by `subquad run` in a process of its own."""

import json
import os
import signal
import subprocess
from pathlib import Path

from subquad_plots.errors import UserError

from .catalog import ROOT

RECORD = "reproduce.json"  # what was run, beside the results


# Nothing is claimed about times there: one thread, so that a busy machine does not wait at barriers.
SMOKE = ["threads=1", "measure.warmup_s=0"]


def settings_of(name, scale):
    """What a scale sets; the file's own come last, so that they count."""
    return (SMOKE if name == "smoke" else []) + scale.settings


def scale_of(expectation, name):
    """(name, Scale) that is run: without one of its own the paper's scale is that of a laptop."""
    if name not in expectation.scales:
        name = "laptop"
    return name, expectation.scales[name]


def from_root(directory):
    """The directory as a script names it, which starts in the project's folder: rows record the
    path, and one inside the project says nothing about the machine."""
    path = Path(directory).absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def command(subquad, expectation, scale_name, scale, directory, rounds=0):
    """argv that makes the results of one entry."""
    first = ([str(expectation.script)] if expectation.script
             else [subquad, "run", str(expectation.config)])
    rest = ["--out", str(from_root(directory) if expectation.script else directory), "--no-plots"]
    for option, values in (("--set", settings_of(scale_name, scale)), ("--filter", scale.filters)):
        for value in values:
            rest += [option, value]
    if rounds:  # last, so that it counts; what was run with fewer is kept
        rest += ["--set", f"rounds={rounds}", "--resume"]
    return first + rest


def call(argv, subquad, cwd=None):
    """Exit status of a program; 128 + signal. Signals to this process reach it."""
    child = subprocess.Popen(argv, env={**os.environ, "SUBQUAD": subquad}, stdout=2, cwd=cwd)
    before = {}

    def forward(number, _frame):
        child.send_signal(number)

    # A terminal sends Ctrl-C to the child as well; it stops its sweep in order, we wait.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, forward)
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def run(subquad, expectation, scale_name, directory, rounds=0):
    """Exit status of the run; its record lies beside the results."""
    name, scale = scale_of(expectation, scale_name)
    argv = command(subquad, expectation, name, scale, directory, rounds)
    # A script names its config and its other files from the project's folder.
    status = call(argv, subquad, ROOT if expectation.script else None)
    if Path(directory).is_dir():
        write_record(directory, {
            "entry": expectation.entry, "scale": name,
            "command": f"subquad reproduce {expectation.entry} --scale {name}"
                       + (f" --rounds {rounds}" if rounds else "")})
    return status


def write_record(directory, found):
    (Path(directory) / RECORD).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def record(directory):
    """What was run there, or {}."""
    path = Path(directory) / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return found if isinstance(found, dict) else {}


def write_crossover(subquad, directory):
    """crossover.csv of a results directory, by the program that owns its statistics."""
    status = call([subquad, "reproduce", "--crossover", str(directory)], subquad)
    if status != 0:
        raise UserError(f"{directory}: crossover.csv could not be made")
