"""A made-up results.csv with every column of harness/sweep/row.h: several methods, tasks, passes
and rounds, failures, unstable rows, an interrupted row that was done again, and a torn last line.

python3 synthetic.py DIR writes DIR/results.csv (and crossover.csv), to look at figures by hand."""

import csv
import hashlib
import io
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROW_H = Path(__file__).resolve().parents[2] / "harness" / "sweep" / "row.h"


def columns():
    """Column names, read from the header so that the two cannot drift apart."""
    return re.findall(r'\{"([a-z0-9_]+)",\s*"(?:runner|worker)"', ROW_H.read_text())


@dataclass
class Model:
    """time = fixed + rate n^power seconds; bytes = base + slope n^growth; error = level n^drift."""

    method: str
    family: str
    fixed: float
    rate: float
    power: float
    base: float
    slope: float
    growth: float
    level: float
    drift: float = 0.0
    approximates: str = "softmax"
    oracle: int = 0
    params: str = ""
    label: str = ""
    backward: bool = True
    decode: bool = True


QUICKSTART = [
    Model("dense", "exact", 1e-5, 9e-9, 2, 2**17, 260, 1, 2.1e-7),
    Model("dense_naive", "exact", 1e-5, 1.6e-8, 2, 2**12, 4, 2, 1.8e-7, decode=False),
    Model("linear", "linear", 4e-5, 3.2e-6, 1, 2**15, 520, 1, 0.62, 0.02, "own_kernel"),
    Model("sliding_window", "sparse_fixed", 2e-5, 4.5e-6, 1, 2**16, 90, 1, 0.11, 0.14,
          params="window=256;sinks=4"),
    Model("topk_exact", "oracle", 3e-5, 4e-8, 2, 2**14, 4, 2, 0.012, 0.08, oracle=1,
          params="top_k=32", decode=False),
]
MANY = QUICKSTART + [
    Model("linformer", "low_rank", 6e-5, 5e-6, 1, 2**18, 600, 1, 0.35, 0.05),
    Model("performer", "linear", 9e-5, 8e-6, 1, 2**18, 1100, 1, 0.28, 0.03),
    Model("zeta", "sparse_content", 2e-4, 1.3e-6, 1.12, 2**18, 2200, 1, 0.05, 0.05),
    Model("fnet", "fft", 2e-5, 5e-7, 1.1, 2**14, 256, 1, 0.97, 0, "nothing"),
    Model("block_sparse", "sparse_fixed", 3e-5, 9e-6, 1, 2**16, 120, 1, 0.19, 0.1,
          params="block=32", label="block_sparse block=32"),
    Model("block_sparse", "sparse_fixed", 3e-5, 1.5e-5, 1, 2**16, 150, 1, 0.09, 0.1,
          params="block=64", label="block_sparse block=64"),
    Model("block_sparse", "sparse_fixed", 3e-5, 2.7e-5, 1, 2**16, 190, 1, 0.04, 0.1,
          params="block=128", label="block_sparse block=128"),
]
LENGTHS = [256, 512, 1024, 2048, 4096, 8192]


def cell_row(model, task, pass_name, n, round_number, dice, causal=1, heads=1, d=64):
    factor = {"forward": 1, "backward": 2.4, "decode": 1}[pass_name]
    if pass_name == "decode":
        time = 2e-6 + (model.fixed + model.rate * n**model.power) / n
    else:
        time = factor * heads * (model.fixed + model.rate * n**model.power)
    time *= dice.lognormvariate(0, 0.02)
    spread = abs(dice.gauss(0.015, 0.005))
    peak = round(factor * (model.base + model.slope * n**model.growth))
    error = model.level * (n / 256) ** model.drift * {"mqar": 1, "needle": 0.4}.get(task, 0.7)
    if error < 1 or model.approximates == "nothing":
        error = min(error * dice.lognormvariate(0, 0.03), 1.4)
    identity = "|".join(map(str, (model.method, model.params, task, pass_name, n, causal, heads, d)))
    label = model.label or model.method
    row = dict.fromkeys(columns(), "")
    row.update({
        "cell_id": hashlib.sha256(identity.encode()).hexdigest()[:16], "round": round_number,
        "attempt": 1, "status": "ok", "method": model.method, "label": label,
        "method_params": model.params, "family": model.family,
        "approximates": model.approximates, "oracle": model.oracle, "task": task,
        "task_params": "temperature=1", "pass": pass_name, "causal": causal, "batch": 1,
        "heads": heads, "n": n, "n_kv": n, "d_k": d, "d_v": d, "scale": d**-0.5, "threads": 2,
        "seed": 1, "time_s": time, "time_min_s": time * (1 - 2 * spread),
        "time_max_s": time * (1 + 3 * spread), "time_q25_s": time * (1 - spread),
        "time_q75_s": time * (1 + spread), "spread": 2 * spread, "repetitions": 5,
        "iterations": max(1, int(0.1 / time)), "setup_s": 1e-4,
        "tokens_per_s": (1 if pass_name == "decode" else n) / time, "peak_bytes": peak,
        "analytic_bytes": round(0.97 * peak), "timed_allocs": 0,
        "vm_hwm_bytes": 20_000_000 + peak,
        "error_of": "gradient" if pass_name == "backward" else "output", "rel_error": error,
        "max_error": 3 * error, "cosine": 1 - error**2 / 2, "error_rows": min(n, 256),
        "error_rows_total": n, "build": "Release 0123456789abcdef",
        "build_id": "feedfacecafebeef", "cpu": "Example CPU @ 2.50GHz", "host": "example",
        "started": "2025-01-01T00:00:00Z", "wall_s": 0.7,
        "command": f"subquad run example.yaml --filter cell={identity}",
    })
    row.update({"gflops": 100, "fma_peak_gflops": 125, "fraction_of_peak": 0.8,
                "bandwidth_gbs": 20})
    if pass_name == "decode":
        row["fraction_of_bandwidth"] = 0.9
        row.update({"kv_bytes": peak, "aux_bytes": 0, "cold_bytes": 0})
    return row


