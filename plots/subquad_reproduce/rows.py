"""Rows of a results directory, the selections that expectations make of them, and the numbers of a
selection with their intervals over rounds."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from subquad_plots import load, summary, training, views
from subquad_plots.errors import UserError

from . import integrity
from .expectation import METRIC

BROKEN = ("wrong", "crash", "error")  # what says that the method is at fault, not the machine
TIMES = ("time_s", "tokens_per_s", "gflops")  # what the machine's noise changes from round to round
PARAMETERS = ("method_params", "task_params", "train_params")
# Rows that differ in one of these are different settings: no median over them.
SETTING = ["series"] + [key for key in views.KEYS if key != "cpu"]


@dataclass
class Run:
    """results: what counts. lost: failed and unstable rows. rounds: of the plan. absent: rows of the
    plan that are not there, as (cell_id, round)."""

    results: load.Results
    lost: pd.DataFrame
    rounds: int
    absent: list


@dataclass
class Point:
    value: float
    low: float
    high: float
    rounds: int


class Nothing(Exception):
    """A selection without a number. `broken`: because the method is at fault; `unsupported`: it does
    not have this combination."""

    def __init__(self, text, broken=False, unsupported=False):
        super().__init__(text)
        self.broken, self.unsupported = broken, unsupported


def read(directory, include_unstable=False, allow_mixed=False):
    """The Run of a directory, after the checks of integrity.py."""
    path = Path(directory) / "results.csv"
    integrity.check_lines(path)
    rows = load.with_types(load.read_rows(path)).drop_duplicates(["cell_id", "round"], keep="last")
    rounds, absent = integrity.missing_rows(directory, rows)
    if not allow_mixed and len(rows):
        integrity.check_machines(rows, path)
    wanted = ["ok", "unstable"] if include_unstable else ["ok"]
    if rows["status"].isin(wanted).any():
        results = load.load(directory, include_unstable=include_unstable, allow_mixed=allow_mixed,
                            stream=io.StringIO())
    else:  # nothing to show is a verdict here, not an error
        lost = load.prepare(rows)
        empty = lost[:0]
        results = load.Results(Path(directory), empty, lost, empty)
    return Run(results, results.dropped, rounds, absent)


# ---- selections ----

def plain(value):
    """As parameters are written in results.csv."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def equals(column, value):
    """Mask of the entries (text or number) that are the wanted value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return pd.to_numeric(column, errors="coerce") == float(value)
    return column.astype(str) == plain(value)


def parameter(rows, key):
    """Column of one parameter, of the method, its task or its training; None where it is missing."""
    found = pd.Series([None] * len(rows), index=rows.index, dtype=object)
    for name in PARAMETERS:
        values = [load.parse_params(text).get(key) for text in rows[name]]
        found = found.where(found.notna(), pd.Series(values, index=rows.index, dtype=object))
    return found


def column_of(rows, key):
    return rows[key] if key in rows.columns else parameter(rows, key)


def bounds(text):
    """(low, high) of '1024..4096', or None."""
    low, dots, high = str(text).partition("..")
    try:
        return (float(low), float(high)) if dots else None
    except ValueError:
        return None


def matching(rows, where):
    """Rows that match all keys; min and max mean the extremes of what the other keys leave."""
    extremes = {}
    for key, values in where.items():
        if values in (["min"], ["max"]):
            extremes[key] = values[0]
            continue
        column = column_of(rows, key)
        mask = pd.Series(False, index=rows.index)
        for value in values:
            span = bounds(value)
            if span:
                numbers = pd.to_numeric(column, errors="coerce")
                mask |= (numbers >= span[0]) & (numbers <= span[1])
            else:
                mask |= equals(column, value)
        rows = rows[mask]
    for key, which in extremes.items():
        numbers = pd.to_numeric(column_of(rows, key), errors="coerce")
        rows = rows[numbers == (numbers.min() if which == "min" else numbers.max())]
    return rows


def describe(where):
    return ", ".join(f"{key} = {'|'.join(plain(value) for value in values)}" if key != "label"
                     else "|".join(plain(value) for value in values)
                     for key, values in where.items())


def with_value(rows, name):
    """Rows with the column `name`, taken apart from method_metrics where it is one of them."""
    if not name.startswith(METRIC):
        return rows
    key = name[len(METRIC):]
    texts = [load.parse_params(text).get(key) for text in rows["method_metrics"]]
    return rows.assign(**{name: pd.to_numeric(pd.Series(texts, index=rows.index, dtype=object),
                                              errors="coerce").astype(float)})


def timed(value):
    """Whether a disturbed machine changes this number. Of a method's own metrics nobody knows."""
    return (value.endswith("_s") or value.startswith(METRIC) or
            value in ("gflops", "spread", "fraction_of_peak", "fraction_of_bandwidth"))


