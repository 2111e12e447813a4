"""Growth exponents: the slope of log(value) over log(n)."""

import numpy as np

# Short lengths carry fixed costs; the exponent is about the long ones.
UPPER_FACTOR = 8
RULE = (f"fit over the lengths within a factor {UPPER_FACTOR} of the largest, three at least; "
        "least squares of the log medians, 95 % interval of Student's t")

# Student's t, 97.5 % quantile, by degrees of freedom.
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
         2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]


def t_975(degrees):
    return T_975[degrees - 1] if degrees <= len(T_975) else 1.960 + 2.5 / degrees


def upper_lengths(n):
    """Mask of the lengths that are fitted."""
    n = np.asarray(n, dtype=float)
    mask = n >= n.max() / UPPER_FACTOR
    if mask.sum() < 3:
        mask = n >= np.sort(n)[-3:].min()
    return mask


def exponent(n, values):
    """(slope, half width of its 95 % interval) over the upper lengths. The half width is None with
    two lengths, both are None with fewer. One value per length, all positive."""
    n, values = np.asarray(n, dtype=float), np.asarray(values, dtype=float)
    good = np.isfinite(values) & (values > 0) & (n > 0)
    n, values = n[good], values[good]
    if len(np.unique(n)) < 2:
        return None, None
    mask = upper_lengths(n)
    x, y = np.log(n[mask]), np.log(values[mask])
    centred = x - x.mean()
    sxx = (centred**2).sum()
    slope = (centred * y).sum() / sxx
    degrees = len(x) - 2
    if degrees < 1:
        return slope, None
    residual = y - y.mean() - slope * centred
    return slope, t_975(degrees) * np.sqrt((residual**2).sum() / degrees / sxx)


def exponent_text(n, values):
    """'1.98 +- 0.04' with a real plus-minus sign, '1.98', or ''."""
    slope, half = exponent(n, values)
    if slope is None:
        return ""
    if half is None:
        return f"{slope:.2f}"
    # Two digits say enough; below 0.005 the interval would read as zero.
    return f"{slope:.2f} \u00b1 {max(half, 0.01):.2f}"
