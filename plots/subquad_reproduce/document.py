"""Reading YAML with places: every complaint names file, line, column and key, all at once.

A parser is a function of an Item that returns a value or raises Bad; `mapping` and `list_of` make
parsers of parsers.
"""

import difflib
import math
from dataclasses import dataclass

import yaml

from subquad_plots.errors import UserError

REQUIRED = object()
KINDS = {yaml.ScalarNode: "one value", yaml.SequenceNode: "a list", yaml.MappingNode: "a map"}


class Bad(Exception):
    """One complaint, already with its place; or several, one a line."""


@dataclass
class Item:
    path: str        # of the file
    node: yaml.Node
    key: str         # claims[2].check; '' for the whole file

    def bad(self, text):
        mark = self.node.start_mark
        where = f"{self.key}: " if self.key else ""
        return Bad(f"{self.path}:{mark.line + 1}:{mark.column + 1}: {where}{text}")

    def shown(self):
        if isinstance(self.node, yaml.ScalarNode):
            return f'"{self.node.value}"' if self.node.value else "nothing"
        return KINDS[type(self.node)]

    def child(self, node, key):
        return Item(self.path, node, key)

    @property
    def place(self):
        return f"{self.path}:{self.node.start_mark.line + 1}"


def near(name, known):
    found = difflib.get_close_matches(name, known, 1, 0.5)
    return f'did you mean "{found[0]}"?' if found else f"expected one of {', '.join(known)}"


# ---- parsers of one value ----

def scalar(item):
    """Text, int, float, bool or None, as YAML has it."""
    if not isinstance(item.node, yaml.ScalarNode):
        raise item.bad(f"got {item.shown()}, expected one value")
    return yaml.SafeLoader("").construct_object(item.node)


def text(item):
    value = scalar(item)
    if not isinstance(value, str) or not value.strip():
        raise item.bad(f"got {item.shown()}, expected text")
    return value


def number(item):
    value = scalar(item)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise item.bad(f"got {item.shown()}, expected a number")
    return float(value)


def boolean(item):
    value = scalar(item)
    if not isinstance(value, bool):
        raise item.bad(f"got {item.shown()}, expected true or false")
    return value


def choice(*names):
    def parse(item):
        value = text(item)
        if value not in names:
            raise item.bad(f'"{value}" is unknown; {near(value, names)}')
        return value
    return parse


# ---- parsers of lists and maps ----

def list_of(parser, smallest=1):
    def parse(item):
        if not isinstance(item.node, yaml.SequenceNode):
            raise item.bad(f"got {item.shown()}, expected a list")
        if len(item.node.value) < smallest:
            raise item.bad(f"got {len(item.node.value)} elements, expected {smallest} or more")
        values, faults = [], []
        for place, node in enumerate(item.node.value):
            try:
                values.append(parser(item.child(node, f"{item.key}[{place}]")))
            except Bad as fault:
                faults.append(str(fault))
        if faults:
            raise Bad("\n".join(faults))
        return values
    return parse


def pairs(item):
    """(name, Item of the value) of a map, in order."""
    if not isinstance(item.node, yaml.MappingNode):
        raise item.bad(f"got {item.shown()}, expected a map")
    found = {}
    for key_node, node in item.node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise item.child(key_node, item.key).bad("expected a name as key")
        name = key_node.value
        if name in found:
            raise item.child(key_node, item.key).bad(f'key "{name}" stands twice')
        found[name] = item.child(node, f"{item.key}.{name}" if item.key else name)
        found[name].key_node = key_node
    return found


def mapping(**parsers):
    """Parser of a map with these keys: name=parser, or name=(parser, default). Returns a dict."""
    def parse(item):
        values, faults = {}, []
        for name, child in pairs(item).items():
            if name not in parsers:
                at = item.child(child.key_node, item.key)
                faults.append(str(at.bad(f'unknown key "{name}"; {near(name, list(parsers))}')))
                continue
            parser = parsers[name][0] if isinstance(parsers[name], tuple) else parsers[name]
            try:
                values[name] = parser(child)
            except Bad as fault:
                faults.append(str(fault))
        given = pairs(item)
        for name, parser in parsers.items():
            if name in given:
                continue
            if isinstance(parser, tuple):
                values[name] = parser[1]
            else:
                faults.append(str(item.bad(f'"{name}" is missing')))
        if faults:
            raise Bad("\n".join(faults))
        return values
    return parse


def map_of(parser):
    """Parser of a map with any names and values of one kind."""
    def parse(item):
        values, faults = {}, []
        for name, child in pairs(item).items():
            try:
                values[name] = parser(child)
            except Bad as fault:
                faults.append(str(fault))
        if faults:
            raise Bad("\n".join(faults))
        return values
    return parse


def read(path, parser):
    """The value of a file, or a UserError with one line for every complaint."""
    try:
        with open(path, encoding="utf-8") as file:
            node = yaml.compose(file, yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1}:{mark.column + 1}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}") from error
    if node is None:
        raise UserError(f"{path}:1:1: nothing in it, expected a map")
    try:
        return parser(Item(str(path), node, ""))
    except Bad as fault:
        raise UserError(str(fault)) from None
