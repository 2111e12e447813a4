"""Pivot tables of medians over rounds: one table per task, pass and set of sizes."""

import difflib
import math
from dataclasses import dataclass, field

import pandas as pd

from . import load, summary, training, views
from .errors import UserError

# What users call a column -> the column that keeps apart what may not be mixed.
AXIS_NAMES = {"label": "series", "task_params": "task_split"}
SIZES = ["n", "n_kv", "kv", "d_k", "d_v", "scale", "batch", "heads", "threads"]
INTERVAL = {"time_s": ("time_q25_s", "time_q75_s")}  # of one row; others have their value alone


@dataclass
class Cell:
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rounds: int = 0
    status: str = ""      # '' when measured, else why not: oom, timeout, ... or '' for not asked
    oracle: bool = False  # a bound, no competitor
    floor: bool = False   # what needs no attention
    keys: dict = field(default_factory=dict)  # column -> its only value, for CSV

    @property
    def measured(self):
        return math.isfinite(self.value)


@dataclass
class Table:
    title: str
    pass_name: str   # '' when the table holds several passes
    quantity: str    # as asked for: time_s, speedup, ...
    row_name: str    # as asked for: label, ...
    column_name: str
    rows: list       # values, in order
    columns: list
    cells: dict      # (row, column) -> Cell
    note: str        # machine, rounds, rows left out


def known_column(name, known, what):
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise UserError(f"--{what}: no column {name!r}; {hint}")


def with_speedup(results):
    """All rows with `speedup` over the baseline of the same view, round and machine."""
    parts = []
    for view in views.views(results):
        baseline = summary.baseline_series(view.rows, None)
        if baseline is None:
            continue
        pairs = summary.ratios(view.rows, "time_s", baseline).rename(columns={"ratio": "speedup"})
        base = view.rows[(view.rows["series"] == baseline) & (view.rows["time_s"] > 0)]
        parts += [base.assign(speedup=1.0), pairs]
    if not parts:
        raise UserError(f"--value: speedup needs rows of the method {summary.BASELINE!r}, and "
                        "there are none in this selection")
    found = pd.concat(parts, ignore_index=True)
    rest = results.frame[~results.frame["cell_id"].isin(found["cell_id"])]
    return pd.concat([found, rest], ignore_index=True)


def depends(frame, key, axis):
    """Whether a size is given by the axis: d_v that follows d_k makes no tables of its own."""
    if axis not in SIZES or key not in SIZES:
        return False
    return bool((frame.groupby(axis, dropna=False)[key].nunique(dropna=False) <= 1).all())


def split_columns(frame, row, column):
    """Columns that make separate tables."""
    keys = [key for key in views.KEYS if key not in (row, column)
            and (key in ("task", "pass") or frame[key].nunique(dropna=False) > 1)
            and not depends(frame, key, row) and not depends(frame, key, column)]
    for key in ("n", "series"):
        if key not in (row, column):
            cells = frame.groupby(keys + [row, column], dropna=False)[key]
            if (cells.nunique() > 1).any():  # a median over several lengths means nothing
                keys.append(key)
    return keys


def describe(key, value):
    if key in ("task", "series"):
        return value
    if key == "pass":
        return views.PASS_NAMES.get(value, value)
    return f"n = {value:g}" if key == "n" else views.describe(key, value)[1]


def order_of(values, axis, results):
    if axis == "series":
        known = {name: place for place, name in enumerate(results.series_order)}
        return sorted(values, key=lambda name: (known.get(name, len(known)), load.natural(name)))
    if axis == "method":
        order = list(results.everything.sort_values(
            "series", key=lambda column: column.map(results.series_order.index),
            kind="stable")["method"].unique())
        return sorted(values, key=lambda name: (order.index(name) if name in order
                                                else len(order), name))
    if all(isinstance(value, str) for value in values):
        return sorted(values, key=load.natural)
    return sorted(values)


def failure(rows):
    """'oom' when all rounds failed so, 'oom/timeout' when in several ways, '' for none."""
    failed = rows[rows["status"] != "unsupported"]["status"]
    return "/".join(failed.value_counts().index)


