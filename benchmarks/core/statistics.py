"""The statistics of comparisons: intervals, paired differences, Holm, equivalence, power.

A line is all arms of one cell of the protocol, {arm: {seed: value}}. Its differences are paired by
seed, and their error comes from all of its arms:

>>> line = {"baseline": {0: 40.0, 1: 42.0, 2: 41.0}, "nfa": {0: 44.1, 1: 45.9, 2: 45.0},
...         "noise": {0: 40.2, 1: 41.9, 2: 41.3}}
>>> found = compare_all(line, "baseline")
>>> print(f"{found['nfa'].mean:+.1f} ± {found['nfa'].half:.1f}")
+4.0 ± 0.3
>>> deviation, dof = residual_deviation(line)
>>> verdict(found["nfa"], 0.5, dof), verdict(found["noise"], 0.5, dof)
('ahead', 'level within ±0.5')

Sources: Holm 1979 (correction); Schuirmann 1987 (two one-sided tests).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from scipy import stats

Line = dict[str, dict[int, float]]  # arm to seed to value

ALPHA = 0.05  # of every test
FEWEST = 3  # seeds of a comparison: the spread of two is itself chance
ROUNDING = 1e-12  # of the largest value: what least squares leaves of residuals that are zero


def _reach(level: float, dof: int) -> float:
    """The standard errors to either side of a mean that a Student interval of this level takes."""
    return float(stats.t.ppf(0.5 + level / 2, dof))


def residual_deviation(values: Line) -> tuple[float, int]:
    """Residual standard deviation of value = arm + seed over a line, and its degrees of freedom.

    Fitted by least squares, so that arms may lack seeds. Residuals of zero up to rounding give 0.
    Raises ValueError where no degree of freedom is left, or where a value is not finite.
    """
    runs = [(arm, seed, v) for arm, by_seed in values.items() for seed, v in by_seed.items()]
    for arm, seed, value in runs:
        if not math.isfinite(value):
            raise ValueError(
                f"expected finite values, got {value} of {arm}, seed {seed}; leave that run out"
            )
    seeds = sorted({seed for _, seed, _ in runs})
    rows = [[arm == a for a in values] + [seed == s for s in seeds] for arm, seed, _ in runs]
    design = np.array(rows, float).reshape(len(runs), -1 if runs else 0)  # (runs, arms + seeds)
    y = np.array([value for *_, value in runs])
    effects, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    dof = len(runs) - int(rank)
    if not dof:
        raise ValueError(
            f"expected two arms or more that share two seeds or more, got {len(runs)} runs of "
            f"{len(values)} arms and {len(seeds)} seeds; "
            "run more arms of the line on the same seeds"
        )
    deviation = float(np.linalg.norm(y - design @ effects)) / math.sqrt(dof)
    return (deviation if deviation > ROUNDING * np.abs(y).max() else 0.0), dof


@dataclass(frozen=True)
class Difference:
    """The mean difference of two arms, with the error of their whole line."""

    mean: float
    half: float  # half the width of the interval at `level`
    p: float  # two-sided, of this comparison alone
    seeds: int  # that both arms have
    holm: float | None = None  # p adjusted for all comparisons of the line; None before that
    level: float = 0.95


def compare(values: Line, arm: str, other: str, level: float = 0.95) -> Difference:
    """Difference arm - other over the seeds both have, with the line's pooled residual deviation.

    The standard error is sqrt(2 / seeds) times that deviation; interval and p are Student's with
    its degrees of freedom, exact where all arms have the same seeds. No interval and p where the
    deviation is 0: runs that repeat each other tell nothing about chance.
    """
    return _difference(values, arm, other, level, *residual_deviation(values))


def _difference(
    values: Line, arm: str, other: str, level: float, deviation: float, dof: int
) -> Difference:
    """`compare` with the deviation at hand."""
    if arm == other or not {arm, other} <= set(values):
        raise ValueError(f"expected two of the arms {', '.join(values)}, got {arm} and {other}")
    seeds = sorted(set(values[arm]) & set(values[other]))
    if not seeds:
        raise ValueError(
            f"expected a seed that both {arm} and {other} have, got none; "
            "run one on seeds of the other"
        )
    mean = fmean(values[arm][s] - values[other][s] for s in seeds)
    if not deviation:
        return Difference(mean, math.nan, math.nan, len(seeds), level=level)
    error = deviation * math.sqrt(2 / len(seeds))
    p = 2 * float(stats.t.sf(abs(mean) / error, dof))
    return Difference(mean, _reach(level, dof) * error, p, len(seeds), level=level)


def holm(p: dict[str, float], tests: int = 0) -> dict[str, float]:
    """Adjusts p values for being several, by Holm's method; NaN is no test, stays and does not count.

    Args:
        tests: how many there are in all, where some are still to be made: an upper bound of what
            the adjusted values will then be.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    made = sorted((own, name) for name, own in p.items() if not math.isnan(own))
    if made and not 0 <= made[0][0] <= made[-1][0] <= 1:
        raise ValueError(f"expected p values in [0, 1], got {made[0][0]} to {made[-1][0]}")
    adjusted, largest = dict(p), 0.0
    for i, (own, name) in enumerate(made):
        largest = max(largest, min(1.0, (max(tests, len(made)) - i) * own))
        adjusted[name] = largest
    return adjusted


