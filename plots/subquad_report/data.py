"""What the page is made of: all rows of a results directory, the machine, and what is wrong with
either. Nothing here refuses: what is doubtful becomes a notice on the page."""

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from subquad_plots import load
from subquad_plots.errors import UserError
from subquad_reproduce import integrity

FAILING = ("wrong", "crash", "error", "oom", "timeout", "interrupted")
STATUSES = ("ok", "unstable", "unsupported") + FAILING
MEANING = {
    "ok": "measured and checked",
    "unstable": "measured, but something is doubtful; tables and figures leave it out",
    "unsupported": "the method does not have this combination; nothing was run",
    "wrong": "NaN, output left untouched, inputs written, or an exact method beyond its tolerance",
    "oom": "out of memory", "timeout": "still running after the time limit",
    "crash": "the worker ended without a whole answer",
    "error": "the method threw an exception",
    "interrupted": "ended by the user; the next run does it again",
}
MAIN = ["status", "label", "task", "pass", "n", "round", "time_s", "spread", "peak_bytes",
        "rel_error", "accuracy", "bits", "flags"]


@dataclass
class Report:
    """rows: every row as text, in the order of the file, with the column `superseded`.
    results: what figures and tables are made of, or None and a notice why."""

    directory: Path
    rows: pd.DataFrame
    results: load.Results = None
    machines: list = field(default_factory=list)  # (name of the file, dict)
    notices: list = field(default_factory=list)   # sentences
    record: dict = field(default_factory=dict)    # of reproduce.json
    config: str = ""

    @property
    def name(self):
        return self.directory.resolve().name

    @property
    def counted(self):
        return self.rows[~self.rows["superseded"]]


def read_json(path, notices):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notices.append(f"{path.name} cannot be read: {error}")
        return {}


def read_text(path, limit=200_000):
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:limit]
    except OSError:
        return ""


def plural(count, what):
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def look_for_damage(directory, rows, notices):
    """Torn and edited lines, rows of the plan that are missing, several machines."""
    try:
        integrity.check_lines(directory / "results.csv")
    except UserError as error:
        notices.append(f"Damaged: {error}")
    try:
        typed = rows.assign(round=pd.to_numeric(rows["round"], errors="coerce").fillna(0))
        _, absent = integrity.missing_rows(directory, typed)
        if absent:
            notices.append(f"{plural(len(absent), 'row')} of the plan {'is' if len(absent) == 1 else 'are'} "
                           "not there; the run is not complete")
    except UserError as error:
        notices.append(f"Damaged: {error}")
    data = (directory / "results.csv").read_bytes()
    if not data.endswith(b"\n"):
        notices.append("The last line of results.csv has no end: a row was being written. It is "
                       "not shown")
    for column, what in (("cpu", "CPU models"), ("build_id", "builds"), ("host", "hosts")):
        values = sorted({value for value in rows[column] if value}) if column in rows else []
        if len(values) > 1:
            notices.append(f"Rows of {len(values)} {what}: {', '.join(values)}. Their times are "
                           "not comparable")


def read(directory, include_unstable=False, allow_mixed=False):
    """The Report of a directory. UserError when there is no results.csv with a row."""
    directory = Path(directory)
    rows = load.read_rows(directory / "results.csv").fillna("").reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{directory / 'results.csv'}: no rows in it")
    for name in load.TEXT:
        if name not in rows:
            rows[name] = ""
    rows["label"] = rows["label"].where(rows["label"] != "", rows["method"])
    rows["superseded"] = rows.duplicated(["cell_id", "round"], keep="last")
    report = Report(directory, rows)
    look_for_damage(directory, report.counted, report.notices)
    try:
        report.results = load.load(directory, include_unstable=include_unstable,
                                   allow_mixed=allow_mixed, stream=io.StringIO())
    except UserError as error:
        report.notices.append(f"No figures and tables: {error}")
    for path in sorted(directory.glob("machine*.json")):
        found = read_json(path, report.notices)
        if found:
            report.machines.append((path.name, found))
    if not report.machines:
        report.notices.append("There is no machine.json: nothing says where this was measured")
    report.record = read_json(directory / "reproduce.json", report.notices)
    report.config = read_text(directory / "config.resolved.yaml")
    return report


# ---- failures and flags ----

