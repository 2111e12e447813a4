"""Pivot tables as aligned Markdown, LaTeX (booktabs) and long CSV."""

import csv
import io
import math

from . import training, units
from .errors import UserError
from .pivot import csv_keys, AXIS_NAMES, make  # noqa: F401 (make is part of the interface)

SPREADS = ("none", "plusminus", "range")
MISSING = "-"
NAMES = {"time_s": "time per call", "speedup": "speed-up over dense", "peak_bytes": "peak memory",
         "rel_error": "relative error", "tokens_per_s": "throughput",
         "fraction_of_peak": "share of the multiply-add peak",
         "fraction_of_bandwidth": "share of the memory bandwidth"}
TIME_NAMES = {"decode": "time per token", "train": "time per step"}
BASE_UNITS = {"gflops": "GFLOP/s", "fma_peak_gflops": "GFLOP/s", "bandwidth_gbs": "GB/s",
              "fraction_of_peak": "1", "fraction_of_bandwidth": "1", "tokens_per_s": "1/s", "mhz": "MHz", "speedup": "1",
              "steal_s": "s", "rel_error": "1", "max_error": "1", "cosine": "1"}
HIGHER_IS_BETTER = ("speedup", "tokens_per_s", "gflops", "cosine", "topk_mass",
                    "fraction_of_peak", "fraction_of_bandwidth", "accuracy", "validation_accuracy",
                    "best_accuracy")
LOWER_IS_BETTER = ("rel_error", "max_error", "kl", "keys_per_query", "spread", "loss", "bits",
                   "perplexity", "validation_loss")
SHOWN_AS = {"series": "label", "task_split": "task_params", "kv": "n_kv"}


def base_unit(quantity):
    if quantity in BASE_UNITS:
        return BASE_UNITS[quantity]
    if quantity.endswith("_bytes"):
        return "B"
    return "s" if quantity.endswith("_s") else ""


def human_unit(table):
    """(factor, name) of the unit in which the middle number of a table reads best."""
    unit = base_unit(table.quantity)
    if unit not in ("s", "B"):
        return 1.0, "" if unit == "1" else unit
    values = sorted(cell.value for cell in table.cells.values() if cell.measured and cell.value > 0)
    if not values:
        return 1.0, unit
    return units.unit_for(values[len(values) // 2],
                          units.TIME_UNITS if unit == "s" else units.BYTE_UNITS)


def number_text(value, digits=3):
    """Three significant digits; powers of ten where there would be many zeros."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e7:
        return f"{value:.{digits - 1}e}"
    return units.significant(value, digits, trim=False)


def interval_text(cell, factor, spread):
    if spread == "plusminus":
        return number_text((cell.high - cell.low) / 2 / factor, 2)
    return f"[{number_text(cell.low / factor)}, {number_text(cell.high / factor)}]"


def best_is_highest(quantity):
    if quantity in HIGHER_IS_BETTER:
        return True
    if quantity in LOWER_IS_BETTER or base_unit(quantity) in ("s", "B"):
        return False
    raise UserError(f"--best: neither high nor low values of {quantity!r} are better")


def best_of_columns(table, factor):
    """Places of the best numbers of each column, ties as printed; oracles take no part."""
    sign = -1 if best_is_highest(table.quantity) else 1
    found = set()
    for column in table.columns:
        rivals = {(row, column): table.cells[row, column] for row in table.rows
                  if table.cells[row, column].measured and not table.cells[row, column].oracle
                  and not table.cells[row, column].floor}
        if not rivals:
            continue
        best = min(rivals.values(), key=lambda cell: sign * cell.value)
        text = number_text(best.value / factor)
        found |= {place for place, cell in rivals.items()
                  if number_text(cell.value / factor) == text}
    return found


def heading(name, value):
    if isinstance(value, str):
        return value or MISSING
    if value == -1 or not math.isfinite(value):
        return MISSING
    return units.length_text(value) if name in ("n", "n_kv") else f"{value:g}"


def quantity_text(table, unit):
    name = NAMES.get(table.quantity, table.quantity)
    if table.quantity == "time_s":
        name = TIME_NAMES.get(table.pass_name, name)
    return f"{name} [{unit}]" if unit else name


def corner(table):
    return f"{table.row_name} \\ {table.column_name}"


def notes(table, spread, best):
    parts = [table.note]
    kind = ("lowest lower to highest upper quartile of a round" if table.quantity == "time_s"
            else "smallest to largest round")
    if spread != "none" and training.is_quality(table.quantity):
        parts.append(f"means; {'half the range' if spread == 'plusminus' else 'range'} over seeds")
    elif spread != "none":
        parts.append(f"medians; {'half the range' if spread == 'plusminus' else 'range'} from "
                     f"{kind}")
    if best and any(cell.oracle and cell.measured for cell in table.cells.values()):
        parts.append("bold: best that is no oracle")
    return "; ".join(parts)


# ---- Markdown ----

def escape_markdown(text):
    for char in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(char, "\\" + char)
    return text


def markdown_cell(cell, factor, spread, bold):
    if not cell.measured:
        return cell.status or MISSING
    text = number_text(cell.value / factor)
    text = f"**{text}**" if bold else text
    if spread == "none" or cell.floor:
        return text
    return f"{text} {'± ' if spread == 'plusminus' else ''}{interval_text(cell, factor, spread)}"


def aligned(lines):
    """Rows of texts as lines of a Markdown table: names to the left, numbers to the right."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return ["| " + " | ".join([line[0].ljust(widths[0])] + [
        text.rjust(width) for text, width in zip(line[1:], widths[1:])]) + " |"
        for line in [lines[0], rule] + lines[1:]]


