"""Numbers with units as people write them: 256, 1k; 20 us, 1 ms; 4 KiB, 1 MiB."""

import math

MICRO = "\u00b5"
TIME_UNITS = [(1e-9, "ns"), (1e-6, MICRO + "s"), (1e-3, "ms"), (1.0, "s"), (1e3, "ks")]
BYTE_UNITS = [(1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB")]


def length_text(n):
    """1024 -> 1k, 1536 -> 1.5k, 1000 -> 1000, 2^20 -> 1M: k and M are binary and exact."""
    for unit, suffix in ((2**20, "M"), (2**10, "k")):
        if n >= unit and (2 * n) % unit == 0:
            return f"{n / unit:g}{suffix}"
    return f"{n:g}" if n < 1e6 else f"{n:.0f}"


def unit_for(value, units):
    """The largest unit in which the value is 1 or more."""
    fitting = [unit for unit in units if abs(value) >= unit[0] * 0.9999]
    return fitting[-1] if fitting else units[0]


def time_text(seconds):
    unit, name = unit_for(seconds, TIME_UNITS)
    return f"{significant(seconds / unit, 3)} {name}"


def bytes_text(count):
    unit, name = unit_for(count, BYTE_UNITS)
    return f"{significant(count / unit, 3)} {name}"


def factor_text(value):
    return f"{significant(value, 3)}\u00d7"


def error_text(value):
    """Powers of ten as mathematics, others plainly."""
    power = math.log10(value)
    if abs(power - round(power)) < 1e-9 and not -3 < power < 3:
        return f"$10^{{{round(power)}}}$"
    if value < 1e-3:
        digit, exponent = f"{value:.0e}".split("e")
        return f"${digit}{{\\cdot}}10^{{{int(exponent)}}}$"
    return f"{value:g}"


def significant(value, digits, trim=True):
    """Plain decimal notation with so many significant digits; 1234.5 stays 1234."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if trim and "." in text else text