def alike(reason):
    """Reasons that differ in numbers alone are one kind."""
    return re.sub(r"\d+(\.\d+)?([eE][+-]?\d+)?", "#", reason)


def problems(report):
    """Groups of rows that are not ok -> [{status, label, task, pass, reasons, rows, lengths}], most
    serious first; `reasons` are all different texts."""
    rows = report.counted[report.counted["status"] != "ok"]
    rows = rows.assign(kind=[alike(text) for text in rows["reason"]])
    found = []
    for (status, label, task, name, _), part in rows.groupby(
            ["status", "label", "task", "pass", "kind"], sort=True):
        lengths = sorted({int(float(n)) for n in part["n"] if n.replace(".", "", 1).isdigit()})
        found.append({"status": status, "label": label, "task": task, "pass": name,
                      "reasons": list(part["reason"].unique()), "rows": len(part),
                      "lengths": lengths})
    rank = {status: place for place, status in
            enumerate(FAILING + ("unstable", "unsupported", "ok"))}
    return sorted(found, key=lambda each: (rank.get(each["status"], -1), -each["rows"]))


def flags(report):
    """[(flag, rows, labels)], most frequent first."""
    seen = {}
    for text, label in zip(report.counted["flags"], report.counted["label"]):
        for flag in filter(None, text.split(";")):
            seen.setdefault(flag, []).append(label)
    return sorted(((flag, len(labels), sorted(set(labels), key=load.natural))
                   for flag, labels in seen.items()), key=lambda each: (-each[1], each[0]))


def by_method(report):
    """[(label, method, family, oracle, {status: rows})] in the order of the figures."""
    order = {}
    if report.results is not None:
        frame = report.results.everything.drop_duplicates("series").set_index("series")
        for series in report.results.series_order:
            order.setdefault(frame.loc[series, "label"], len(order))
    found = []
    for label, part in report.counted.groupby("label", sort=True):
        first = part.iloc[0]
        found.append((label, first["method"], first["family"], str(first.get("oracle", "")) == "1",
                      part["status"].value_counts().to_dict()))
    return sorted(found, key=lambda each: (order.get(each[0], len(order)), load.natural(each[0])))


# ---- rows for the script of the page ----

def kind_of(name):
    if name.endswith("_bytes"):
        return "bytes"
    if name.endswith("_s") and name != "tokens_per_s":
        return "time"
    return "number" if name in load.NUMERIC else "text"


def column(values):
    """Text that repeats is stored once: {'dict': [...], 'index': [...]}; else {'values': [...]}."""
    different = list(dict.fromkeys(values))
    if len(different) * 2 <= len(values):
        place = {value: number for number, value in enumerate(different)}
        return {"dict": different, "index": [place[value] for value in values]}
    return {"values": list(values)}


def rows_for_script(report, descriptions):
    """Columns with anything in them, those shown first in front; rows by task, pass, method, n and
    round."""
    order = {label: place for place, (label, *_) in enumerate(by_method(report))}
    rows = report.rows.assign(
        method_place=report.rows["label"].map(order),
        **{f"{name}_number": pd.to_numeric(report.rows[name], errors="coerce")
           for name in ("n", "round", "attempt") if name in report.rows})
    keys = ["task", "pass", "task_params", "method_place", "method_params", "n_number",
            "round_number", "attempt_number"]
    rows = rows.sort_values([key for key in keys if key in rows], kind="stable")
    present = [name for name in report.rows.columns if name not in ("superseded", "line_crc")
               and (rows[name] != "").any()]
    main = [name for name in MAIN if name in present]
    names = main + [name for name in present if name not in main]
    return {"rows": len(rows), "superseded": [int(value) for value in rows["superseded"]],
            "columns": [{"name": name, "kind": kind_of(name), "shown": name in main,
                         "about": descriptions.get(name, ""),
                         **column([str(value) for value in rows[name]])}
                        for name in names]}


def column_descriptions(root):
    """{column: meaning} from the page that documents the columns, where it is at hand."""
    text = read_text(Path(root) / "results" / "README.md")
    found = re.findall(r"^\| `([a-z0-9_]+)` \| (?:runner|worker) \| (.*) \|$", text, re.MULTILINE)
    return {name: meaning.replace("`", "").replace("\\|", "|") for name, meaning in found}
