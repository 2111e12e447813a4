"""Finding expectation files: PAPER, PAPER/TABLE or all."""

import difflib
from pathlib import Path

from subquad_plots.errors import UserError

from . import expectation

ROOT = Path(__file__).resolve().parents[2]  # of the project, or of what was installed
CONFIGS = ROOT / "configs" / "papers"
COMMITTED = ROOT / "results" / "papers"


def paths(configs=CONFIGS):
    return sorted(Path(configs).glob(f"*/*{expectation.SUFFIX}"))


def entry_name(path):
    return f"{path.parent.name}/{path.name[:-len(expectation.SUFFIX)]}"


def find(what, configs=CONFIGS):
    """The Expectations of `all`, a paper or PAPER/TABLE. All faults of the files at once."""
    found = paths(configs)
    names = [entry_name(path) for path in found]
    chosen = [path for path, name in zip(found, names)
              if what in ("all", name, name.partition("/")[0])]
    if not chosen:
        known = sorted({name.partition("/")[0] for name in names}) + names + ["all"]
        near = difflib.get_close_matches(what, known, 1, 0.5)
        hint = f'did you mean "{near[0]}"?' if near else "see subquad reproduce --list"
        raise UserError(f'no paper or table "{what}"; {hint}')
    read, faults = [], []
    for path in chosen:
        try:
            read.append(expectation.read(path))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    return read
