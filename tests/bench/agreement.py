#!/usr/bin/env python3
"""Does a cell of a sweep measure the same time as a stand-alone benchmark of the same kernel?

Runs the two in turn (A B A B ...), so that drift of the machine falls on both alike, and prints the
median of the ratios pair by pair with an order-statistic interval. Nothing is asserted: this is a
benchmark, to be read.

    python3 tests/bench/agreement.py [--build build] [--method dense] [--n 1024] [--pairs 11] ...
"""
import argparse
import csv
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile


def standalone(options):
    command = [f"{options.build}/tests/bench/bench_method", "--benchmark_format=json",
               f"--benchmark_min_time={options.min_time}", "--benchmark_repetitions=5"]
    for key in ("method", "n", "heads", "threads", "causal"):
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--pass", options.timed]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    times = [b["real_time"] for b in report["benchmarks"] if b["run_type"] == "iteration"]
    return statistics.median(times) * 1e-6


def cell(options, folder):
    config = folder / "agreement.yaml"
    config.write_text(f"""name: agreement
rounds: 1
threads: {options.threads}
plots: false
passes: {options.timed}
problem: {{heads: {options.heads}, n: {options.n}, causal: {str(bool(options.causal)).lower()}}}
methods: [{options.method}]
tasks: [gaussian]
measure: {{min_time_s: {options.min_time}, repetitions: 5}}
""")
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([f"{options.build}/subquad", "run", str(config), "--out", str(out)], check=True,
                   capture_output=True)
    with open(out / "results.csv", newline="") as file:
        return float(next(csv.DictReader(file))["time_s"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default="build")
    parser.add_argument("--method", default="dense")
    parser.add_argument("--timed", default="forward", choices=["forward", "backward"])
    parser.add_argument("--min-time", type=float, default=0.1)
    for name, default in (("n", 1024), ("heads", 4), ("threads", 1), ("causal", 0), ("pairs", 11)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.pairs):
            alone = standalone(options)
            ratios.append(cell(options, pathlib.Path(folder)) / alone)
    ratios.sort()
    low, high = ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5]
    print(f"{options.method} {options.timed} n={options.n} threads={options.threads}: cell / stand-alone = "
          f"{statistics.median(ratios):.4f} (median of {options.pairs} pairs, {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
