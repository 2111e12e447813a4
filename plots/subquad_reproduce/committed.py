"""results/papers/PAPER/TABLE/: what is committed of a run, whether it still holds together, and the
page of all claims in results/README.md."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from subquad_plots import load
from subquad_plots.errors import UserError

from . import catalog, evaluate, integrity, render, running
from .checks import FAILS, HOLDS, INCOMPARABLE

# Kept of a run directory; attempts, samples and logs are not.
KEPT = ("results.csv", "machine.json", "plan.json", "config.resolved.yaml", "curves.csv",
        "crossover.csv", running.RECORD)
TABLE = "table.md"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"


def place(expectation, root=None):
    return Path(root or catalog.COMMITTED) / expectation.paper / expectation.name


@contextlib.contextmanager
def copy_of(directory):
    """A copy to work in; errors name the original."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / directory.name
        shutil.copytree(directory, copy)
        try:
            yield copy
        except UserError as error:
            error.args = (str(error).replace(str(copy), str(directory)),)
            raise


def entry_text(evaluation, directory):
    """table.md: a pure function of the files beside it and of the expectation file."""
    record = running.record(directory)
    return render.text(evaluation, render.machine_text(Path(directory), with_unstable(record)),
                       record.get("command", ""))


def with_unstable(record):
    return bool(record.get("include_unstable", False))


def judge(expectation, directory):
    record = running.record(directory)
    return evaluate.evaluate(expectation, directory, record.get("scale", "laptop"),
                             with_unstable(record))


def publish(evaluation, directory, root=None, include_unstable=False):
    """Copies what is kept of a run directory and writes table.md; figures are drawn by the caller
    into figures/. -> where."""
    target = place(evaluation.expectation, root)
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        source = Path(directory) / name
        if source.exists():
            if source.resolve() != (target / name).resolve():  # committed results, published anew
                shutil.copyfile(source, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    if include_unstable:
        running.write_record(target, {**running.record(target), "include_unstable": True})
    (target / TABLE).write_text(entry_text(evaluation, target), encoding="utf-8")
    return target


def check(expectation, subquad="", root=None):
    """Lines that say what does not hold together in a committed directory."""
    directory = place(expectation, root)
    if not (directory / "results.csv").exists():
        return []
    faults = []
    try:
        rows = load.read_rows(directory / "results.csv")
        integrity.check_lines(directory / "results.csv")
        faults += columns_fault(directory, list(rows.columns))
        with copy_of(directory) as copy:
            if subquad and (directory / "crossover.csv").exists():
                running.write_crossover(subquad, copy)
                if (copy / "crossover.csv").read_bytes() != (directory / "crossover.csv").read_bytes():
                    faults.append(f"{directory}/crossover.csv: does not follow from results.csv")
            touch_crossover(copy)
            made = entry_text(judge(expectation, copy), copy)
    except UserError as error:
        return faults + [str(error)]
    try:
        stored = (directory / TABLE).read_text(encoding="utf-8")
    except OSError as error:
        return faults + [f"{directory / TABLE}: {error.strerror}"]
    for number, (old, new) in enumerate(zip(stored.splitlines(), made.splitlines()), 1):
        if old != new:
            faults.append(f"{directory / TABLE}:{number}: does not follow from results.csv; it says "
                          f"\"{old}\", expected \"{new}\"")
            break
    else:
        if stored != made:
            faults.append(f"{directory / TABLE}: does not follow from results.csv: it has "
                          f"{len(stored.splitlines())} lines, expected {len(made.splitlines())}")
    return faults


def touch_crossover(directory):
    """A checkout gives files any times; crossover.csv was checked above, so it is new enough."""
    if (directory / "crossover.csv").exists():
        (directory / "crossover.csv").touch()


def current_columns():
    """Names of the columns in results/README.md, which a test holds to harness/sweep/row.h."""
    try:
        text = (catalog.ROOT / "results" / "README.md").read_text(encoding="utf-8")
    except OSError:
        return []
    _, _, part = text.partition("## Columns of results.csv")
    return [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]


def columns_fault(directory, columns):
    """Columns are only ever added at the end (line_crc stays behind the first ones): an older file
    has the first of them, in order."""
    known = current_columns()
    for number, (ours, name) in enumerate(zip(columns, known), 1):
        if ours != name:
            return [f"{directory}/results.csv: column {number} is {ours}, expected {name}"]
    if known and len(columns) > len(known):
        return [f"{directory}/results.csv: unknown column {columns[len(known)]}"]
    return []


# ---- the page of claims ----

def sentence(claim, outcome):
    if claim.because and outcome.state in (HOLDS, FAILS):
        text = claim.because
    elif outcome.state == HOLDS:
        text = f"{outcome.ours} ({outcome.asked})" if outcome.asked else outcome.ours
    elif outcome.state == FAILS:
        text = f"{outcome.ours}: {outcome.detail}" if outcome.ours else outcome.detail
    else:
        text = outcome.detail
    return text


def page(read, root=None):
    """The part of results/README.md between its markers: every claim of every paper."""
    out, papers = [], {}
    for expectation in read:
        papers.setdefault(expectation.paper, []).append(expectation)
    counts = {}
    sections = []
    for paper, entries in papers.items():
        lines = [f"### {paper}", "", "| table | claim | the paper | verdict | why |",
                 "|---|---|---|---|---|"]
        for expectation in entries:
            directory = place(expectation, root)
            there = (directory / "results.csv").exists()
            if there:
                with copy_of(directory) as copy:
                    touch_crossover(copy)
                    found = judge(expectation, copy)
            else:
                found = evaluate.unrun(expectation, "laptop", "no committed run")
            name = f"[{expectation.name}](papers/{paper}/{expectation.name}/{TABLE})" if there \
                else expectation.name
            for claim, outcome in found.claims:
                state = outcome.state
                if state == INCOMPARABLE and not there and claim.check is not None:
                    state = "not run"
                counts[state] = counts.get(state, 0) + 1
                cells = [render.plain(each).replace("|", "\\|") for each in
                         (claim.text, claim.paper, state, sentence(claim, outcome))]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            if there:
                reason = render.plain(found.reason).replace("|", "\\|")
                lines.append(f"| {name} | **the whole table** | {expectation.source} | "
                             f"**{found.verdict}** | {reason} |")
        sections += lines + [""]
    total = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    out += [BEGIN, "## Claims of the papers", "",
            "Made by `subquad reproduce --page` from the files in `papers/` and from "
            "`configs/papers/*/*.expect.yaml`; do not edit.", "",
            f"{sum(counts.values())} claims: {total}.", "", *sections, END]
    return "\n".join(out)


def with_page(text, made):
    """results/README.md with its generated part replaced, or added after the first heading."""
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        return before + made + after
    return text.rstrip("\n") + "\n\n" + made + "\n"


def page_fault(root=None):
    """One line when results/README.md is not what `--page` would write."""
    path = catalog.ROOT / "results" / "README.md"
    if not path.exists():  # installed, without results
        return []
    text = path.read_text(encoding="utf-8")
    if with_page(text, page(catalog.find("all"), root)) != text:
        return [f"{path}: the page of claims does not follow from the files; make it anew with "
                "subquad reproduce --page"]
    return []
