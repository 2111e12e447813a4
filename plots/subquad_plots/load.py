"""Reading a run directory: results.csv and crossover.csv.

Of several rows of one cell and round the last counts. Rows that failed are left out, unstable ones
too unless asked for; how many and why is kept in Results.dropped and said in every figure.
"""

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import UserError

# Columns with numbers; an empty or unreadable field is NaN.
NUMERIC = [
    "round", "attempt", "causal", "batch", "heads", "n", "n_kv", "d_k", "d_v", "scale", "threads",
    "oracle", "time_s", "time_min_s", "time_max_s", "time_q25_s", "time_q75_s", "spread",
    "repetitions", "iterations", "setup_s", "fit_s", "fit_steps", "tokens_per_s", "gflops",
    "peak_bytes", "analytic_bytes", "timed_allocs", "vm_hwm_bytes", "keys_per_query",
    "state_bytes", "kv_bytes", "aux_bytes", "cold_bytes", "rel_error", "max_error", "cosine",
    "error_rows", "error_rows_total", "kl", "topk_mass", "topk", "context_switches", "steal_s",
    "mhz", "calibration_before", "calibration_after", "wall_s", "matrix_error", "row_tv",
    "matrix_rows",
    "fma_peak_gflops", "fraction_of_peak", "bandwidth_gbs", "fraction_of_bandwidth",
    "accuracy", "loss", "bits", "perplexity", "validation_accuracy", "validation_loss",
    "best_accuracy", "steps", "best_step", "half_step", "parameters", "fit_first_loss",
    "fit_last_loss", "recall_topk", "mass_recall", "row_error", "token_p50_s", "token_p95_s",
    "waited_s",
]
TEXT = [
    "cell_id", "status", "reason", "method", "label", "method_params", "family", "approximates",
    "task", "task_params", "pass", "seed", "error_of", "method_metrics", "flags", "build",
    "build_id", "cpu", "host", "started", "command", "bounds_in", "bounded_by",
    "train_params", "evaluation", "stopped", "floors", "fit_params", "learned_from",
    "placement",
]
REQUIRED = ["cell_id", "round", "status", "method", "task", "pass", "n"]


@dataclass
class Results:
    """Rows that count. frame has the columns of results.csv and `series`, the name of a curve,
    `kv` and `task_split`, see prepare()."""

    directory: Path
    frame: pd.DataFrame
    dropped: pd.DataFrame
    everything: pd.DataFrame  # all rows that count, whatever tasks and passes are selected
    crossover: pd.DataFrame = None  # rows of crossover.csv, or None
    series_order: list = field(default_factory=list)  # of all series


