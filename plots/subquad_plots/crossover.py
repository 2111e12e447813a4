"""Crossover lengths of a view, as `subquad plot` has computed them (crossover.csv)."""

import math
from dataclasses import dataclass

import pandas as pd

from .units import length_text

INFINITE = float("inf")


@dataclass
class Crossover:
    outcome: str   # crossover, always, not_reached
    n: float       # NaN unless outcome is crossover
    low: float     # 0: below the smallest length; NaN: no interval
    high: float    # infinity: beyond the largest length; NaN: no interval
    min_n: float
    max_n: float


def number(text):
    return float(text) if text else float("nan")


def same(text, value):
    if isinstance(value, str):
        return text == value
    try:  # pandas reads some numbers one bit off
        return math.isclose(float(text), value, rel_tol=1e-12)
    except ValueError:
        return pd.isna(value) or value == -1


def of_view(table, view, quantity):
    """series -> Crossover of this view, from the rows of crossover.csv (or None)."""
    found = {}
    if table is None:
        return found
    keys = {"task": view.key["task"], "pass": view.pass_name, "n_kv": view.key["kv"],
            "task_params": view.key["task_split"], "cpu": view.key["cpu"]}
    keys.update({name: view.key[name]
                 for name in ("causal", "batch", "heads", "d_k", "d_v", "scale", "threads")})
    for _, row in table[table["quantity"] == quantity].iterrows():
        if not all(same(row[name], value) for name, value in keys.items()):
            continue
        interval = row["confidence"] != ""
        found[row["label"]] = Crossover(
            outcome=row["outcome"], n=number(row["n"]),
            low=(number(row["low_n"]) if row["low_n"] else 0.0) if interval else float("nan"),
            high=(number(row["high_n"]) if row["high_n"] else INFINITE) if interval
            else float("nan"),
            min_n=number(row["min_n"]), max_n=number(row["max_n"]))
    return found


def rounded(n):
    """A crossover is known to two or three digits at best."""
    return length_text(n) if n < 1000 and n == int(n) else f"{float(f'{n:.3g}'):.0f}"


def text(crossover):
    """'n = 812 [640, 1020]', 'always faster', 'not up to 8k'; for legends."""
    if crossover.outcome == "always":
        return "always"
    if crossover.outcome == "not_reached":
        return f"not up to {length_text(crossover.max_n)}"
    middle = f"{rounded(round(crossover.n))}"
    if crossover.low != crossover.low:
        return middle
    low = rounded(round(crossover.low)) if crossover.low > 0 else f"<{rounded(crossover.min_n)}"
    high = (rounded(round(crossover.high)) if crossover.high < INFINITE
            else f">{rounded(crossover.max_n)}")
    return f"{middle} [{low}, {high}]"