FAILED_KEEPS = set(  # what the runner fills; the rest of a failed row is empty
    "cell_id round attempt status reason method label method_params family approximates oracle "
    "task task_params pass causal batch heads n n_kv d_k d_v scale threads seed build_id cpu host "
    "started wall_s command".split())


def fail(row, status, reason):
    failed = {name: value if name in FAILED_KEEPS else "" for name, value in row.items()}
    failed.update({"status": status, "reason": reason})
    return failed


def sweep(models=QUICKSTART, tasks=("gaussian", "mqar"), passes=("forward", "backward", "decode"),
          lengths=LENGTHS, rounds=3, seed=1, faults=True, **sizes):
    """Rows of a whole sweep."""
    dice, rows = random.Random(seed), []
    for task in tasks:
        for pass_name in passes:
            for model in models:
                if pass_name == "backward" and model.method == "linear":
                    continue
                if pass_name == "decode" and not model.decode:
                    continue
                for n in lengths:
                    for round_number in range(rounds):
                        row = cell_row(model, task, pass_name, n, round_number, dice, **sizes)
                        if faults:
                            rows += with_faults(row, model, n, round_number)
                        else:
                            rows.append(row)
    return rows


def with_faults(row, model, n, round_number):
    if model.method == "dense_naive" and n >= 8192:
        return [fail(row, "oom", "needs more than the limit of 256 MiB, in Q K^T")]
    if model.method == "topk_exact" and n >= 8192 and row["pass"] == "backward":
        return [fail(row, "timeout", "no answer within 120 s")]
    if model.method == "sliding_window" and n == 512 and round_number == 1:
        row.update({"status": "unstable", "reason": "spread 0.31 above 0.1", "flags": "spread",
                    "time_s": 7 * row["time_s"]})
    if model.method == "linear" and n == 256 and round_number == 0:
        again = dict(row, attempt=2)
        return [fail(row, "interrupted", "ended by the user"), again]
    return [row]


def to_csv(rows, torn=""):
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue() + torn


CROSSOVER_COLUMNS = (
    "quantity,task,task_params,pass,causal,batch,heads,n_kv,d_k,d_v,scale,threads,cpu,method,label,"
    "baseline,outcome,n,low_n,high_n,confidence,share,lengths,rounds,min_n,max_n,ratio_at_min_n,"
    "ratio_at_max_n,text").split(",")


def crossover_csv(rows, found):
    """crossover.csv for `found`: label -> (outcome, n, low, high), for the time of every view."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CROSSOVER_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    seen = set()
    for row in rows:
        key = (row["task"], row["pass"], row["label"], row["causal"], row["heads"])
        if row["label"] not in found or key in seen:
            continue
        seen.add(key)
        outcome, n, low, high = found[row["label"]]
        line = {name: row[name] for name in CROSSOVER_COLUMNS if name in row and name != "n"}
        line.update({"quantity": "time", "task_params": "", "n_kv": "n", "baseline": "dense",
                     "outcome": outcome, "n": n, "low_n": low, "high_n": high,
                     "confidence": "0.95", "min_n": 256, "max_n": 8192})
        writer.writerow(line)
    return out.getvalue()


CROSSOVERS = {
    "linear": ("crossover", 358, 341, 402), "sliding_window": ("crossover", 507, 430, 571),
    "topk_exact": ("not_reached", "", "", ""), "dense_naive": ("not_reached", "", "", ""),
    "zeta": ("crossover", 523, 500, 540), "performer": ("crossover", 1040, 990, 1100),
    "fnet": ("always", "", "", ""), "linformer": ("crossover", 640, 610, 702),
}


def write(directory, rows, torn="", crossovers=None):
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.csv").write_text(to_csv(rows, torn))
    if crossovers is not None:
        (directory / "crossover.csv").write_text(crossover_csv(rows, crossovers))
    return directory


if __name__ == "__main__":
    chosen = MANY if "--many" in sys.argv[2:] else QUICKSTART
    all_rows = sweep(chosen)
    write(sys.argv[1], all_rows, "0123456789abcdef,2,1,ok,,den", CROSSOVERS)
