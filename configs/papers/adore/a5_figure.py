#!/usr/bin/env python3
"""The figure of A5: what a trained model is worth under every policy, against the budget m.

    python3 configs/papers/adore/a5_figure.py results/adore_a5_mqar results/adore_a5_char_lm -o a5.png

One panel for each directory: accuracy where the task is recall, else perplexity.
"""

import argparse
import csv
import re
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Label without its budget -> name, colour, line, marker. Oracles are grey: bounds, no competitors.
LOOKS = {
    "window": ("window", "#0072B2", "-", "o"),
    "streaming_llm": ("StreamingLLM", "#56B4E9", "-", "v"),
    "random_cache": ("random", "#999999", ":", "x"),
    "h2o": ("H2O", "#009E73", "-", "s"),
    "keyformer": ("Keyformer", "#88C999", "-", "D"),
    "subgen_kcenter": ("SubGen, k-center", "#CC79A7", "-", "P"),
    "adore additive r=0": ("ADORE r = 0", "#E69F00", "--", "^"),
    "adore additive r=4": ("ADORE r = 4", "#D55E00", "-", "^"),
    "adore pairwise r=4": ("ADORE pairwise r = 4", "#A23B00", "-", "*"),
    "adore_oracle r=4": ("oracle: ADORE r = 4", "#555555", "--", ""),
    "topk_oracle": ("oracle: top m", "#555555", "-.", ""),
}


def read(directory):
    """label -> {m: row}; dense under the budget 0. The last row of a cell counts."""
    table = {}
    with open(Path(directory, "results.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["status"] not in ("ok", "unstable"):
                continue
            match = re.fullmatch(r"(.*) (\d+)", row["label"])
            label, budget = (match[1], int(match[2])) if match else (row["label"], 0)
            table.setdefault(label, {})[budget] = row
    return table


def panel(axes, table):
    dense = table["dense"][0]
    recall = dense["task"].startswith("mqar")
    value = "accuracy" if recall else "perplexity"
    drawn = {}
    for label, (name, colour, line, marker) in LOOKS.items():
        points = sorted(table.get(label, {}).items())
        if not points:
            continue
        (drawn[name],) = axes.plot(
            [m for m, _ in points], [float(row[value]) for _, row in points], color=colour,
            linestyle=line, marker=marker, markersize=4.5, linewidth=1.3, label=name,
            zorder=2 if "oracle" in name else 3)
    drawn["dense"] = axes.axhline(float(dense[value]), color="black", linewidth=1, zorder=1)
    axes.set_xscale("log", base=2)
    budgets = sorted({m for points in table.values() for m in points if m > 0})
    budgets = [m for m in budgets if m in table.get("window", {})]
    axes.set_xticks(budgets, [str(m) for m in budgets])
    axes.minorticks_off()
    axes.set_xlabel("tokens in the cache of each layer, m")
    axes.set_ylabel(f"{value} after the prompt")
    task = "recall (MQAR)" if recall else "characters"
    axes.set_title(f"{task}, n = {dense['n']}", fontsize=10)
    if recall:
        axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="directories of a5_*.yaml")
    parser.add_argument("-o", "--out", default="a5.png")
    arguments = parser.parse_args()
    count = len(arguments.results)
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count + 2.0, 3.6), squeeze=False)
    drawn = {}
    for one, directory in zip(axes[0], arguments.results):
        drawn.update(panel(one, read(directory)))
    order = ["dense"] + [look[0] for look in LOOKS.values() if look[0] in drawn]
    figure.legend([drawn[name] for name in order], order, loc="center left", fontsize=8,
                  bbox_to_anchor=(1 - 2.0 / (3.6 * count + 2.0), 0.5), frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 2.0 / (3.6 * count + 2.0), 1))
    figure.savefig(arguments.out, dpi=160)


if __name__ == "__main__":
    main()
