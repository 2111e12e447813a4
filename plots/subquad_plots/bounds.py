"""What the figures of bounds share: which oracle bounds which curves, in which column."""

from dataclasses import dataclass

import pandas as pd

from . import summary

LABELS = {"matrix_error": "relative matrix error", "row_tv": "total variation of rows"}
WHAT = {"matrix_error": "relative Frobenius error of the attention matrix",
        "row_tv": "mean total variation of the rows of the attention matrix"}


@dataclass
class Bound:
    """One oracle and all that it bounds, in one view."""

    oracle: str         # method
    column: str         # of results.csv, in which it is a bound
    rows: pd.DataFrame  # of the oracle and of what it bounds
    budgets: dict       # series -> keys per query (the largest over n)

    def of_oracle(self):
        """Series of the oracle that are bounds in this column."""
        own = self.rows[(self.rows["method"] == self.oracle)
                        & (self.rows["bounds_in"] == self.column)]
        return set(own["series"])

    def of_others(self):
        return set(self.rows.loc[self.rows["method"] != self.oracle, "series"])


def names(text):
    return [name for name in text.split(";") if name]


def usable(rows, column):
    """Rows with a value. A Frobenius error is bounded over whole matrices only."""
    rows = rows[rows[column].notna() & rows["keys_per_query"].notna()]
    if column == "matrix_error":
        whole = rows["batch"].fillna(1) * rows["heads"].fillna(1) * rows["n"]
        rows = rows[rows["matrix_rows"] >= whole]
    return rows


def find(view):
    """The bounds of a view: an oracle at least, and something that it bounds."""
    found = []
    of_oracles = view.rows[view.rows["bounds_in"].isin(list(LABELS))]
    for oracle, column in sorted(set(zip(of_oracles["method"], of_oracles["bounds_in"]))):
        rows = usable(view.rows, column)
        own = (rows["method"] == oracle) & (rows["bounds_in"] == column)
        bounded = rows["bounded_by"].map(lambda text, name=oracle: name in names(text))
        rows = rows[own | bounded]
        if not own.any() or not bounded.any():
            continue
        budgets = rows.groupby("series")["keys_per_query"].max().to_dict()
        found.append(Bound(oracle, column, rows, budgets))
    return sorted(found, key=lambda bound: (bound.column != "row_tv", bound.oracle))


def one_budget(bound):
    """The budget of the oracle that most methods share, controls aside (of several, one at which it
    is exact at the fewest lengths, then the largest), and the series to draw beside it: of every
    method the one with the largest budget up to it."""
    methods = bound.rows.drop_duplicates("series").set_index("series")["method"]
    own, others, table = bound.of_oracle(), bound.of_others(), medians(bound)
    controls = summary.of_kind(bound.rows, "approximates", "nothing")
    lengths = table[table["value"] > summary.EXACT_BELOW].groupby("series")["n"].nunique()
    best = max(own, key=lambda series: (
        sum(bound.budgets[other] == bound.budgets[series] for other in others - controls),
        lengths.get(series, 0), bound.budgets[series]))
    limit, chosen = bound.budgets[best], {}
    for series in sorted(others, key=lambda one: bound.budgets[one]):
        if bound.budgets[series] <= limit:
            chosen[methods[series]] = series
    return limit, best, list(chosen.values())


def medians(bound):
    return summary.medians(bound.rows, bound.column)