def read_rows(path):
    """The rows of a results file as text. A tail without newline is an unfinished write."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a directory that `subquad run` has "
                        "written") from error
    text = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace")
    if not text.strip():
        raise UserError(f"{path}: no complete line in it")
    try:
        rows = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, ValueError) as error:
        raise UserError(f"{path}: not a results file: {error}") from error
    missing = [name for name in REQUIRED if name not in rows.columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected the columns of a "
                        "results file")
    return rows


def with_types(rows):
    columns = {name: rows[name] for name in rows.columns}
    for name in TEXT:
        columns[name] = rows[name].fillna("") if name in rows else ""
    for name in NUMERIC:
        values = pd.to_numeric(rows[name], errors="coerce") if name in rows else np.nan
        values = pd.Series(values, index=rows.index, dtype=float)
        columns[name] = values.replace([np.inf, -np.inf], np.nan)
    return pd.DataFrame(columns, index=rows.index)


def parse_params(text):
    """'a=1;b=2' -> {'a': '1', 'b': '2'}"""
    pairs = (part.partition("=") for part in text.split(";") if part)
    return {key: value for key, _, value in pairs}


def several_values(frame, owner, column):
    """(owner, key) of the parameters that take several values at one length. Those that only
    change along with n do not make separate curves. The same rule as in crossover.csv."""
    seen, keys = {}, set()
    for who, n, text in frame[[owner, "n", column]].drop_duplicates().itertuples(index=False):
        for key, value in parse_params(text).items():
            values = seen.setdefault((who, key, n), set())
            values.add(value)
            if len(values) > 1:
                keys.add((who, key))
    return keys


def selected_params(who, text, keys, separator):
    params = sorted(parse_params(text).items())
    return separator.join(f"{key}={value}" for key, value in params if (who, key) in keys)


def prepare(frame, reference=None):
    """Adds the columns that name curves and what they are drawn for. `reference`: the rows that
    say which parameters matter, so that a failed row has the name of its curve."""
    frame, reference = frame.copy(), frame if reference is None else reference
    method_keys = several_values(reference, "label", "method_params")
    task_keys = several_values(reference, "task", "task_params")
    series, split = [], []
    for label, method, params, task, task_params in zip(
            frame["label"], frame["method"], frame["method_params"], frame["task"],
            frame["task_params"]):
        extra = selected_params(label, params, method_keys, " ")
        series.append(" ".join(part for part in (label or method, extra) if part))
        split.append(selected_params(task, task_params, task_keys, ";"))
    frame["series"] = series
    frame["task_split"] = split
    same = (frame["n_kv"] == frame["n"]) | frame["n_kv"].isna()
    frame["kv"] = np.where(same, "n", frame["n_kv"].map("{:.0f}".format))
    return frame


def series_order(frame):
    """Baseline first, then exact methods, then the rest by family; oracles and controls last."""
    def rank(row):
        family_rank = {"exact": 0, "oracle": 8}.get(row.family, 1)
        if row.oracle == 1:
            family_rank = 8
        if row.approximates == "nothing":
            family_rank = 9
        return (row.method != "dense", family_rank, row.family, row.method, natural(row.series))
    kinds = frame[["series", "method", "family", "oracle", "approximates"]]
    kinds = kinds.drop_duplicates("series")
    return [row.series for row in sorted(kinds.itertuples(index=False), key=rank)]


def natural(text):
    """Sort key by which window=64 comes before window=128."""
    parts, digits = [], ""
    for char in text + "\0":
        if char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((1, int(digits), ""))
            digits = ""
        parts.append((0, 0, char))
    return parts


def refuse_mixed(frame, path):
    for column, what in (("cpu", "CPU models"), ("build_id", "builds")):
        values = sorted(value for value in frame[column].unique() if value)
        if len(values) > 1:
            raise UserError(f"{path}: rows of {len(values)} {what} ({', '.join(values)}); they are "
                            "not comparable, pass --allow-mixed to draw them together")


def refuse_debug(frame, path):
    builds = sorted(text for text in frame["build"].unique()
                    if text and not text.lower().startswith("rel"))
    if builds:
        raise UserError(f"{path}: timed with a build that is not a release build "
                        f"({', '.join(builds)}); pass --allow-mixed to use it all the same")


def only(frame, column, wanted):
    """Keeps the rows with one of the wanted values; an unknown value is an error."""
    if not wanted:
        return frame
    known = sorted(frame[column].unique())
    for value in wanted:
        if value not in known:
            raise UserError(f"no {column} {value!r} in these results; there is "
                            f"{', '.join(known) or 'none'}")
    return frame[frame[column].isin(wanted)]


def count_text(rows):
    """'2 timeout, 1 unstable', most frequent first."""
    return ", ".join(f"{count} {status}" for status, count in rows["status"].value_counts().items())


def report_dropped(dropped, stream):
    if dropped.empty:
        return
    print(f"left out {len(dropped)} of the rows: {count_text(dropped)}", file=stream)
    for (status, method), rows in dropped.groupby(["status", "method"], sort=True):
        reasons = [reason for reason in rows["reason"].unique() if reason]
        why = reasons[0] if reasons else "no reason given"
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        print(f"  {status}: {method}: {len(rows)} rows: {why}{more}", file=stream)


def read_crossover(directory):
    """crossover.csv, if there is one that is not older than the results."""
    path = Path(directory) / "crossover.csv"
    try:
        if path.stat().st_mtime < (Path(directory) / "results.csv").stat().st_mtime:
            return None
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError):
        return None


def load(directory, tasks=(), passes=(), include_unstable=False, allow_mixed=False,
         stream=sys.stderr):
    """The rows of a run directory that figures and tables are made of, see the head comment."""
    path = Path(directory) / "results.csv"
    rows = with_types(read_rows(path))
    if rows.empty:
        raise UserError(f"{path}: no rows in it")
    rows = rows.drop_duplicates(["cell_id", "round"], keep="last")
    everything = rows
    rows = only(only(rows, "task", tasks), "pass", passes)
    wanted = ["ok", "unstable"] if include_unstable else ["ok"]
    dropped = rows[~rows["status"].isin(wanted)]
    report_dropped(dropped, stream)
    good = everything[everything["status"].isin(wanted) & (everything["n"] > 0)]
    prepared = prepare(good)
    frame = prepared[prepared.index.isin(rows.index)].reset_index(drop=True)
    if frame.empty:
        raise UserError(f"{path}: nothing to show: of {len(rows)} rows {count_text(rows)}"
                        + ("" if include_unstable else
                           "; --include-unstable shows the unstable ones"))
    if not allow_mixed:
        refuse_mixed(frame, path)
        refuse_debug(frame, path)
    return Results(Path(directory), frame, prepare(dropped, good).reset_index(drop=True),
                   prepared, read_crossover(directory), series_order(prepared))