def markdown(tables, spread="none", best=False):
    out = []
    for table in tables:
        factor, unit = human_unit(table)
        bold = best_of_columns(table, factor) if best else set()
        title = ": ".join(part for part in (table.title, quantity_text(table, unit)) if part)
        lines = [[escape_markdown(corner(table))]
                 + [escape_markdown(heading(table.column_name, c)) for c in table.columns]]
        for row in table.rows:
            lines.append([escape_markdown(heading(table.row_name, row))] + [
                markdown_cell(table.cells[row, c], factor, spread, (row, c) in bold)
                for c in table.columns])
        out.append("\n".join([f"### {escape_markdown(title)}", "", *aligned(lines), "",
                              escape_markdown(notes(table, spread, best)), ""]))
    return "\n".join(out)


# ---- LaTeX ----

LATEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%",
         "#": r"\#", "$": r"\$", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
         "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
         units.MICRO: r"\textmu{}", "±": r"$\pm$", "×": r"$\times$"}


def escape_latex(text):
    return "".join(LATEX.get(char, char) for char in text)


def latex_number(text):
    digits, e, exponent = text.partition("e")
    return rf"{digits} \times 10^{{{int(exponent)}}}" if e else digits


def latex_cell(cell, factor, spread, bold):
    if not cell.measured:
        return escape_latex(cell.status) or "--"
    number = latex_number(number_text(cell.value / factor))
    number = rf"\mathbf{{{number}}}" if bold else number
    if spread == "plusminus" and not cell.floor:
        number += rf" \pm {latex_number(interval_text(cell, factor, spread))}"
    elif spread == "range" and not cell.floor:
        low, high = (latex_number(number_text(end / factor)) for end in (cell.low, cell.high))
        number += rf"\;[{low}, {high}]"
    return f"${number}$"


def latex(tables, spread="none", best=False):
    """One table environment each; needs \\usepackage{booktabs}."""
    out = []
    for table in tables:
        factor, unit = human_unit(table)
        bold = best_of_columns(table, factor) if best else set()
        what = quantity_text(table, unit)
        caption = f"{what[:1].upper()}{what[1:]}" + (f": {table.title}" if table.title else "")
        head = [escape_latex(f"{table.row_name}")] + [
            escape_latex(heading(table.column_name, c)) for c in table.columns]
        body = [[escape_latex(heading(table.row_name, row))] + [
            latex_cell(table.cells[row, c], factor, spread, (row, c) in bold)
            for c in table.columns] for row in table.rows]
        across = len(table.columns)
        out.append("\n".join([
            r"\begin{table}", r"  \centering",
            rf"  \caption{{{escape_latex(caption)}. Columns: {escape_latex(table.column_name)}.}}",
            rf"  \begin{{tabular}}{{l{'r' * across}}}", r"    \toprule",
            "    " + " & ".join(head) + r" \\", r"    \midrule",
            *("    " + " & ".join(line) + r" \\" for line in body),
            r"    \bottomrule", r"  \end{tabular}", "",
            rf"  \smallskip {{\footnotesize {escape_latex(notes(table, spread, best))}}}",
            r"\end{table}", ""]))
    return "\n".join(out)


# ---- CSV ----

def plain(value):
    if isinstance(value, str):
        return value
    if not math.isfinite(value) or value == -1:
        return ""
    return repr(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def to_csv(tables, spread="none", best=False):
    """One line per cell, numbers in base units; always with the interval. `spread` is for people,
    and so is `best`."""
    del spread, best
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    first = tables[0]
    keys = csv_keys(*(AXIS_NAMES.get(name, name) for name in (first.row_name, first.column_name)))
    writer.writerow([SHOWN_AS.get(key, key) for key in keys]
                    + ["quantity", "unit", "value", "low", "high", "rounds", "status"])
    for table in tables:
        for row, column in ((r, c) for r in table.rows for c in table.columns):
            cell = table.cells[row, column]
            if not cell.measured and not cell.status:
                continue
            numbers = [plain(number) for number in (cell.value, cell.low, cell.high)]
            writer.writerow([plain(cell.keys.get(key, "")) for key in keys]
                            + [table.quantity, base_unit(table.quantity), *numbers, cell.rounds,
                               cell.status or "ok"])
    return out.getvalue()


FORMATS = {"markdown": markdown, "latex": latex, "csv": to_csv}