def make_cell(good, lost, value, columns):
    cell = Cell(keys={name: good[name].iloc[0] for name in columns
                      if len(good) and good[name].nunique(dropna=False) == 1})
    if good.empty:
        cell.status = failure(lost)
        cell.keys = {name: lost[name].iloc[0] for name in columns
                     if len(lost) and lost[name].nunique(dropna=False) == 1}
        return cell
    measured = good[good[value].notna()]
    if measured.empty:
        return cell
    low, high = INTERVAL.get(value, (value, value))
    cell.value = float(measured[value].mean() if training.is_quality(value)
                       else measured[value].median())
    cell.low = float(measured[low].fillna(measured[value]).min())
    cell.high = float(measured[high].fillna(measured[value]).max())
    cell.rounds = len(measured)
    cell.oracle = bool((measured["oracle"] == 1).all())
    return cell


def add_floors(table, rows, column, value, keys):
    """Rows below the methods: what the task says can be had without attention."""
    of_columns = {place: training.floors(part, value) for place, part in rows.groupby(column)}
    for name in sorted({name for found in of_columns.values() for name in found}):
        row = training.FLOOR + name
        table.rows.append(row)
        for place in table.columns:
            number = of_columns.get(place, {}).get(name, math.nan)
            table.cells[row, place] = Cell(number, number, number, floor=True,
                                           keys={**keys, "series": row, column: place})


def csv_keys(row, column):
    """Columns of a long table that say what a number is about."""
    keys = views.KEYS + ["series", "n"]
    return keys + [axis for axis in (row, column) if axis not in keys]


def make(results, rows="label", columns="n", value="time_s"):
    """The tables of a selection, see the head comment. `value` is a column or 'speedup'."""
    axes_known = sorted(set(load.NUMERIC + load.TEXT) & set(results.frame.columns))
    known_column(rows, axes_known, "rows")
    known_column(columns, axes_known, "columns")
    known_column(value, ["speedup"] + load.NUMERIC, "value")
    if rows == columns:
        raise UserError(f"--rows and --columns are both {rows!r}; expected two columns")
    row, column = AXIS_NAMES.get(rows, rows), AXIS_NAMES.get(columns, columns)
    frame = with_speedup(results) if value == "speedup" else results.frame.copy()
    if not frame[value].notna().any():
        raise UserError(f"{results.directory}: no number in column {value!r} of this selection")
    asked, how = frame, {}
    if training.is_quality(value):
        frame, how = training.chosen(frame, value, decoded=True)
    lost = results.dropped.copy()
    fill = {"causal": 0.0}
    for part in (frame, lost):
        for name in {row, column, *views.KEYS} & set(load.NUMERIC):
            part[name] = part[name].fillna(fill.get(name, -1))
    keys = split_columns(frame, row, column)
    tables = []
    for key, here in frame.groupby(keys or (lambda _: 0), sort=True):
        chosen = dict(zip(keys, key if isinstance(key, tuple) else (key,)))
        failed = lost
        for name, wanted in chosen.items():
            failed = failed[failed[name] == wanted]
        if not here[value].notna().any():
            continue
        shown = failed[failed["status"] != "unsupported"]
        table = Table(
            title=", ".join(describe(*item) for item in chosen.items()),
            pass_name=chosen.get("pass", ""), quantity=value, row_name=rows, column_name=columns,
            rows=order_of(set(here[row]) | set(shown[row]), row, results),
            columns=order_of(set(here[column]) | set(shown[column]), column, results),
            cells={}, note="; ".join(part for part in (
                summary.provenance(here, failed),
                training.choice_note(asked, {s: how[s] for s in how if s in set(here["series"])}),
                training.seeds_text(here) if training.is_quality(value) else "") if part))
        good_cells = dict(list(here.groupby([row, column])))
        lost_cells = dict(list(failed.groupby([row, column])))
        for place in [(r, c) for r in table.rows for c in table.columns]:
            cell = make_cell(good_cells.get(place, here[:0]), lost_cells.get(place, failed[:0]),
                             value, csv_keys(row, column))
            cell.keys.update({**chosen, row: place[0], column: place[1]})
            table.cells[place] = cell
        if training.is_quality(value) and row == "series":
            add_floors(table, here, column, value, chosen)
        tables.append(table)
    return tables
