"""Made-up results directories, and the page of one."""

import contextlib
import io
import json
import re

import report  # plots/report.py
import synthetic  # tests/plots/synthetic.py

EVIL = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">"\'&<!--'
MACHINE = {"cpu": {"model": "Example CPU @ 2.50GHz", "cores": 2}, "memory": {"total_bytes": 2**34},
           "system": {"kernel": "Linux 6.1", "host": "example"},
           "build": {"flags": "-O3", "compiler": "g++ 12.2.0"}}


def add_machine(directory, machine=None):
    (directory / "machine.json").write_text(json.dumps(machine or MACHINE))
    return directory


def large(directory, count):
    """Exactly so many rows: few views, many methods, lengths and rounds."""
    models = [synthetic.Model(**{**vars(model), "label": model.label or model.method})
              for model in synthetic.MANY]
    rows = synthetic.sweep(models, tasks=("gaussian", "mqar"), passes=("forward", "backward"),
                           rounds=19, faults=True)
    rows = [row for row in rows if row["status"] != "interrupted"]
    if len(rows) < count:
        raise AssertionError(f"{len(rows)} rows, expected {count} or more")
    rows = rows[:count]
    add_machine(synthetic.write(directory, rows, crossovers=synthetic.CROSSOVERS))
    return rows


def hostile(directory):
    """A directory whose every text tries to leave its place."""
    rows = synthetic.sweep(synthetic.QUICKSTART, tasks=("gaussian",), passes=("forward",),
                           lengths=[256, 512, 1024], rounds=2, faults=False)
    for row in rows:
        row["host"], row["command"] = "https://example.org/x.js", EVIL
        if row["method"] == "linear":
            row["label"] = f"linear{EVIL}"
        if row["method"] == "dense_naive":
            row.update(synthetic.fail(row, "crash", EVIL), flags=f"odd;{EVIL}")
    synthetic.write(directory, rows)
    (directory / "config.resolved.yaml").write_text(f"name: {EVIL}\n")
    return add_machine(directory, {"cpu": {"model": EVIL}})


def write(directory, *options):
    """(page, figures) of a directory, by the script itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = report.main([*options, str(directory)])
    found = re.search(r", (\d+) figures", out.getvalue())
    if status != 0 or not found:
        raise AssertionError(f"status {status}: {out.getvalue()}")
    return directory / "report.html", int(found.group(1))
