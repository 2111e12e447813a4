"""Trained models: which run of a sweep over hyper-parameters counts, its seeds, and the floors.

Of a method's runs those with one set of training parameters count: the set with the best quality on
the validation split, mean over seeds and rounds. What is shown is their quality on the test split.
"""

import math

import numpy as np
import pandas as pd

from . import load
from .errors import UserError

# Of a test split, with the validation column by which runs are chosen.
QUALITIES = {"accuracy": "validation_accuracy", "loss": "validation_loss",
             "bits": "validation_loss", "perplexity": "validation_loss"}
HIGHER = ("accuracy", "validation_accuracy", "best_accuracy")
# Runs that differ in one of these are compared with each other, never chosen among.
CASE = ["series", "task", "task_split", "n", "kv", "d_k", "d_v", "heads", "batch", "causal",
        "scale", "cpu"]
FLOOR = "floor: "
# Behind the names of floors, so that they can be read on a curve.
NAME_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.75}


def is_quality(column):
    return column in QUALITIES or column.startswith("validation_") or column == "best_accuracy"


def main_quality(rows):
    """What a figure of these rows shows: bits of a language model, whose floors are in bits; else
    accuracy where there is one, else bits, else the loss."""
    order = ["accuracy", "bits", "loss"]
    if "floors" in rows and rows["floors"].astype(str).str.contains("(bits", regex=False).any():
        order = ["bits", "accuracy", "loss"]
    for column in order:
        if rows[column].notna().any():
            return column
    return None


def varying(texts):
    """Names of the training parameters in which runs differ."""
    values = {}
    for text in set(texts):
        for key, value in load.parse_params(text).items():
            values.setdefault(key, set()).add(value)
    return sorted(key for key, found in values.items() if len(found) > 1)


def setting(text, names):
    params = load.parse_params(text)
    return ", ".join(f"{name} {params[name]}" for name in names if name in params)


def chosen(rows, quality, decoded=False):
    """The rows that count, see the head comment -> (rows, {series: 'learning_rate 0.003'}). With
    `decoded` and where nothing was trained: what a trained model reached in decoding, every row."""
    if decoded and not (rows["pass"] == "train").any():
        return rows[(rows["pass"] == "decode") & rows[quality].notna()], {}
    rows = rows[(rows["pass"] == "train") & rows[quality].notna()]
    judge = QUALITIES.get(quality, quality)
    if not rows[judge].notna().any():
        judge = quality
    sign = 1 if judge in HIGHER else -1
    names = varying(rows["train_params"])
    kept, how = [], {}
    for key, case in rows.groupby(CASE, dropna=False, sort=False):
        score = sign * case.groupby("train_params")[judge].mean()
        best = score.idxmax() if score.notna().any() else case["train_params"].iloc[0]
        kept.append(case[case["train_params"] == best])
        how.setdefault(key[0], [])
        text = setting(best, names)
        if text and text not in how[key[0]]:
            how[key[0]].append(text)
    frame = pd.concat(kept) if kept else rows
    return frame, {series: " / ".join(how[series]) for series in sorted(how, key=load.natural)
                   if how[series]}


def choice_note(rows, how):
    """Small print: over what the best was taken, and what it was."""
    names = varying(rows[rows["pass"] == "train"]["train_params"])
    if not names:
        return ""
    judge = "; ".join(f"{series}: {text}" for series, text in how.items())
    return f"best of {', '.join(names)} on the validation split: {judge}"


def seeds_text(rows):
    count = rows["seed"].nunique()
    return f"mean of {count} seeds" if count > 1 else "1 seed"


# Floors of language models are in bits per token; these are the same in other qualities.
OF_BITS = {"bits": lambda bits: bits, "loss": lambda bits: bits * math.log(2),
           "perplexity": lambda bits: 2 ** min(bits, 1000)}


def floors(rows, quality):
    """{name: value} of what needs no attention at all, as the task itself says, for one length."""
    out = {}
    for text in rows["floors"].unique():
        for part in text.split(";"):
            name, _, value = part.rpartition("=")
            name, _, kind = name.strip().rpartition(" (")
            try:
                number = float(value)
            except ValueError:
                continue
            kind = kind.rstrip(")")
            if kind == "bits_per_token" and quality in OF_BITS:
                kind, number = quality, OF_BITS[quality](number)
            if name and kind == quality and math.isfinite(number):
                out.setdefault(name, []).append(number)
    return {name: float(np.mean(values)) for name, values in out.items()}


def floor_lines(found, span, room=0.01):
    """[(names, value)] to be written along an axis of length `span`: one text, at the largest value,
    for those that lie closer together than `room` of it."""
    lines = []
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        if lines and value - lines[-1][1] < room * span:
            lines[-1] = (f"{lines[-1][0]}, {name}", value)
        else:
            lines.append((name, value))
    return lines


def points(rows, quality):
    """Mean over seeds and rounds per series and n, with the smallest and largest of them."""
    grouped = rows.groupby(["series", "n"], sort=True)[quality]
    return grouped.agg(value="mean", low="min", high="max", rounds="size").reset_index()


def shown(view):
    """(quality, rows, small print) of a figure of trained models."""
    quality = main_quality(view.rows)
    rows, how = chosen(view.rows, quality)
    notes = [choice_note(view.rows, how), seeds_text(rows)]
    return quality, rows, [text for text in notes if text]


def read_curves(directory):
    """curves.csv of a run directory, or None."""
    try:
        frame = pd.read_csv(directory / "curves.csv")
    except (OSError, ValueError, pd.errors.ParserError):
        return None
    needed = {"cell_id", "round", "step", "validation_loss", "validation_accuracy"}
    if not needed <= set(frame.columns):
        raise UserError(f"{directory / 'curves.csv'}: expected the columns "
                        f"{', '.join(sorted(needed))}")
    return frame
