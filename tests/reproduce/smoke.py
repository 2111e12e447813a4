"""One table at smoke scale, end to end, with the built program: smoke.py SUBQUAD. Run by ctest."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ENTRY = "linear_transformers/decode"


def call(subquad, *arguments):
    found = subprocess.run([subquad, "reproduce", *arguments], capture_output=True, text=True,
                           timeout=300)
    return found.returncode, found.stdout, found.stderr


def expect(what, status, wanted_status, text, *patterns):
    faults = [f"status {status}, expected {wanted_status}"] if status != wanted_status else []
    faults += [f"no {pattern!r} in the output" for pattern in patterns
               if not re.search(pattern, text)]
    if faults:
        sys.exit(f"{what}: {'; '.join(faults)}\n{text}")


def main(subquad):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        status, out, err = call(subquad, ENTRY, "--scale", "smoke", "--out", str(run), "--no-plots")
        expect("smoke", status, 0, out + err, r"\*\*reproduced in shape\*\*: 4 of 4 claims hold",
               r"- holds: softmax with a cache is exact", r"asked from scale laptop on")

        status, again, err = call(subquad, ENTRY, "--results", str(run))
        expect("judged again", status, 0, again + err, r"\*\*reproduced in shape\*\*")
        if again != out:
            sys.exit(f"judged again: another text\n{again}\nexpected\n{out}")

        results = run / "results.csv"
        whole = results.read_text()
        results.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
        status, out, err = call(subquad, ENTRY, "--results", str(run))
        expect("a row removed", status, 1, out + err, r"missing cells", r"1 rows? of the plan")

        results.write_text(whole.replace(",ok,", ",unstable,", 1) if ",ok," in whole else
                           whole.replace(",unstable,", ",ok,", 1))
        status, out, err = call(subquad, ENTRY, "--results", str(run))
        expect("a field edited", status, 3, out + err, r"results\.csv:\d+: .*checksum")

        status, out, err = call(subquad, ENTRY, "--results", str(Path(folder) / "nowhere"))
        expect("no results", status, 2, out + err, r"nowhere/results\.csv: No such file")
    status, out, err = call(subquad, "linear_transformer/decode")
    expect("an unknown name", status, 2, out + err, r'did you mean "linear_transformers/decode"')
    status, out, err = call(subquad, "--list")
    expect("the list", status, 0, out + err, ENTRY)
    status, out, err = call(subquad, "conv_basis/r2", "--check")  # has a crossover
    expect("a committed table", status, 0, out + err, r"1 committed tables follow")


if __name__ == "__main__":
    main(sys.argv[1])
