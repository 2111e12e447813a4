#!/usr/bin/env python3
"""Faults at many random moments: soak.py SUBQUAD FIXTURE SHIM [--small] [--only NAME] [--seed N]

SUBQUAD is the executable, FIXTURE tests/sweep_fixture (a runner whose cells only sleep), SHIM
failing_calls.so. Four soaks, each of which ends with the row set of an undisturbed run:

  kills   kill -9 of a runner over 50 cells, 200 times (small: 4, over 20 cells)
  full    the disk becomes full while it runs, 40 times (small: 2); needs root for a small tmpfs
  calls   every single write and flush of the runner's files fails in turn, once and for good
  eight   eight runners start at once on one directory, 50 times (small: 3)
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FINAL = {"ok", "unstable"}


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def rows_of(directory):
    path = Path(directory) / "results.csv"
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1].decode()
    return list(csv.DictReader(whole.splitlines()))


def check_complete(directory, expected):
    """Every cell and round has one final row and no other."""
    rows = [row for row in rows_of(directory) if row["status"] != "interrupted"]
    keys = [(row["cell_id"], row["round"]) for row in rows]
    check(len(keys) == len(set(keys)), f"{directory}: {len(keys) - len(set(keys))} rows twice")
    check(set(keys) == set(expected),
          f"{directory}: {len(set(expected) - set(keys))} rows missing, "
          f"{len(set(keys) - set(expected))} too many")
    bad = [row for row in rows if row["status"] not in FINAL]
    check(not bad, f"{directory}: {len(bad)} rows are {bad[:1]}")


def processes_of(program):
    """Live processes that execute this file, and zombies that are children of this script."""
    live, zombies = [], []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.readlink(f"/proc/{entry}/exe") == program:
                live.append(int(entry))
        except OSError:
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                zombies.append(int(entry))
    return live, zombies


def check_no_processes(program):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        live, zombies = processes_of(program)
        if not live and not zombies:
            return
        time.sleep(0.02)
    raise Failed(f"processes are left: {live}, zombies: {zombies}")


CONFIG = """name: soak
rounds: 1
threads: 1
problem: {n: [16, 17, 24, 33, 48], d_k: 8, d_v: 8}
seeds: [1, 2]
methods: [dense_naive, dense, linear, {name: sliding_window, window: 8}, {name: topk_exact, top_k: 4}]
tasks: [gaussian]
measure: {min_time_s: 0.002, repetitions: 2, warmup_s: 0.001}
plots: false
"""


class Soak:
    def __init__(self, options, work):
        self.random = random.Random(options.seed)
        self.small = options.small
        self.work = work
        # Copies: their processes are told from all others by the path of the executable.
        self.subquad = str(work / "subquad")
        self.fixture = str(work / "fixture")
        shutil.copy2(options.subquad, self.subquad)
        shutil.copy2(options.fixture, self.fixture)
        self.shim = str(Path(options.shim).resolve())

    def start(self, command, log, **more):
        with open(log, "ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                                    **more)

    def must_end(self, command, log, statuses, **more):
        status = self.start(command, log, **more).wait(timeout=600)
        check(status in statuses, f"status {status} of {' '.join(command)}: "
                                  f"{Path(log).read_text(errors='replace')[-600:]}")
        return status

    def real_sweep(self):
        """Config, command for a directory, and the keys of its rows."""
        config = self.work / "soak.yaml"
        text = CONFIG.replace("[16, 17, 24, 33, 48]", "[17, 33]") if self.small else CONFIG
        config.write_text(text)
        whole = self.work / "whole"
        if not whole.exists():
            self.must_end([self.subquad, "run", str(config), "--out", str(whole)],
                          self.work / "whole.log", {0})
        keys = [(row["cell_id"], row["round"]) for row in rows_of(whole)]
        check(len(keys) == (20 if self.small else 50), f"the undisturbed run has {len(keys)} rows")
        return whole, lambda out: [self.subquad, "run", str(config), "--out", str(out)], keys

    def same_values(self, whole, out):
        result = subprocess.run([self.subquad, "compare", str(whole), str(out), "--values"],
                                capture_output=True, text=True)
        check(result.returncode == 0, f"other values after the faults: {result.stdout[-600:]}")
        return result.stdout.strip().splitlines()[-1]

    # ---- the soaks ----

    def kills(self):
        whole, command, keys = self.real_sweep()
        total, runs, killed, early = (4 if self.small else 200), 1, 0, 0
        out = self.work / "kills-1"
        log = self.work / "kills.log"
        seen = 0
        while killed < total:
            child = self.start(command(out), log)
            # Anywhere: while it starts, or some rows later.
            target = seen + self.random.choice([0, 0, 1, 2, 3, 5])
            while target > seen and child.poll() is None and len(rows_of(out)) < target:
                time.sleep(0.002)
            time.sleep(self.random.uniform(0, 0.5 if target == seen else 0.1))
            child.send_signal(signal.SIGKILL)
            status = child.wait()
            check_no_processes(self.subquad)
            rows = rows_of(out)
            check(len(rows) >= seen, f"rows were lost: {seen} before, {len(rows)} now")
            early += len(rows) == seen
            seen = len(rows)
            killed += status == -signal.SIGKILL
            if status == 0:  # it was faster than the kill: complete, so begin anew
                check_complete(out, keys)
                runs += 1
                out, seen = self.work / f"kills-{runs}", 0
        self.must_end(command(out), log, {0})
        check_complete(out, keys)
        check(not (out / ".cache").exists(), "the cache is left")
        starts = [tuple(line.split()[:3]) for line in (out / "attempts.log").read_text().splitlines()]
        check(len(starts) == len(set(starts)), "an attempt has the number of another")
        return (f"{killed} times kill -9 over {len(keys)} cells ({runs} sweeps; {killed - early} of them after new "
                f"rows): every row once, no process left; {self.same_values(whole, out)}")

    def full(self):
        whole, command, keys = self.real_sweep()
        disk = self.work / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
                                 capture_output=True)
        if mounted.returncode != 0:
            return "skipped: a tmpfs cannot be mounted here"
        try:
            total, full, printed = (2 if self.small else 40), 0, 0
            tries = 0
            log = self.work / "full.log"
            out, runs = disk / "run", 1
            while full < total:
                tries += 1
                check(tries <= 20 * total, f"the disk was full {full} times only in {tries - 1} tries: the sweep "
                      "ends before it is")
                log.write_bytes(b"")
                child = self.start(command(out), log)
                time.sleep(self.random.uniform(0.3, 1.5))
                filler = disk / "filler"
                try:
                    with open(filler, "wb", buffering=0) as file:
                        while child.poll() is None:
                            file.write(b"x" * self.random.choice([64, 512, 4096]))
                except OSError:
                    pass
                status = child.wait(timeout=120)
                filler.unlink()
                check(status in (0, 3), f"status {status}: {log.read_text()[-600:]}")
                check_no_processes(self.subquad)
                full += status == 3
                printed += b"the row that could not be saved" in log.read_bytes()
                if status == 0:
                    check_complete(out, keys)
                    shutil.rmtree(out)
                    runs += 1
            self.must_end(command(out), log, {0})
            check_complete(out, keys)
            return (f"the disk was full {full} times, status 3 each time ({printed} times with the "
                    f"unsaved row on stderr), {runs} sweeps: every row once; "
                    f"{self.same_values(whole, out)}")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)

    def fixture_run(self, out, cells=3, milliseconds=0):
        return [self.fixture, "run", str(out), str(cells), "1", str(milliseconds)]

    def calls(self):
        reference = self.work / "calls-reference"
        log = self.work / "calls.log"
        self.must_end(self.fixture_run(reference), log, {0})
        keys = [(row["cell_id"], row["round"]) for row in rows_of(reference)]
        done, survived, refused = 0, 0, 0
        for mode in ("once", "on"):
            for number in range(1, 10000):
                out, mark = self.work / f"calls-{mode}-{number}", self.work / "mark"
                mark.unlink(missing_ok=True)
                environment = dict(os.environ, LD_PRELOAD=self.shim, FAIL_CALL=str(number),
                                   FAIL_MARK=str(mark))
                if mode == "on":
                    environment["FAIL_ON"] = "1"
                status = self.must_end(self.fixture_run(out), log, {0, 3}, env=environment)
                if not mark.exists():
                    check(status == 0, "status 3 without a failing call")
                    break
                done += 1
                survived += status == 0
                refused += status == 3
                if status == 0:
                    check_complete(out, keys)
                self.must_end(self.fixture_run(out), log, {0})
                check_complete(out, keys)
                shutil.rmtree(out)
        check(done > 20 and survived > 0 and refused > 0, f"{done} calls, {survived}, {refused}")
        return (f"{done} failing calls: {survived} survived by trying again, {refused} ended with "
                "status 3 and the next run did the rest: every row once")

    def eight(self):
        total, worked, refused = (3 if self.small else 50), 0, 0
        for number in range(total):
            out = self.work / f"eight-{number}"
            logs = [self.work / f"eight-{number}-{i}.log" for i in range(8)]
            runners = [self.start(self.fixture_run(out, 6, 60), log) for log in logs]
            statuses = [runner.wait(timeout=300) for runner in runners]
            for status, log in zip(statuses, logs):
                text = log.read_text(errors="replace")
                if status == 0:
                    worked += 1
                else:
                    check(status == 1 and "locked by pid" in text, f"status {status}: {text[-300:]}")
                    refused += 1
            check(0 in statuses, "none of eight worked")
            rows = rows_of(out)
            check_complete(out, {(row["cell_id"], row["round"]) for row in rows})
            check(len(rows) == 6, f"{len(rows)} rows of 6")
            starts = (out / "attempts.log").read_text().splitlines()
            check(len(starts) == 6, f"{len(starts)} starts of 6 cells")
            shutil.rmtree(out)
        check_no_processes(self.fixture)
        return (f"{total} times eight runners at once: {worked} worked, {refused} said who holds the "
                "directory, every row once")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subquad")
    parser.add_argument("fixture")
    parser.add_argument("shim")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=["kills", "full", "calls", "eight"])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="subquad-soak-"))
    failures = 0
    try:
        soak = Soak(options, work)
        for name in [options.only] if options.only else ["kills", "full", "calls", "eight"]:
            start = time.monotonic()
            try:
                text = getattr(soak, name)()
            except (Failed, subprocess.TimeoutExpired) as error:
                failures += 1
                text = f"FAILED: {error}"
            print(f"{name}: {text} ({time.monotonic() - start:.0f} s)", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
