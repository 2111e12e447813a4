"""The kinds of claims: each is a function of a Run, its options and a place that says whether the
claim holds, with our numbers and by how much it fails."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from subquad_plots import crossover, fit, views
from subquad_plots.table import number_text
from subquad_plots.units import length_text

from . import rows as data
from .rows import Nothing

HOLDS, FAILS, MISSING, INCOMPARABLE = "holds", "fails", "missing", "not comparable"


@dataclass
class Outcome:
    state: str
    asked: str = ""    # the claim in numbers: 'in [0.95, 1.1]'
    ours: str = ""     # our numbers, with their intervals
    detail: str = ""   # by how much it fails, or why there is no answer


# ---- words ----

def interval_text(low, high):
    if low is None:
        return f"at most {number_text(high)}"
    if high is None:
        return f"at least {number_text(low)}"
    return f"in [{number_text(low)}, {number_text(high)}]"


def inside(value, within):
    low, high = within
    return (low is None or value >= low) and (high is None or value <= high)


def beyond(value, within):
    """'0.12 above 1.1', or '' inside."""
    low, high = within
    if not value == value:
        return "not a number"
    if low is not None and value < low:
        return f"{number_text(low - value)} below {number_text(low)}"
    if high is not None and value > high:
        return f"{number_text(value - high)} above {number_text(high)}"
    return ""


def point_text(point):
    if point.rounds < 2 or point.low == point.high:
        return number_text(point.value)
    return f"{number_text(point.value)} [{number_text(point.low)}, {number_text(point.high)}]"


def at(n, count):
    return f"n = {length_text(n)}: " if count > 1 else ""


def where_of(selector, options):
    return {**options["where"], **selector}


def outcome_of(points, within, asked=""):
    """Holds when every point lies within."""
    count = len(points)
    faults = [at(n, count) + beyond(point.value, within) for n, point in sorted(points.items())
              if not inside(point.value, within)]
    ours = "; ".join(at(n, count) + point_text(point) for n, point in sorted(points.items()))
    if count > 4:  # the ends say enough
        ends = [choose(points, key=lambda n: points[n].value) for choose in (min, max)]
        ours = " to ".join(f"{number_text(points[n].value)} (n = {length_text(n)})" for n in ends)
    return Outcome(FAILS if faults else HOLDS, asked or interval_text(*within), ours,
                   "; ".join(faults))


def asked_lengths(options, found, where):
    """Lengths that the claim names must all be there."""
    for n in options["where"].get("n", []):
        if not isinstance(n, str) and float(n) not in found:
            raise Nothing(f"no number at n = {n}: {data.describe(where)}")


# ---- kinds ----

def value(run, options, place):
    where = where_of(options["of"], options)
    found = data.points(data.select(run, where, options["value"], place), options["value"])
    asked_lengths(options, found, where)
    data.enough_rounds(run, found, options["value"], data.describe(where))
    return outcome_of(found, options["within"])


def ratio(run, options, place):
    of, to = where_of(options["of"], options), where_of(options["to"], options)
    found = data.ratio_points(data.select(run, of, options["value"], place),
                              data.select(run, to, options["value"], place), options["value"])
    asked_lengths(options, found, of)
    if not found:
        raise Nothing("no round that has both")
    data.enough_rounds(run, found, options["value"], f"{data.describe(of)} and {data.describe(to)}")
    return outcome_of(found, options["within"])


def names_of(selectors, chosen):
    """Names of selections; where several are called alike, with what else they were selected by."""
    names = [str(part["series"].iloc[0]) for part in chosen]
    rest = [data.describe({key: value for key, value in each.items() if key != "label"})
            for each in selectors]
    return [f"{name} ({more})" if more and names.count(name) > 1 else name
            for name, more in zip(names, rest)]


def order(run, options, place):
    """Each is smaller than the next at every length; the middle of ratios within rounds decides."""
    chosen = [data.select(run, where_of(of, options), options["value"], place)
              for of in options["of"]]
    called = names_of(options["of"], chosen)
    ours, faults, pairs = [], [], 0
    for smaller, larger in zip(chosen, chosen[1:]):
        found = data.ratio_points(larger, smaller, options["value"])
        asked_lengths(options, found, where_of(options["of"][pairs], options))
        if not found:
            raise Nothing("no round and length that have both of two neighbours")
        data.enough_rounds(run, found, options["value"], "both of two neighbours")
        pairs += 1
        worst = min(found, key=lambda n: found[n].value)
        names = f"{called[pairs]} to {called[pairs - 1]}"
        ours.append(f"{names} {point_text(found[worst])}"
                    + (f" at least (n = {length_text(worst)})" if len(found) > 1 else ""))
        bad = [f"n = {length_text(n)}" for n in sorted(found) if not found[n].value > 1]
        if bad:
            faults.append(f"{names} {number_text(found[worst].value)} at {', '.join(bad)}")
    return Outcome(FAILS if faults else HOLDS, " < ".join(called), "; ".join(ours), "; ".join(faults))


def exponent(run, options, place):
    where = where_of(options["of"], options)
    found = data.points(data.select(run, where, options["value"], place), options["value"])
    lengths = sorted(found)
    if len(lengths) < 3:
        raise Nothing(f"{len(lengths)} lengths, an exponent needs three: {data.describe(where)}")
    values = [found[n].value for n in lengths]
    slope, half = fit.exponent(lengths, values)
    if slope is None:
        raise Nothing(f"no positive numbers to fit: {data.describe(where)}")
    fitted = np.asarray(lengths)[fit.upper_lengths(lengths)]
    ours = f"{slope:.2f}" + (f" +- {max(half, 0.01):.2f}" if half is not None else "")
    ours += f" over {length_text(fitted.min())} to {length_text(fitted.max())}"
    detail = beyond(slope, options["within"])
    if detail and half is not None:
        low, high = options["within"]
        reaches = ((low is None or slope + half >= low) and (high is None or slope - half <= high))
        detail += ", less than its uncertainty" if reaches else ""
    return Outcome(FAILS if detail else HOLDS, interval_text(*options["within"]), ours, detail)


def trend(run, options, place):
    """Steps along a parameter (or n): monotone up to a relative slack; flat: all within slack."""
    where, value_of, over = where_of(options["of"], options), options["value"], options["over"]
    chosen = data.matching(run.results.frame, where)
    steps = pd.to_numeric(data.column_of(chosen, over), errors="coerce")
    series = {}
    for step in sorted(steps.dropna().unique()):
        part = data.select(run, {**where, over: [step]}, value_of, place)
        found = data.points(part, value_of)
        if len(found) > 1:
            raise data.UserError(f"{place}: several lengths at {over} = {step:g}; narrow where")
        data.enough_rounds(run, found, value_of, data.describe({**where, over: [step]}))
        series[step] = next(iter(found.values())).value
    if len(series) < 2:
        raise data.why_nothing(run, where) if not series else Nothing(
            f"one value of {over} alone: {data.describe(where)}")
    values, slack, faults = list(series.items()), options["slack"], []
    if options["direction"] == "flat":
        low, high = min(series.values()), max(series.values())
        if not high <= low * (1 + slack):
            faults.append(f"varies by {100 * (high / low - 1):.0f} %, asked at most "
                          f"{100 * slack:.0f} %")
    else:
        for (step, before), (after_step, after) in zip(values, values[1:]):
            small, large = (after, before) if options["direction"] == "falls" else (before, after)
            if not small <= large * (1 + slack):
                faults.append(f"from {over} = {step:g} to {after_step:g}: {number_text(before)} to "
                              f"{number_text(after)}")
        if not faults and not (values[-1][1] != values[0][1]):
            faults.append("constant")
    ours = f"{number_text(values[0][1])} at {over} = {values[0][0]:g}, " \
           f"{number_text(values[-1][1])} at {values[-1][0]:g}"
    asked = f"{options['direction']} with {over}" + (f", up to {100 * slack:.0f} %" if slack else "")
    return Outcome(FAILS if faults else HOLDS, asked, ours, "; ".join(faults))


def crossover_length(run, options, place):
    """Crossover against dense, as `subquad plot` computes it in crossover.csv."""
    if run.results.crossover is None:
        raise Nothing("no crossover.csv that is as new as results.csv; `subquad plot` writes it")
    rows = data.matching(run.results.frame, {**options["where"], "label": [options["of"]]})
    if rows.empty:
        raise data.why_nothing(run, {**options["where"], "label": [options["of"]]})
    found = {}
    for view in views.views(run.results):
        if not view.rows.index.isin(rows.index).any():
            continue
        for series in rows["series"].unique():
            each = crossover.of_view(run.results.crossover, view, options["quantity"]).get(series)
            if each is not None:
                found[view.title, series] = each
    if not found:
        raise Nothing(f"no crossover of {options['of']} with dense")
    if len(found) > 1:
        raise data.UserError(f"{place}: {len(found)} crossovers ({'; '.join(key[0] for key in found)})"
                             "; narrow where")
    each = next(iter(found.values()))
    wanted, within = options["outcome"], options["within"]
    asked = " or ".join(word.replace("_", " ") for word in wanted)
    if within != (None, None):
        asked += f", n {interval_text(*within)}"
    fault = ""
    if each.outcome not in wanted:
        fault = crossover.text(each)
    elif each.outcome == "crossover" and within != (None, None):
        fault = beyond(each.n, within)
    return Outcome(FAILS if fault else HOLDS, asked, crossover.text(each), fault)


KINDS = {"value": value, "ratio": ratio, "order": order, "exponent": exponent, "trend": trend,
         "crossover": crossover_length}


def run_check(run, check):
    """The Outcome of a claim's check; a selection without numbers is an outcome too."""
    try:
        return KINDS[check.kind](run, check.options, check.place)
    except Nothing as nothing:
        state = FAILS if nothing.broken else INCOMPARABLE if nothing.unsupported else MISSING
        asked = interval_text(*check.options["within"]) if check.options.get("within") not in (
            None, (None, None)) else ""
        return Outcome(state, asked, "", str(nothing))