def select(run, where, value, place):
    """Rows with a number in `value` that match, of one setting (but any n, seed and round).
    Nothing when there are none, and why. What does not hang on time counts in unstable rows too."""
    frame = run.results.frame
    if not timed(value):
        unstable = run.lost[run.lost["status"] == "unstable"]
        frame = pd.concat([frame, unstable[frame.columns]]) if len(unstable) else frame
    chosen = matching(frame, where)
    chosen = with_value(chosen, value)
    chosen = chosen[chosen[value].notna()]
    if training.is_quality(value) and len(chosen):
        chosen, _ = training.chosen(chosen, value, decoded=True)
    if chosen.empty:
        raise why_nothing(run, where)
    mixed = [key for key in SETTING if chosen[key].nunique(dropna=False) > 1]
    if mixed:
        examples = sorted(str(each) for each in chosen[mixed[0]].unique())[:3]
        raise UserError(f"{place}: {describe(where)} selects several settings, which differ in "
                        f"{', '.join(mixed)} ({', '.join(examples)}); narrow it")
    return chosen


def why_nothing(run, where):
    lost = matching(run.lost, where) if len(run.lost) else run.lost
    if lost.empty:
        return Nothing(f"no row: {describe(where)}")
    status = lost["status"].value_counts().index[0]
    for bad in BROKEN:  # one round that is wrong says more than two that were unstable
        if (lost["status"] == bad).any():
            status = bad
    reason = next((text for text in lost.loc[lost["status"] == status, "reason"] if text), "")
    return Nothing(f"{describe(where)}: {load.count_text(lost)}" + (f": {reason}" if reason else ""),
                   status in BROKEN, status == "unsupported")


# ---- numbers ----

def points(rows, value):
    """{n: Point}: median over rounds and seeds, of trained models the mean; the interval is the
    range over rounds (times: of their quartiles)."""
    if training.is_quality(value):
        table = training.points(rows, value)
    else:
        low, high = ("time_q25_s", "time_q75_s") if value == "time_s" else (None, None)
        table = summary.medians(rows, value, low, high)
    return {line.n: Point(line.value, line.low, line.high, int(line.rounds))
            for line in table.itertuples(index=False)}


def ratio_points(rows, base, value):
    """{n: Point} of rows / base, formed within each round, seed, machine and build. Selections of
    one length each may differ in it; the key is then that of `rows`."""
    lengths = sorted(rows["n"].unique())
    rows, base = rows.assign(series="of"), base.assign(series="to")
    if len(lengths) == 1 and base["n"].nunique() == 1:
        base = base.assign(n=lengths[0], kv=rows["kv"].iloc[0])
    both = pd.concat([rows, base], ignore_index=True)
    pairs = summary.ratios(both, value, "to")  # base / rows
    found = {}
    for n, part in pairs.groupby("n"):
        ratios = 1 / part["ratio"].to_numpy()
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            found[n] = Point(float(np.median(ratios)), float(ratios.min()), float(ratios.max()),
                             len(ratios))
    return found


def enough_rounds(run, found, value, what):
    """A time that one round alone has measured decides nothing where the plan asks for several."""
    alone = [n for n, point in found.items() if point.rounds < 2]
    if value in TIMES and run.rounds > 1 and alone:
        where = ", ".join(f"{n:g}" for n in sorted(alone))
        raise Nothing(f"1 of {run.rounds} rounds is stable at n = {where}: {what}")
