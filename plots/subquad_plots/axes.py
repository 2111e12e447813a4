"""Logarithmic axes with few, well-placed, readable ticks."""

import math

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from . import units

MAX_TICKS = 7


def powers(base, step, low, high):
    """base^(k step) in [low, high]."""
    first = math.ceil(math.log(low) / math.log(base) / step - 1e-9)
    last = math.floor(math.log(high) / math.log(base) / step + 1e-9)
    return [float(base) ** (k * step) for k in range(first, last + 1)]


def one_two_five(low, high, digits=(1, 2, 5)):
    ticks = [digit * 10.0**k
             for k in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
             for digit in digits]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def decimal_candidates(low, high):
    yield one_two_five(low, high)
    yield one_two_five(low, high, (1, 3))
    for step in (1, 2, 3, 4, 6):
        yield powers(10, step, low, high)


def binary_candidates(low, high):
    for step in (1, 2, 3, 5, 10, 20):
        yield powers(2, step, low, high)


def pick(candidates, most=MAX_TICKS):
    """The densest set of ticks that is not crowded."""
    best = []
    for ticks in candidates:
        if len(ticks) <= most:
            return ticks if len(ticks) >= 2 or len(ticks) > len(best) else best
        best = ticks
    return best[:: math.ceil(len(best) / most)]


def padded(values, share=0.06, least=1.25):
    """Limits of a logarithmic axis around positive values."""
    values = np.asarray([value for value in values if np.isfinite(value) and value > 0])
    if not len(values):
        return 1.0, 10.0
    low, high = values.min(), values.max()
    factor = max((high / low) ** share, least)
    return low / factor, high * factor


def set_ticks(axis, ticks, formatter, minor=()):
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([formatter(tick) for tick in ticks]))
    axis.set_minor_locator(FixedLocator(minor) if len(minor) else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def decades_minor(ticks, low, high):
    """Unlabelled ticks between decades that are labelled one by one."""
    if len(ticks) < 2 or any(abs(math.log10(tick) - round(math.log10(tick))) > 1e-6
                             for tick in ticks) or ticks[1] / ticks[0] > 11 or high / low > 1e5:
        return []
    return one_two_five(low, high, range(2, 10))


def length_axis(axes, lengths):
    """x = sequence length, logarithmic; ticks at measured lengths as far as they have room."""
    lengths = sorted(set(float(n) for n in lengths))
    axes.set_xscale("log", base=2)
    axes.set_xlim(*padded(lengths, share=0.05, least=1.15))
    low, high = axes.get_xlim()
    width = axes.get_position().width * axes.figure.get_figwidth()
    kept = []  # from the largest down, so that the end of the curves is labelled
    for n in reversed(lengths):
        place = math.log(n / low) / math.log(high / low) * width
        half = len(units.length_text(n)) * 0.033 + 0.03  # inches at 7 points
        if not kept or kept[-1][1] - place >= half + kept[-1][2]:
            kept.append((n, place, half))
    ticks = [n for n, _, _ in reversed(kept)]
    set_ticks(axes.xaxis, ticks, units.length_text, [n for n in lengths if n not in ticks])
    axes.set_xlabel("sequence length n")


def value_axis(axis, low, high, kind):
    """Ticks of a logarithmic axis between its limits; kind: time, bytes, factor or error."""
    candidates = binary_candidates(low, high) if kind == "bytes" else decimal_candidates(low, high)
    most = 5 if kind == "time" and axis.axis_name == "x" else MAX_TICKS
    ticks = pick(candidates, most)
    minor = [] if kind == "bytes" else decades_minor(ticks, low, high)
    formatter = {"time": units.time_text, "bytes": units.bytes_text, "factor": units.factor_text,
                 "error": error_formatter(ticks)}[kind]
    set_ticks(axis, ticks, formatter, minor)


def error_formatter(ticks):
    """10^k where all ticks are powers of ten and some are small, else plain decimals."""
    exponents = [math.log10(tick) for tick in ticks]
    if all(abs(k - round(k)) < 1e-6 for k in exponents) and min(ticks, default=1) < 1e-2:
        return lambda tick: f"$10^{{{round(math.log10(tick))}}}$"
    return lambda tick: f"{tick:g}" if tick >= 1e-4 else f"{tick:.0e}"


def log_y(axes, values, kind, **pad):
    axes.set_yscale("log")
    low, high = padded(values, **pad)
    axes.set_ylim(low, high)
    value_axis(axes.yaxis, low, high, kind)


def log_x(axes, values, kind, **pad):
    axes.set_xscale("log")
    low, high = padded(values, **pad)
    axes.set_xlim(low, high)
    value_axis(axes.xaxis, low, high, kind)
