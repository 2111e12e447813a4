"""A view is what one figure shows: one task, one pass, one set of sizes, all methods and n."""

import re
from dataclasses import dataclass

import pandas as pd

# Columns that make separate views, in the order of file names. task and pass come first.
KEYS = ["task", "pass", "task_split", "causal", "batch", "heads", "d_k", "d_v", "kv", "scale",
        "threads", "cpu"]

PASS_NAMES = {"forward_backward": "forward + backward"}


@dataclass
class View:
    key: dict            # column of KEYS -> value
    rows: pd.DataFrame
    dropped: pd.DataFrame
    slug: str            # for file names: mqar-forward-causal
    title: str           # for humans: mqar, forward, causal

    @property
    def task(self):
        return self.key["task"]

    @property
    def pass_name(self):
        return self.key["pass"]


def describe(column, value):
    """(for file names, for humans) of one value of a column of KEYS."""
    if column == "causal":
        word = "causal" if value == 1 else "bidirectional"
        return word, word
    if column == "task_split":
        return value.replace(";", "-").replace("=", ""), value.replace(";", ", ")
    if column == "cpu":
        return value, value
    short = {"batch": "b", "heads": "h", "d_k": "dk", "d_v": "dv", "kv": "kv", "scale": "scale",
             "threads": "t"}[column]
    shown = value if isinstance(value, str) else f"{value:g}"
    if column == "threads":
        return f"{short}{shown}", f"{shown} thread{'' if shown == '1' else 's'}"
    if column == "heads":
        return f"{short}{shown}", f"{shown} head{'' if shown == '1' else 's'}"
    return f"{short}{shown}", f"{'n_kv' if column == 'kv' else column} = {shown}"


def slugify(text):
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "x"


def views(results):
    """The views of a selection, sorted; only what differs within a task and pass is in names."""
    frame, out = results.frame, []
    keyed = frame[KEYS].fillna({"causal": 0}).fillna(-1)
    dropped = results.dropped[KEYS].fillna({"causal": 0}).fillna(-1)
    for (task, pass_name), of_task in keyed.groupby(["task", "pass"], sort=True):
        differing = [column for column in KEYS[2:] if of_task[column].nunique() > 1]
        kinds = of_task[differing].drop_duplicates().sort_values(differing) if differing else [()]
        for key in kinds.itertuples(index=False) if differing else kinds:
            chosen = dict(zip(differing, key))
            here = pd.Series(True, index=of_task.index)
            for column, value in chosen.items():
                here &= of_task[column] == value
            lost = (dropped["task"] == task) & (dropped["pass"] == pass_name)
            for column, value in chosen.items():
                lost &= dropped[column] == value
            full = of_task[here].iloc[0].to_dict()
            parts = [describe(column, value) for column, value in chosen.items()]
            name = PASS_NAMES.get(pass_name, pass_name)
            out.append(View(
                key=full, rows=frame.loc[of_task.index[here]], dropped=results.dropped[lost],
                slug=slugify("-".join([task, pass_name] + [part[0] for part in parts])),
                title=", ".join([task, name] + [part[1] for part in parts])))
    return unique_slugs(out)


def unique_slugs(found):
    """Texts that differ only in odd characters must not write the same file."""
    seen = set()
    for view in found:
        base, number = view.slug, 2
        while view.slug in seen:
            view.slug = f"{base}-{number}"
            number += 1
        seen.add(view.slug)
    return found
