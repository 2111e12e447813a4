"""An evaluation as Markdown: the verdict, each table beside the paper's values, each claim."""

from subquad_plots import load, summary
from subquad_plots.table import aligned, base_unit, number_text
from subquad_plots.units import BYTE_UNITS, TIME_UNITS, length_text, unit_for

from .checks import FAILS, HOLDS
from .expectation import METRIC

PLAIN = {"\u00b5": "u", "\u00d7": "x", "\u00b1": "+-"}


def plain(text):
    for char, instead in PLAIN.items():
        text = text.replace(char, instead)
    return text


def unit_of(result):
    """(factor, name) in which the middle of our numbers reads best."""
    if result.table.to:
        return 1.0, ""
    unit = base_unit(result.table.value)
    if unit not in ("s", "B"):
        return 1.0, "" if unit == "1" else unit
    values = sorted(number.ours.value for number in result.numbers.values()
                    if number.ours and number.ours.value > 0)
    if not values:
        return 1.0, unit
    factor, name = unit_for(values[len(values) // 2], TIME_UNITS if unit == "s" else BYTE_UNITS)
    return factor, plain(name)


def paper_text(paper, factor):
    if paper is None:
        return ""
    if isinstance(paper, tuple):
        low, high = (None if end is None else number_text(end / factor) for end in paper)
        if low is None or high is None:
            return f"<= {high}" if low is None else f">= {low}"
        return f"{low} to {high}"
    return number_text(paper / factor)


def ours_text(number, factor):
    if number.ours is None:
        return "-"
    text = number_text(number.ours.value / factor)
    if number.state in (HOLDS, FAILS):
        off = "within" if number.off == 0 else f"{100 * number.off:+.0f} %"
        text += f" ({off}{'' if number.state == HOLDS else ', no'})"
    return text


def column_text(key, column):
    value = length_text(column) if key in ("n", "n_kv") and not isinstance(column, str) else column
    return f"{key} = {value}"


def table_text(result):
    table = result.table
    factor, unit = unit_of(result)
    papers = [column for place, column in enumerate(table.columns)
              if any(values[place] is not None for values in table.paper.values())]
    head = [""]
    for column in table.columns:
        name = column_text(table.key, column)
        head += [f"{name}: paper", "ours"] if column in papers else [name]
    lines = [head]
    for row in table.rows:
        line = [row.name.replace("|", "\\|")]
        for column in table.columns:
            number = result.numbers[row.name, column]
            if column in papers:
                line.append(paper_text(number.paper, factor))
            line.append(ours_text(number, factor))
        lines.append(line)
    what = table.value[len(METRIC):] if table.value.startswith(METRIC) else table.value
    what += f" / that of {table.to}" if table.to else f" [{unit}]" if unit else ""
    notes = []
    if table.tolerance is not None and table.paper:
        notes.append(f"Tolerance: {100 * table.tolerance:.0f} %.")
    if table.not_comparable:
        notes.append(f"Not compared number by number: {table.not_comparable}.")
    return "\n".join([f"### {table.title}: {what}", "",
                      *aligned(lines), ""] + ([" ".join(notes), ""] if notes else []))


def claims_text(evaluation):
    lines = []
    for claim, outcome in evaluation.claims:
        parts = [f"- {outcome.state}{'' if claim.essential else ' (minor)'}: {claim.text}.",
                 f"The paper: {claim.paper}."]
        if outcome.asked:
            parts.append(f"Asked: {outcome.asked}.")
        if outcome.ours:
            parts.append(f"Ours: {outcome.ours}.")
        if outcome.detail:
            parts.append(f"{'Off' if outcome.state == FAILS else 'Why'}: {outcome.detail}.")
        if claim.because:
            parts.append(f"Because {claim.because}.")
        lines.append(plain(" ".join(parts)))
    return "\n".join(lines + [""])


def machine_text(directory, include_unstable=False):
    """Below the tables: processor, threads, rounds, rows left out."""
    rows = load.with_types(load.read_rows(directory / "results.csv"))
    rows = rows.drop_duplicates(["cell_id", "round"], keep="last")
    wanted = ["ok", "unstable"] if include_unstable else ["ok"]
    good = rows[rows["status"].isin(wanted)]
    return summary.provenance(good if len(good) else rows, rows[~rows["status"].isin(wanted)])


def text(evaluation, machine="", command=""):
    expectation = evaluation.expectation
    out = [f"## {expectation.entry}: {expectation.title}", "",
           f"**{evaluation.verdict}**: {plain(evaluation.reason)}.", "",
           f"The paper: {expectation.source}; {expectation.hardware}."
           + (f" Ours: {expectation.ours}" if expectation.ours else "")]
    if machine:
        out.append(f"Ours measured on: {machine}; scale {evaluation.scale}.")
    out.append("")
    if command:
        out += [f"    {command}", ""]
    out += [table_text(result) for result in evaluation.tables]
    out.append(claims_text(evaluation))
    return "\n".join(out)
