"""The tables of `subquad table`, and tables of anything else, as HTML. Sorting and filtering are the
script's; it reads data-v of a cell and data-label, data-task, data-pass of a row or table."""

import math
from html import escape

from subquad_plots import table as text_table
from subquad_plots.errors import UserError
from subquad_plots.units import length_text

QUANTITIES = [
    ("time_s", "Time"), ("speedup", "Speed-up over dense"), ("peak_bytes", "Peak memory"),
    ("rel_error", "Error of the output"), ("matrix_error", "Error of the matrix"),
    ("accuracy", "Accuracy"), ("bits", "Bits"), ("perplexity", "Perplexity"),
    ("recall_topk", "Recall of top keys"), ("mass_recall", "Recall of mass"),
    ("kl", "KL divergence"), ("kv_bytes", "Cache"), ("keys_per_query", "Keys per query"),
    ("tokens_per_s", "Throughput"), ("fraction_of_peak", "Share of the peak"),
    ("fit_s", "Fitting time"),
]


def attributes(**values):
    return "".join(f' {name.replace("_", "-")}="{escape(str(value))}"'
                   for name, value in values.items() if value not in (None, ""))


def cell(text, value=None, kind="td", css="", **more):
    number = "" if value is None else repr(float(value))
    return f"<{kind}{attributes(data_v=number, **more)}{f' class={css}' if css else ''}>{text}</{kind}>"


def sortable(caption, head, body, css="", **more):
    """head: [(text, is_number)]; body: rows of finished cells with their attributes."""
    columns = "".join(
        f'<th scope="col"{" class=num" if number else ""}><button type="button" class="sort">'
        f"{escape(text)}</button></th>" for text, number in head)
    lines = "".join(f"<tr{attributes(**own)}>{''.join(cells)}</tr>" for cells, own in body)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
            f'<table class="sortable {css}"{attributes(**more)}><caption>{escape(caption)}</caption>'
            f"<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>")


def status_text(status):
    return f'<span class="status {escape(status)}">{escape(status)}</span>'


def pivot_cell(found, factor, bold):
    if not found.measured:
        parts = [status_text(part) for part in found.status.split("/") if part]
        return cell(" ".join(parts) or '<span class="none">-</span>', css="num")
    number = text_table.number_text(found.value / factor)
    number = f"<strong>{number}</strong>" if bold else number
    low, high = (text_table.number_text(end / factor) for end in (found.low, found.high))
    hint = f"{low} to {high}; {found.rounds} rounds" if found.rounds > 1 else None
    return cell(number, found.value, css="num", title=hint)


def best(table, factor):
    try:
        return text_table.best_of_columns(table, factor)
    except UserError:  # neither high nor low is better
        return set()


def pivot_table(table, labels):
    """labels: series -> label, for the filter."""
    factor, unit = text_table.human_unit(table)
    bold = best(table, factor) if len(table.rows) > 1 else set()
    first = next(iter(table.cells.values()))
    body = []
    for row in table.rows:
        cells = [table.cells[row, column] for column in table.columns]
        name = escape(str(row)) + (' <span class="tag">oracle</span>'
                                   if any(each.oracle for each in cells) else "")
        shown = [pivot_cell(each, factor, (row, column) in bold)
                 for each, column in zip(cells, table.columns)]
        own = {} if any(each.floor for each in cells) else {"data_label": labels.get(row, row)}
        body.append(([f'<th scope="row">{name}</th>', *shown], own))
    head = [("method", False)] + [
        (f"n = {length_text(column)}" if math.isfinite(column) else "-", True)
        for column in table.columns]
    title = ": ".join(part for part in (table.title, text_table.quantity_text(table, unit)) if part)
    return ('<div class="pivot"' + attributes(data_task=first.keys.get("task"),
                                              data_pass=first.keys.get("pass")) + ">"
            + sortable(title, head, body)
            + f'<p class="small">{escape(text_table.notes(table, "none", bool(bold)))}</p></div>')


def pivots(results):
    """[(quantity, its name, HTML)] of every quantity that was measured."""
    frame = results.everything.drop_duplicates("series")
    labels = dict(zip(frame["series"], frame["label"].where(frame["label"] != "", frame["method"])))
    found = []
    for quantity, name in QUANTITIES:
        try:
            tables = text_table.make(results, value=quantity)
        except UserError:  # no number of it
            continue
        if tables:
            found.append((quantity, name,
                          "".join(pivot_table(table, labels) for table in tables)))
    return found
