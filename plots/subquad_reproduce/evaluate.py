"""Verdicts: an expectation file held against a results directory."""

from dataclasses import dataclass, field

from . import checks, rows as data
from .checks import FAILS, HOLDS, INCOMPARABLE, MISSING, Outcome
from .expectation import SCALES

REPRODUCED = "reproduced"
IN_SHAPE = "reproduced in shape"
NOT_REPRODUCED = "not reproduced"
NOT_COMPARABLE = "not comparable"
MISSING_CELLS = "missing cells"
LATER = "asked from scale"  # a claim at a scale that is too small for it


@dataclass
class Number:
    """One place of a table: ours, the paper's, and whether they agree."""

    ours: data.Point = None
    why: str = ""           # there is no number of ours
    paper: object = None    # number, (low, high) or None
    state: str = ""         # '' where the paper has none
    off: float = None       # relative difference from the paper's, of the nearer end of a range


@dataclass
class TableResult:
    table: object           # expectation.Table
    numbers: dict           # (row name, column) -> Number


@dataclass
class Evaluation:
    expectation: object
    scale: str
    verdict: str
    reason: str             # one line: which claims hold, by how much others fail, what is missing
    tables: list = field(default_factory=list)
    claims: list = field(default_factory=list)  # (Claim, Outcome)
    absent: list = field(default_factory=list)  # (cell_id, round) of the plan without a row
    lost: str = ""          # '3 unstable, 1 oom'

    @property
    def surprising(self):
        """Something is missing, or came out otherwise than the file knows of."""
        return bool(self.absent) or any(
            outcome.state == MISSING or (outcome.state == FAILS and claim.essential
                                         and not claim.contradicted)
            for claim, outcome in self.claims)


def compare(point, paper, tolerance):
    """(state, relative difference) of our number and the paper's."""
    low, high = paper if isinstance(paper, tuple) else (paper, paper)
    low, high = (high if low is None else low), (low if high is None else high)
    if low <= point.value <= high:
        off = 0.0
    else:
        nearest = low if point.value < low else high
        off = (point.value - nearest) / abs(nearest) if nearest else float("inf")
    if tolerance is None:
        return INCOMPARABLE, off
    return (HOLDS if abs(off) <= tolerance else FAILS), off


def table_result(run, table):
    numbers = {}
    to_row = next((row for row in table.rows if row.name == table.to), None)
    for row in table.rows:
        for place, column in enumerate(table.columns):
            papers = table.paper.get(row.name)
            number = Number(paper=papers[place] if papers else None)
            where = {**table.where, table.key: [column]}
            value = row.value or table.value
            try:
                chosen = data.select(run, {**where, **row.where}, value, table.place)
                if to_row is None:
                    found = data.points(chosen, value)
                elif row is to_row:
                    found = {0: data.Point(1.0, 1.0, 1.0, 1)}
                else:
                    base = data.select(run, {**where, **to_row.where}, table.value, table.place)
                    found = data.ratio_points(chosen, base, table.value)
                if len(found) > 1:
                    raise data.UserError(f"{table.place}: {row.name}: several lengths in one place; "
                                         "narrow where")
                if found:
                    number.ours = next(iter(found.values()))
                else:
                    number.why = "no round that has both"
            except data.Nothing as nothing:
                number.why = str(nothing)
            if number.paper is not None:
                if number.ours is None:
                    number.state = INCOMPARABLE if table.tolerance is None else MISSING
                else:
                    number.state, number.off = compare(number.ours, number.paper, table.tolerance)
            numbers[row.name, column] = number
    return TableResult(table, numbers)


def claim_outcome(run, claim, scale):
    if claim.check is None:
        return Outcome(INCOMPARABLE, detail=claim.not_comparable)
    if SCALES.index(claim.scale) > SCALES.index(scale):
        return Outcome(INCOMPARABLE, detail=f"{LATER} {claim.scale} on")
    return checks.run_check(run, claim.check)


def verdict_of(claims, tables, absent, lost):
    """(verdict, reason), see configs/papers/README.md."""
    states = [outcome.state for _, outcome in claims]
    numbers = [number for table in tables for number in table.numbers.values() if number.state]
    missing = [f"{claim.text}: {outcome.detail}" for claim, outcome in claims
               if outcome.state == MISSING]
    if absent:
        cell, number = absent[0]
        rows = "1 row of the plan is" if len(absent) == 1 else f"{len(absent)} rows of the plan are"
        missing.insert(0, f"{rows} not there, such as round {number} of cell {cell}")
    lost_numbers = sum(number.state == MISSING for number in numbers)
    if lost_numbers:
        missing.append(f"{lost_numbers} numbers beside the paper's" + (f" ({lost})" if lost else ""))
    compared = states.count(HOLDS) + states.count(FAILS)
    fails = [(claim, outcome) for claim, outcome in claims if outcome.state == FAILS]
    why = "; ".join(f"{claim.text} ({outcome.detail})" for claim, outcome in fails)
    held = f"{states.count(HOLDS)} of {compared} claims hold"
    if any(claim.essential for claim, _ in fails):
        return NOT_REPRODUCED, f"{held}; not: {why}"
    if missing:
        more = f"; and {len(missing) - 1} more" if len(missing) > 1 else ""
        return MISSING_CELLS, missing[0] + more
    if compared == 0:
        return NOT_COMPARABLE, next((outcome.detail for _, outcome in claims), "")
    unlike = [number for number in numbers if number.state != HOLDS]
    compared_numbers = [number for number in numbers if number.state in (HOLDS, FAILS)]
    unasked = [outcome.detail for _, outcome in claims if outcome.state == INCOMPARABLE]
    later = sum(detail.startswith(LATER) for detail in unasked)
    if fails or unlike or unasked:
        parts = [held]
        if len(unasked) > later:
            parts.append(f"{len(unasked) - later} not comparable")
        if later:
            parts.append(f"{later} asked at a larger scale only")
        if fails:
            parts.append(f"not: {why}")
        if compared_numbers:
            parts.append(f"{sum(number.state == HOLDS for number in numbers)} of "
                         f"{len(compared_numbers)} numbers are within tolerance")
        if len(compared_numbers) < len(numbers):
            parts.append("the paper's numbers are of another set-up")
        return IN_SHAPE, "; ".join(parts)
    return REPRODUCED, held + (f", all {len(numbers)} numbers are within tolerance" if numbers
                               else "")


def unrun(expectation, scale, why):
    """Without results: every claim is not comparable."""
    claims = [(claim, Outcome(INCOMPARABLE, detail=claim.not_comparable or why))
              for claim in expectation.claims]
    return Evaluation(expectation, scale, NOT_COMPARABLE, why or claims[0][1].detail, claims=claims)


def evaluate(expectation, directory, scale="laptop", include_unstable=False, allow_mixed=False):
    """The Evaluation of a results directory. UserError where it cannot be read or is damaged."""
    if expectation.config is None:
        return unrun(expectation, scale, "")
    run = data.read(directory, include_unstable, allow_mixed)
    tables = [table_result(run, table) for table in expectation.tables]
    claims = [(claim, claim_outcome(run, claim, scale)) for claim in expectation.claims]
    failed = run.lost[run.lost["status"] != "unsupported"]
    lost = data.load.count_text(failed) if len(failed) else ""
    verdict, reason = verdict_of(claims, tables, run.absent, lost)
    return Evaluation(expectation, scale, verdict, reason, tables, claims, run.absent, lost)
