"""Expectation files: what a paper says about one config, as tables of its values and as claims that
can be checked. configs/papers/README.md explains every key; this file is their schema."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from subquad_plots import load

from . import document
from .document import boolean, choice, list_of, map_of, mapping, number, pairs, scalar, text

SUFFIX = ".expect.yaml"
SCALES = ("smoke", "laptop", "paper")  # from the smallest
METRIC = "metric."                     # value: metric.pool_recall is one of method_metrics


@dataclass
class Scale:
    settings: list = field(default_factory=list)  # KEY=VALUE, as --set
    filters: list = field(default_factory=list)   # as --filter
    skip: str = ""                                # why there is no run at this scale


@dataclass
class Row:
    name: str
    where: dict
    value: str = ""  # another column than the table's


@dataclass
class Table:
    title: str
    value: str
    where: dict
    rows: list          # of Row
    key: str            # column or parameter that makes the columns
    columns: list
    to: str             # name of the row by which all are divided, or ''
    paper: dict         # row name -> one value per column: number, (low, high) or None
    tolerance: float    # relative; None: the paper's values are not compared
    not_comparable: str
    place: str


@dataclass
class Check:
    kind: str
    options: dict
    place: str


@dataclass
class Claim:
    text: str
    paper: str           # where the paper says so, and its numbers
    check: Check         # or None
    not_comparable: str  # why it is not checked
    essential: bool
    contradicted: bool
    scale: str           # the smallest at which it is asked
    because: str


@dataclass
class Expectation:
    paper: str     # folder
    name: str      # stem of the config
    path: Path
    title: str
    source: str
    hardware: str
    ours: str
    config: Path   # or None: nothing to run
    script: Path   # or None: started instead of `subquad run CONFIG`
    minutes: float
    figures: list  # names of the kinds that are drawn
    scales: dict   # name -> Scale
    tables: list
    claims: list

    @property
    def entry(self):
        return f"{self.paper}/{self.name}"


# ---- parts ----

def value_name(item):
    name = text(item)
    if name.startswith(METRIC) or name in load.NUMERIC:
        return name
    raise item.bad(f'no column "{name}"; {document.near(name, load.NUMERIC)}, or metric.NAME '
                   "for one of method_metrics")


def wanted(item):
    """Value of a selector: one or several alternatives, 'min' and 'max' of n among them."""
    if isinstance(item.node, yaml.SequenceNode):
        return list_of(scalar)(item)
    return [scalar(item)]


def selector(item):
    """Label of a method, or a map of columns and parameters."""
    if isinstance(item.node, yaml.ScalarNode):
        return {"label": [text(item)]}
    return map_of(wanted)(item)


def interval(item):
    """[low, high]; null leaves an end open."""
    def end(child):
        return None if scalar(child) is None else number(child)
    ends = list_of(end)(item)
    if len(ends) != 2 or ends == [None, None]:
        raise item.bad("expected [low, high], where one of the two may be null")
    if None not in ends and ends[0] > ends[1]:
        raise item.bad(f"got [{ends[0]:g}, {ends[1]:g}], expected the lower end first")
    return tuple(ends)


def paper_value(item):
    if isinstance(item.node, yaml.SequenceNode):
        low, high = interval(item)
        return low, high
    return None if scalar(item) is None else number(item)


def row(item):
    if isinstance(item.node, yaml.ScalarNode):
        return Row(text(item), selector(item))
    return Row(**mapping(name=text, where=map_of(wanted), value=(value_name, ""))(item))


def one_column(item):
    found = map_of(list_of(scalar))(item)
    if len(found) != 1:
        raise item.bad(f"got {len(found)} keys, expected one, such as n: [512, 1024]")
    return next(iter(found.items()))


def table(item):
    found = mapping(title=text, value=value_name, where=(map_of(wanted), {}), rows=list_of(row),
                    columns=one_column, to=(text, ""), paper=(map_of(list_of(paper_value)), {}),
                    tolerance=(number, None), not_comparable=(text, ""))(item)
    key, columns = found.pop("columns")
    names = [each.name for each in found["rows"]]
    for name, values in found["paper"].items():
        if name not in names:
            raise item.bad(f'paper: no row "{name}"; {document.near(name, names)}')
        if len(values) != len(columns):
            raise item.bad(f"paper.{name}: got {len(values)} values, expected {len(columns)}, one "
                           "per column; null where the paper has none")
    if found["to"] and found["to"] not in names:
        raise item.bad(f'to: no row "{found["to"]}"; {document.near(found["to"], names)}')
    if found["to"] and any(each.value for each in found["rows"]):
        raise item.bad("to: ratios are of one value, and a row has one of its own")
    if found["paper"] and (found["tolerance"] is None) == (not found["not_comparable"]):
        raise item.bad("with the paper's values give either tolerance, or not_comparable and why")
    return Table(key=key, columns=columns, place=item.place, **found)


COMMON = {"value": value_name, "where": (map_of(wanted), {})}
KINDS = {
    "exponent": mapping(of=selector, within=interval, **COMMON),
    "order": mapping(of=list_of(selector, 2), **COMMON),
    "ratio": mapping(of=selector, to=selector, within=interval, **COMMON),
    "value": mapping(of=selector, within=interval, **COMMON),
    "trend": mapping(of=selector, over=text, direction=choice("falls", "rises", "flat"),
                     slack=(number, 0.0), **COMMON),
    "crossover": mapping(of=text, quantity=(choice("time", "memory"), "time"),
                         where=(map_of(wanted), {}),
                         outcome=(list_of(choice("crossover", "always", "not_reached")),
                                  ["crossover"]),
                         within=(interval, (None, None))),
}


def check(item):
    given = pairs(item)
    if len(given) != 1:
        raise item.bad(f"got {len(given)} keys, expected one of {', '.join(KINDS)}")
    kind, child = next(iter(given.items()))
    if kind not in KINDS:
        raise item.bad(f'unknown kind "{kind}"; {document.near(kind, list(KINDS))}')
    return Check(kind, KINDS[kind](child), item.place)


def claim(item):
    found = mapping(text=text, paper=text, check=(check, None), not_comparable=(text, ""),
                    essential=(boolean, True), contradicted=(boolean, False),
                    scale=(choice(*SCALES), "laptop"), because=(text, ""))(item)
    if (found["check"] is None) == (not found["not_comparable"]):
        raise item.bad("expected either check, or not_comparable and why")
    if found["contradicted"] and not found["because"]:
        raise item.bad("contradicted: true asks for because, one sentence that says why")
    return Claim(**found)


def figure_names(item):
    # Here, for only files that ask for figures need what draws them.
    from subquad_plots import figures
    return list_of(choice(*(kind.NAME for kind in figures.FIGURES)))(item)


def scale(item):
    found = mapping(set=(list_of(text), []), filter=(list_of(text), []), skip=(text, ""))(item)
    for setting in found["set"]:
        if "=" not in setting:
            raise item.bad(f'set: got "{setting}", expected KEY=VALUE')
    return Scale(found["set"], found["filter"], found["skip"])


def file(item):
    found = mapping(title=text, source=text, hardware=text, ours=(text, ""), config=(text, ""),
                    script=(text, ""), minutes=(number, None), figures=(figure_names, []),
                    scales=(mapping(smoke=scale, laptop=(scale, Scale()), paper=(scale, None)),
                            None),
                    tables=(list_of(table), []), claims=list_of(claim))(item)
    runs = found["config"] != "none"
    if runs and (found["scales"] is None or found["minutes"] is None):
        raise item.bad('expected "minutes" and "scales" with a "smoke"; or config: none')
    if not runs and (found["tables"] or any(each.check for each in found["claims"])):
        raise item.bad("config: none leaves nothing to check: no tables, and claims with "
                       "not_comparable only")
    return found


def read(path):
    """The Expectation of configs/papers/PAPER/NAME.expect.yaml."""
    path = Path(path)
    found = document.read(path, file)
    name = path.name[: -len(SUFFIX)]
    config, script = found.pop("config"), found.pop("script")
    scales = found.pop("scales") or {}
    return Expectation(
        paper=path.parent.name, name=name, path=path,
        config=None if config == "none" else path.parent / (config or f"{name}.yaml"),
        script=path.parent / script if script else None,
        scales={each: value for each, value in scales.items() if value is not None}, **found)
