"""Medians over rounds, and ratios to the baseline, of the rows of one view."""

import numpy as np
import pandas as pd

from .load import count_text

BASELINE = "dense"
# Two rows form a ratio only when they agree in these: one round of one machine and build.
PAIR = ["n", "kv", "round", "seed", "cpu", "host", "build_id"]
EXACT_BELOW = 1e-5  # relative error that float32 rounding explains; the tests' tolerance


def medians(rows, column, low=None, high=None):
    """Per series and n: the median of `column` over rounds and seeds, and an interval: from the
    smallest `low` to the largest `high` (default: of the column itself).
    -> frame with series, n, value, low, high, rounds; sorted by n; without missing values."""
    rows = rows[rows[column].notna()]
    if rows.empty:
        return pd.DataFrame(columns=["series", "n", "value", "low", "high", "rounds"])
    lows = rows[low].fillna(rows[column]) if low else rows[column]
    highs = rows[high].fillna(rows[column]) if high else rows[column]
    table = pd.DataFrame({"series": rows["series"], "n": rows["n"], "value": rows[column],
                          "low": lows, "high": highs})
    grouped = table.groupby(["series", "n"], sort=True)
    out = grouped.agg(value=("value", "median"), low=("low", "min"), high=("high", "max"),
                      rounds=("value", "size"))
    return out.reset_index()


def baseline_series(rows, order):
    """The series that the others are compared with, or None."""
    of_baseline = set(rows.loc[rows["method"] == BASELINE, "series"])
    if BASELINE in of_baseline:
        return BASELINE
    return min(of_baseline) if of_baseline else None


def ratios(rows, column, baseline):
    """baseline / method of `column`, one per series, n and round -> frame with series, n, ratio."""
    rows = rows[rows[column] > 0]
    base = rows[rows["series"] == baseline].drop_duplicates(PAIR, keep="last")
    rest = rows[rows["series"] != baseline]
    both = rest.merge(base[PAIR + [column]], on=PAIR, suffixes=("", "_baseline"))
    both["ratio"] = both[f"{column}_baseline"] / both[column]
    return both


def is_exact(rows):
    """Series whose error is rounding only, judged by all their rows of this view."""
    judged = rows[rows["rel_error"].notna()].groupby("series")["rel_error"].max()
    return set(judged.index[judged <= EXACT_BELOW])


def of_kind(rows, column, value):
    """Series whose rows say so, e.g. oracle = 1."""
    return set(rows.loc[rows[column] == value, "series"])


def positive_floor(values, fallback):
    """A place for zeros on a logarithmic axis: half of the smallest positive value."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    return values.min() / 2 if len(values) else fallback


def provenance(rows, dropped):
    """'AMD EPYC; 2 threads; 3 rounds; left out: 2 unstable': stands below figures and tables."""
    cpus = sorted(cpu for cpu in rows["cpu"].unique() if cpu) or ["unknown machine"]
    threads = sorted(int(count) for count in rows["threads"].dropna().unique() if count > 0)
    rounds = int(rows.groupby("cell_id")["round"].nunique().max())
    parts = [" / ".join(cpus)]
    if threads:
        parts.append(f"{', '.join(map(str, threads))} thread{'' if threads == [1] else 's'}")
    parts.append(f"{rounds} round{'' if rounds == 1 else 's'}")
    lost = dropped[dropped["status"] != "unsupported"]
    if len(lost):
        parts.append(f"left out: {count_text(lost)}")
    unstable = int((rows["status"] == "unstable").sum())
    if unstable:
        parts.append(f"with {unstable} unstable row{'' if unstable == 1 else 's'}")
    return "; ".join(parts)
