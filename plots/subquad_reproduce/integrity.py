"""Whether a results directory is whole: every line as it was written, every row of the plan there,
one machine and one build."""

import csv
import json
import zlib
from pathlib import Path

from subquad_plots import load
from subquad_plots.errors import UserError


class Damaged(UserError):
    """Results that cannot be trusted; the scripts end with status 3."""


def field(value):
    """As harness/sweep/csv.cpp writes it."""
    special = any(char in value for char in ',"\n\r')
    return '"' + value.replace('"', '""') + '"' if special else value


def checksum(fields, place):
    """CRC-32 of the line without its own checksum, which stands at `place`."""
    line = ",".join("" if i == place else field(value) for i, value in enumerate(fields))
    return f"{zlib.crc32(line.encode('utf-8')):08x}"


def check_lines(path):
    """Every whole line has as many fields as the header and its own checksum, or none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a directory that `subquad run` has "
                        "written") from error
    try:
        lines = data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise Damaged(f"{path}: byte {error.start}: not UTF-8") from error
    if not lines:
        raise UserError(f"{path}: no complete line in it")
    header = next(csv.reader([lines[0]]))
    place = header.index("line_crc") if "line_crc" in header else None
    for number, line in enumerate(lines[1:], 2):
        fields = next(csv.reader([line]), [])
        if len(fields) != len(header):
            raise Damaged(f"{path}:{number}: the row has {len(fields)} fields, the header has "
                          f"{len(header)}")
        if place is not None and fields[place] and fields[place] != checksum(fields, place):
            raise Damaged(f"{path}:{number}: the line does not match its checksum (line_crc); "
                          "somebody has edited it")


def missing_rows(directory, rows):
    """(rounds of the plan, (cell_id, round) of the plan that have no row). Without plan.json the
    rounds are those of the rows."""
    path = Path(directory) / "plan.json"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        cells, rounds = [str(cell) for cell in plan["cells"]], int(plan["rounds"])
    except FileNotFoundError:
        return int(rows["round"].max()) + 1 if len(rows) else 0, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path}: not a plan: {error}") from error
    there = {(cell, int(number)) for cell, number in zip(rows["cell_id"], rows["round"])}
    return rounds, [(cell, number) for cell in cells for number in range(rounds)
                    if (cell, number) not in there]


def check_machines(rows, path):
    load.refuse_mixed(rows, path)
    load.refuse_debug(rows, path)