def compare_all(values: Line, other: str, tests: int = 0) -> dict[str, Difference]:
    """Differences of all arms of a line to one of them, their p adjusted by Holm's method too.

    Arms that share no seed with it are left out. `tests` is that of `holm`.
    """
    deviation, dof = residual_deviation(values)
    if other not in values:
        raise ValueError(f"expected one of the arms {', '.join(values)}, got {other}")
    arms = [arm for arm in values if arm != other and set(values[arm]) & set(values[other])]
    found = {arm: _difference(values, arm, other, 0.95, deviation, dof) for arm in arms}
    return corrected(found, tests)


def corrected(found: dict[str, Difference], tests: int = 0) -> dict[str, Difference]:
    """Differences with their p adjusted for being several, by Holm's method; `tests` is that of `holm`."""
    adjusted = holm({name: difference.p for name, difference in found.items()}, tests)
    return {name: replace(difference, holm=adjusted[name]) for name, difference in found.items()}


def level(difference: Difference, margin: float, dof: int) -> bool:
    """Whether two arms are equivalent, by two one-sided tests at 5%: closer than `margin`.

    That is, the 90% interval lies within -margin to margin. `dof` is that of `residual_deviation`.
    """
    if not margin > 0:
        raise ValueError(f"expected a margin above 0, got {margin}")
    half = difference.half * _reach(1 - 2 * ALPHA, dof) / _reach(difference.level, dof)
    return abs(difference.mean) + half <= margin


def significant(difference: Difference, seeds: int = 0) -> bool:
    """Whether Holm's p is below 5%, on `seeds` seeds at least."""
    if difference.holm is None:
        raise ValueError(
            "expected a difference with Holm's p, got one without; take it from compare_all"
        )
    return difference.seeds >= seeds and difference.holm < ALPHA


def verdict(difference: Difference, margin: float, dof: int, seeds: int = 0) -> str:
    """What is shown: "ahead" or "behind" by Holm's p, else "level within ±..." or "not decided".

    With fewer than `seeds` nothing is said yet, but "2 of 5 seeds".
    """
    if difference.seeds < seeds:
        return f"{difference.seeds} of {seeds} seeds"
    if significant(difference):
        return "ahead" if difference.mean > 0 else "behind"
    if level(difference, margin, dof):
        return f"level within ±{margin:g}"
    return "not decided"


def power(gain: float, deviation: float, seeds: int, tests: int = 1) -> float:
    """Probability that a line of this residual deviation finds a true gain, at 5% two-sided.

    The line has `tests` arms and what they are compared with, all with the same seeds; Bonferroni's
    correction for the tests makes it a lower bound of Holm's. Finding it in the wrong direction
    does not count.

    >>> print(f"{power(0.3, 0.2, 5):.2f} {power(0.3, 0.2, 5, tests=4):.2f}")
    0.44 0.36
    """
    if seeds < 2 or tests < 1 or not deviation > 0:
        raise ValueError(
            "expected two seeds or more, a test or more and a deviation above 0, "
            f"got {seeds}, {tests} and {deviation}"
        )
    return _power(gain, deviation, seeds, tests)


def _power(gain: float, deviation: float, seeds: int, tests: int) -> float:
    dof = tests * (seeds - 1)
    noncentrality = abs(gain) / (deviation * math.sqrt(2 / seeds))
    return float(stats.nct.sf(_reach(1 - ALPHA / tests, dof), dof, noncentrality))


def seeds_for_power(gain: float, deviation: float, power: float = 0.8, tests: int = 1) -> int:
    """The least number of seeds, from `FEWEST` on, that give a line the `power` asked for."""
    if not (gain and deviation > 0 and 0 < power < 1):
        raise ValueError(
            "expected a gain other than 0, a deviation above 0 and a power between 0 and 1, "
            f"got {gain}, {deviation} and {power}"
        )
    # as many as with the deviation known, which are fewer
    errors = stats.norm.ppf(1 - ALPHA / tests / 2) + stats.norm.ppf(power)
    count = max(FEWEST, int(2 * (max(errors, 0.0) * deviation / gain) ** 2))
    while _power(gain, deviation, count, tests) < power:
        count += 1
    return count
