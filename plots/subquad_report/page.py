"""Putting the page together. Everything that comes from a file is escaped here or in tables.py; data
for the script cannot end its element."""

import json
from collections import Counter
from html import escape
from pathlib import Path

from subquad_plots.units import bytes_text, length_text

from . import data
from .tables import cell, pivots, sortable, status_text

HERE = Path(__file__).resolve().parent
# Nothing but what is in the page itself may be loaded.
POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
          "base-uri 'none'; form-action 'none'")


def for_script(value):
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def section(name, title, content, lead=""):
    if not content:
        return ""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return (f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">'
            f"{escape(title)}</h2>{lead}{content}</section>")


# ---- summary ----

def first_values(rows, name):
    return sorted({value for value in rows[name] if value}) if name in rows else []


def subtitle(report):
    rows = report.counted
    cells, rounds = rows["cell_id"].nunique(), rows["round"].nunique()
    parts = first_values(rows, "cpu")[:2]
    threads = first_values(rows, "threads")
    if threads:
        parts.append(f"{', '.join(threads)} thread{'' if threads == ['1'] else 's'}")
    parts += [data.plural(len(rows), "row"), data.plural(cells, "cell"),
              data.plural(rounds, "round")]
    days = sorted({text[:10] for text in rows["started"] if text})
    if days:
        parts.append(days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")
    return " &middot; ".join(escape(part) for part in parts)


def status_bar(report):
    counts = Counter(report.counted["status"])
    total = sum(counts.values())
    known = [status for status in data.STATUSES if counts.get(status)]
    known += sorted(status for status in counts if status not in data.STATUSES)
    bar = "".join(f'<span class="{escape(status)}" style="flex-grow:{counts[status]}"></span>'
                  for status in known)
    buttons = "".join(
        f'<button type="button" class="count" data-status="{escape(status)}" '
        f'title="{escape(data.MEANING.get(status, ""))}">'
        f'<b>{counts[status]:,}</b> {status_text(status)}</button>' for status in known)
    return (f'<div class="bar" aria-hidden="true">{bar}</div>'
            f'<div class="counts" role="group" aria-label="Rows by status; each opens its rows">{buttons}</div>'
            f'<p class="small">{total:,} rows; of several attempts at one the last counts.</p>')


def method_table(report):
    body = []
    for label, method, family, oracle, counts in data.by_method(report):
        failed = sum(counts.get(status, 0) for status in data.FAILING)
        tag = ' <span class="tag">oracle</span>' if oracle else ""
        body.append(([f'<th scope="row">{escape(label)}{tag}</th>', cell(escape(method)),
                      cell(escape(family))]
                     + [cell(f"{count:,}" if count else "-", count,
                             css=f'"num {"bad" if bad and count else ""}"')
                        for count, bad in ((counts.get("ok", 0), False),
                                           (counts.get("unstable", 0), False),
                                           (counts.get("unsupported", 0), False), (failed, True))],
                     {"data_label": label}))
    head = [("label", False), ("method", False), ("family", False), ("ok", True),
            ("unstable", True), ("unsupported", True), ("failed", True)]
    return sortable("Rows by method", head, body)


def notices(report):
    if not report.notices:
        return ""
    return ('<div class="notices" role="note" aria-label="Notices"><ul>'
            + "".join(f"<li>{escape(text)}</li>" for text in report.notices) + "</ul></div>")


# ---- failures and flags ----

def lengths_text(lengths):
    if len(lengths) > 6:
        return f"{length_text(lengths[0])} to {length_text(lengths[-1])}"
    return ", ".join(length_text(n) for n in lengths)


def reasons_text(reasons):
    first = escape(reasons[0] or "no reason given")
    if len(reasons) == 1:
        return first
    rest = "".join(f"<li>{escape(text or 'no reason given')}</li>" for text in reasons[1:])
    return f"{first}<details><summary>{len(reasons) - 1} more</summary><ul>{rest}</ul></details>"


def problem_table(report):
    body = []
    for each in data.problems(report):
        status = escape(each["status"])
        button = (f'<button type="button" class="show" data-status="{status}" '
                  f'aria-label="Show the {each["rows"]} rows: {status}, {escape(each["label"])}">'
                  f'{each["rows"]:,}</button>')
        body.append(([cell(status_text(each["status"])),
                      f'<th scope="row">{escape(each["label"])}</th>', cell(escape(each["task"])),
                      cell(escape(each["pass"])),
                      cell(lengths_text(each["lengths"]),
                           each["lengths"][0] if each["lengths"] else 0),
                      cell(button, each["rows"], css="num"),
                      cell(reasons_text(each["reasons"]), css="reason")],
                     {"data_label": each["label"], "data_task": each["task"],
                      "data_pass": each["pass"]}))
    if not body:
        return '<p class="lead">Every row is ok.</p>'
    head = [("status", False), ("method", False), ("task", False), ("pass", False), ("n", True),
            ("rows", True), ("reason", False)]
    return sortable("Rows that are not ok, by kind", head, body, css="problems")


def flag_table(report):
    body = [([f'<th scope="row"><code>{escape(flag)}</code></th>',
              cell(f'<button type="button" class="show" data-flag="{escape(flag)}" aria-label="Show '
                   f'the {count} rows with the flag {escape(flag)}">{count:,}</button>', count,
                   css="num"),
              cell(escape(", ".join(labels)), css="reason")], {})
            for flag, count, labels in data.flags(report)]
    if not body:
        return '<p class="lead">No row has a flag.</p>'
    return sortable("Flags: doubts about single rows", [("flag", False), ("rows", True),
                                                        ("methods", False)], body)


# ---- figures and tables ----

def figure_html(number, each):
    return (f'<figure class="figure{" wide" if each.wide else ""}" id="figure-{number}">'
            f'<div class="drawing" tabindex="0" role="group" aria-label="Figure: {escape(each.kind)}">{each.svg}</div>'
            f'<figcaption><button type="button" class="enlarge" aria-label="Enlarge: '
            f'{escape(each.kind)}, {escape(each.view)}">Enlarge</button> {escape(each.caption)}'
            "</figcaption></figure>")


def figures_html(drawn):
    out, before = [], None
    for number, each in enumerate(drawn):
        if each.view != before:
            out.append(("</div></div>" if before is not None else "")
                       + f'<div class="view" data-task="{escape(each.task)}" '
                       f'data-pass="{escape(each.pass_name)}"><h3>{escape(each.view)}</h3>'
                       '<div class="figures">')
            before = each.view
        out.append(figure_html(number, each))
    return "".join(out) + ("</div></div>" if out else "")


def tables_html(results):
    found = pivots(results) if results is not None else []
    if not found:
        return ""
    radios = "".join(
        f'<label><input type="radio" name="quantity" value="{quantity}"'
        f'{" checked" if place == 0 else ""}><span>{escape(name)}</span></label>'
        for place, (quantity, name, _) in enumerate(found))
    return (f'<fieldset class="choice"><legend>Quantity</legend>{radios}</fieldset>'
            + "".join(f'<div class="quantity" data-quantity="{quantity}">{content}</div>'
                      for quantity, _, content in found))


def crossover_html(results):
    table = results.crossover if results is not None else None
    if table is None or table.empty or "text" not in table:
        return ""
    body = [([f'<th scope="row">{escape(row["label"])}</th>', cell(escape(row["quantity"])),
              cell(escape(row["task"])), cell(escape(row["pass"])), cell(escape(row["text"]))],
             {"data_label": row["label"], "data_task": row["task"], "data_pass": row["pass"]})
            for _, row in table.iterrows()]
    head = [(name, False) for name in ("method", "of", "task", "pass", "crossover")]
    return sortable("Lengths from which a method beats dense attention", head, body)


# ---- rows ----

ROWS = """
<noscript><p>The rows are listed by a script; they are also in results.csv.</p></noscript>
<div class="tools">
  <label class="search">Search <input type="search" id="search" placeholder="any text of a row"
    autocomplete="off" spellcheck="false"></label>
  <details class="menu" id="columns"><summary>Columns</summary><div class="panel"></div></details>
  <label>Rows per page <select id="size"><option>25</option><option selected>50</option>
    <option>100</option><option>500</option></select></label>
  <label class="check"><input type="checkbox" id="superseded"> earlier attempts too</label>
  <button type="button" id="download">Download as CSV</button>
</div>
<p id="found" class="small" role="status" aria-live="polite"></p>
<div class="scroll" tabindex="0" role="region" aria-label="Rows">
<table id="rows"><caption class="hidden">Rows of results.csv</caption><thead></thead><tbody></tbody>
</table></div>
<nav class="pages" aria-label="Pages of rows"><button type="button" id="first">First</button>
<button type="button" id="previous">Previous</button><span id="page" aria-live="polite"></span>
<button type="button" id="next">Next</button><button type="button" id="last">Last</button></nav>
"""


# ---- machine ----

def flattened(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flattened(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for place, inner in enumerate(value):
            yield from flattened(inner, f"{name}[{place}]")
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "unknown" if value is None else value


def machine_value(name, value):
    if name.endswith("_bytes") or name.endswith(".bytes"):
        if isinstance(value, (int, float)) and value >= 1024:
            return bytes_text(value)
    return str(value)


GLANCE = [("cpu.model", "processor"), ("cpu.cores", "cores"), ("cpu.logical", "logical processors"),
          ("memory.total_bytes", "memory"), ("system.os", "system"), ("system.kernel", "kernel"),
          ("system.host", "host"), ("build.compiler", "compiler"), ("build.type", "build"),
          ("build.flags", "flags"), ("build.git_revision", "revision"),
          ("threads.openmp_max", "threads")]


def facts(caption, pairs):
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
                    for name, value in pairs)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
            f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{lines}</tbody>'
            "</table></div>")


def machine_html(report):
    out = []
    for name, machine in report.machines:
        known = {key: machine_value(key, value) for key, value in flattened(machine)}
        glance = [(title, known[key]) for key, title in GLANCE if key in known]
        out.append(facts(name, glance) + f"<details><summary>All of {escape(name)}</summary>"
                   + facts(f"All of {name}", known.items()) + "</details>")
    return "".join(out)


def config_html(report):
    out = ""
    if report.record.get("command"):
        out += f'<p>Made by <code>{escape(str(report.record["command"]))}</code></p>'
    if report.config:
        out += ("<details><summary>config.resolved.yaml: runs again as it stands</summary>"
                f'<pre tabindex="0">{escape(report.config)}</pre></details>')
    return out


# ---- the page ----

def menu(name, title, values):
    """A filter by one column; all its boxes are ticked at first."""
    boxes = "".join(f'<label><input type="checkbox" value="{escape(value)}" checked> '
                    f"{escape(value)}</label>" for value in values)
    search = (f'<input type="search" class="narrow" aria-label="Find a {name}" placeholder="find">'
              if len(values) > 12 else "")
    return (f'<details class="menu filter" data-column="{name}"><summary>{title}: '
            f'<span class="chosen">all</span></summary><div class="panel"><div class="both">'
            f'<button type="button" class="all">All</button><button type="button" class="none">None'
            f"</button></div>{search}<fieldset><legend class=hidden>{title}</legend>{boxes}"
            "</fieldset></div></details>")


def make(report, drawn, glyphs, descriptions):
    """The text of the page."""
    rows = report.counted
    labels = [label for label, *_ in data.by_method(report)]
    sections = [
        ("summary", "Summary", status_bar(report) + method_table(report), ""),
        ("problems", "Failures and flags", problem_table(report) + flag_table(report), ""),
        ("figures", "Figures", figures_html(drawn),
         "Medians over rounds. Methods that the filter leaves out are faint."),
        ("tables", "Tables", tables_html(report.results) + crossover_html(report.results),
         "Medians over rounds; best of a column in bold, oracles apart. A click on a heading sorts."),
        ("rows-section", "Rows", ROWS, "Every row of results.csv. Choose one to see all of it."),
        ("machine", "Machine", machine_html(report), ""),
        ("config", "Config", config_html(report), ""),
    ]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>'
                    for name, title, content, _ in sections if content)
    filters = (menu("label", "Method", labels) + menu("task", "Task", first_values(rows, "task"))
               + menu("pass", "Pass", first_values(rows, "pass")))
    styles, dark, script = ((HERE / name).read_text(encoding="utf-8")
                            for name in ("page.css", "dark.css", "page.js"))
    styles = styles.replace("/* DARK */", "@media (prefers-color-scheme: dark) { "
                            f":root:not([data-theme=light]) {{ {dark} }} }}\n"
                            f":root[data-theme=dark] {{ {dark} }}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(report.name)} - subquad</title>
<style>
{styles}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
{glyphs.sprite() if glyphs.found else ""}
<header><div class="top"><div><p class="kicker">subquad results</p><h1>{escape(report.name)}</h1>
<p class="subtitle">{subtitle(report)}</p></div>
<button type="button" id="theme" aria-label="Theme: as the system has it">Theme: auto</button></div>
<nav class="sections" aria-label="Sections">{links}</nav></header>
<div id="filters" role="region" aria-label="Filters">{filters}
<button type="button" id="reset" disabled>Reset</button>
<span id="shown" class="small" role="status"></span></div>
<main id="main" tabindex="-1">
{notices(report)}
{"".join(section(*each) for each in sections)}
</main>
<dialog id="large" aria-label="Enlarged figure"><form method="dialog">
<button class="close">Close</button></form><div></div></dialog>
<script type="application/json" id="data">{for_script(data.rows_for_script(report, descriptions))}</script>
<script>
{script}</script>
</body>
</html>
"""
