"""Statistics of comparisons: hand-computed cases, scipy's tests, simulations of power and of Holm's correction."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.core import statistics
from benchmarks.core.statistics import (
    FEWEST,
    Difference,
    compare,
    compare_all,
    holm,
    level,
    power,
    residual_deviation,
    seeds_for_power,
    verdict,
)

TWO = {"a": {0: 50.0, 1: 52.0, 2: 51.0, 7: 9.0}, "b": {0: 49.0, 1: 50.5, 2: 50.8, 8: 70.0}}
THREE = {"a": {0: 7, 1: 10, 2: 14}, "b": {0: 20, 1: 20, 2: 21}, "c": {0: 30, 1: 30, 2: 31}}
LACKING = {
    "a": {0: 1.0, 1: 2.5, 2: 4.0, 3: 3.0},
    "b": {1: 2.0, 2: 3.7, 3: 1.0, 4: 9.0},
    "c": {0: 5.0, 2: 8.1, 4: 12.2},
}


def line(rng: np.random.Generator, means: dict[str, float], seeds: int) -> dict:
    """Arms of these means, with effects of the seeds and residuals of standard deviation 1."""
    effects = 3 * rng.standard_normal(seeds)
    return {
        arm: dict(enumerate((mean + effects + rng.standard_normal(seeds)).tolist()))
        for arm, mean in means.items()
    }


def test_the_examples_run():
    failed, tried = doctest.testmod(statistics)
    assert tried >= 6 and not failed


def test_two_arms_compare_as_in_a_paired_t_test():
    """Also where each has a seed that the other lacks: its effect takes up what that run says."""
    difference = compare(TWO, "a", "b", level=0.9)
    reference = stats.ttest_rel([50.0, 52.0, 51.0], [49.0, 50.5, 50.8])
    low, high = reference.confidence_interval(0.9)
    assert difference.mean == pytest.approx(0.9) and difference.seeds == 3
    assert difference.p == pytest.approx(reference.pvalue)
    assert difference.half == pytest.approx((high - low) / 2)
    deviation, dof = residual_deviation(TWO)
    assert dof == 2
    assert deviation * math.sqrt(2 / 3) == pytest.approx(stats.sem([1.0, 1.5, 0.2]))
    back = compare(TWO, "b", "a", level=0.9)
    assert (back.mean, back.p) == (pytest.approx(-0.9), pytest.approx(difference.p))


def test_the_residual_deviation_by_hand():
    deviation, dof = residual_deviation(THREE)
    # less the means of arms: a (-10, -1, 11)/3, b and c (-1, -1, 2)/3; of seeds: (-4, -1, 5)/3
    # what is left: a (-2, 0, 2), b and c (1, 0, -1), squares of 12 on (3 - 1)(3 - 1) degrees of freedom
    assert dof == 4 and deviation == pytest.approx(math.sqrt(12 / 4))
    # two pairs of arms without a seed in common: the mean of the variances of their differences, halved
    apart = {"a": {0: 1, 1: 2, 2: 3}, "b": {0: 0, 1: 0, 2: 0}, "c": {5: 4, 6: 0}, "d": {5: 0, 6: 0}}
    deviation, dof = residual_deviation(apart)
    assert dof == 3 and deviation == pytest.approx(math.sqrt((2 * 1 / 2 + 1 * 8 / 2) / 3))


def test_the_residual_deviation_of_arms_that_lack_seeds_is_that_of_least_squares():
    values = [(arm, seed, v) for arm, own in LACKING.items() for seed, v in own.items()]
    left = {(arm, seed): v for arm, seed, v in values}
    for _ in range(500):  # arms' and seeds' means in turn are least squares too
        for axis in (0, 1):
            for name in {key[axis] for key in left}:
                keys = [key for key in left if key[axis] == name]
                mean = sum(left[key] for key in keys) / len(keys)
                left |= {key: left[key] - mean for key in keys}
    deviation, dof = residual_deviation(LACKING)
    assert dof == 11 - (3 + 5 - 1)
    assert deviation == pytest.approx(math.sqrt(sum(v**2 for v in left.values()) / dof))
    assert compare(LACKING, "a", "b").seeds == 3
    assert compare(LACKING, "a", "b").mean == pytest.approx((0.5 + 0.3 + 2.0) / 3)


def test_the_squared_residual_deviation_is_unbiased():
    rng, squares = np.random.default_rng(0), []
    for _ in range(400):
        values = line(rng, {"a": 1.0, "b": 2.0, "c": 5.0}, 6)
        for arm, seed in (("a", 0), ("a", 1), ("b", 2), ("c", 5)):
            del values[arm][seed]
        deviation, dof = residual_deviation(values)
        squares.append(deviation**2)
    assert dof == 14 - 8
    # four standard errors of a variance of 6 degrees of freedom
    assert np.mean(squares) == pytest.approx(1, abs=4 * math.sqrt(2 / 6 / 400))


@pytest.mark.parametrize("values", [TWO, THREE, LACKING])
def test_a_constant_per_seed_or_arm_changes_no_error(values):
    moved = {
        arm: {s: v + 10 * s**2 + 3 * i for s, v in own.items()}
        for i, (arm, own) in enumerate(values.items())
    }
    deviation, dof = residual_deviation(values)
    assert residual_deviation(moved) == (pytest.approx(deviation), dof)
    by_seed = {arm: {s: v + 10 * s**2 for s, v in own.items()} for arm, own in values.items()}
    own, same = compare(values, "a", "b"), compare(by_seed, "a", "b")
    assert (same.mean, same.half) == (pytest.approx(own.mean), pytest.approx(own.half))
    assert same.p == pytest.approx(own.p) and same.seeds == own.seeds


@pytest.mark.parametrize("values", [
    {}, {"a": {}}, {"a": {0: 1.0, 1: 2.0}}, {"a": {0: 1.0}, "b": {0: 2.0}},
    {"a": {0: 1.0, 1: 2.0}, "b": {2: 2.0, 3: 1.0}}, {"a": {0: 1.0, 1: 2.0}, "b": {1: 2.0}},
])  # fmt: skip
def test_without_degrees_of_freedom_it_says_what_to_run(values):
    with pytest.raises(ValueError, match="share two seeds or more, got .* run more arms"):
        residual_deviation(values)


def test_wrong_values_and_arms_raise():
    with pytest.raises(ValueError, match="got nan of b, seed 1; leave"):
        residual_deviation({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: math.nan}})
    for arm, other in (("a", "a"), ("a", "nfa"), ("nfa", "a")):
        with pytest.raises(ValueError, match=f"arms a, b, got {arm} and {other}"):
            compare(TWO, arm, other)
    apart = THREE | {"d": {9: 1.0}}
    with pytest.raises(ValueError, match="a seed that both d and a have"):
        compare(apart, "d", "a")
    assert list(compare_all(apart, "a")) == ["b", "c"], "no seed, no comparison"
    with pytest.raises(ValueError, match="arms a, b, got baseline"):
        compare_all(TWO, "baseline")


def test_runs_that_repeat_each_other_show_nothing():
    values = {"a": {s: 90.1 + 0.7 * s for s in range(50)}}
    values |= {f"b{i}": {s: v + 0.1 * i for s, v in values["a"].items()} for i in range(5)}
    assert residual_deviation(values) == (0.0, 5 * 49)
    found = compare_all(values, "a")["b4"]
    assert found.mean == pytest.approx(0.4) and math.isnan(found.half) and math.isnan(found.p)
    assert verdict(found, 1.0, 245) == "not decided"
    assert verdict(found, 1.0, 245, seeds=51) == "50 of 51 seeds"


def test_holm_by_hand():
    assert holm({}) == {} and holm({"a": 0.2}) == {"a": 0.2}
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.6})
    # 4 x 0.01, 3 x 0.03, no less than that though 2 x 0.04, 0.6
    assert found == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.6})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.5, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    found = holm({"a": 0.02, "b": math.nan, "c": 0.5})
    assert (found["a"], found["c"]) == (0.04, 0.5) and math.isnan(found["b"])
    assert holm({"a": 0.02, "b": 0.001}, 4) == {"a": 0.06, "b": 0.004}, "two are still to be made"
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm({"a": 1.2})


@pytest.mark.parametrize("seed", range(20))
def test_comparisons_that_are_still_to_be_made_only_lower_p(seed):
    every = dict(enumerate(np.random.default_rng(seed).uniform(0, 0.2, 9).tolist()))
    some = {k: p for k, p in every.items() if k % 2}
    final = holm(every)
    assert all(final[k] <= p for k, p in holm(some, len(every)).items())


def test_a_line_is_compared_as_a_whole():
    found = compare_all(THREE, "a")
    for arm, difference in found.items():
        assert replace(difference, holm=None) == compare(THREE, arm, "a")
    assert {a: d.holm for a, d in found.items()} == holm({a: d.p for a, d in found.items()})
    error = residual_deviation(THREE)[0] * math.sqrt(2 / 3)
    assert found["b"].half == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert found["b"].p == pytest.approx(2 * stats.t.sf(abs(found["b"].mean) / error, 4))


@pytest.mark.parametrize("gains", [(0.0, 0.0, 0.0, 0.0), (2.5, 0.0, 0.0, 0.0)])
def test_holm_keeps_the_familywise_error(gains):
    """Of arms without a gain one is called ahead or behind in at most 5% of lines, another's gain or not."""
    rng, lines, wrong, unadjusted = np.random.default_rng(1), 2000, 0, 0
    means = {"base": 0.0} | {f"arm {i}": gain for i, gain in enumerate(gains)}
    for _ in range(lines):
        found = compare_all(line(rng, means, 5), "base")
        null = [found[name] for name, mean in means.items() if name != "base" and not mean]
        wrong += any(d.holm < 0.05 for d in null)
        unadjusted += any(d.p < 0.05 for d in null)
    # three standard errors of a share of 5%
    assert wrong / lines < 0.05 + 3 * math.sqrt(0.05 * 0.95 / lines) < unadjusted / lines


def test_level_is_two_one_sided_tests():
    a, b = [50.0, 52.0, 51.0, 53.0], [49.9, 52.2, 51.1, 53.3]
    values = {"a": dict(enumerate(a)), "b": dict(enumerate(b))}
    difference, (_, dof) = compare_all(values, "b")["a"], residual_deviation(values)
    differences = np.subtract(a, b)

    def larger_p(margin):
        above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        return max(above, stats.ttest_1samp(differences, margin, alternative="less").pvalue)

    margins = np.linspace(0.05, 0.6, 100)
    assert [level(difference, m, dof) for m in margins] == [larger_p(m) <= 0.05 for m in margins]
    wide = compare(values, "a", "b", level=0.99)
    assert [level(wide, m, dof) for m in margins] == [larger_p(m) <= 0.05 for m in margins]
    with pytest.raises(ValueError, match="margin above 0, got -1"):
        level(difference, -1, dof)


def test_equal_arms_are_called_level_and_those_a_margin_apart_seldom():
    rng, lines = np.random.default_rng(2), 400
    shares = []
    for gain in (0.0, 1.0):
        found = [line(rng, {"a": gain, "b": 0.0, "c": 0.0}, 20) for _ in range(lines)]
        shares.append(np.mean([level(compare(v, "a", "b"), 1.0, 38) for v in found]))
    # three standard errors of a share of 5%
    assert shares[0] > 0.8 and shares[1] < 0.05 + 3 * math.sqrt(0.05 * 0.95 / lines)


@pytest.mark.parametrize(("mean", "half", "adjusted", "words"), [
    (0.5, 0.3, 0.01, "ahead"), (-0.5, 0.3, 0.01, "behind"), (0.3, 0.2, 0.06, "level within ±0.5"),
    (0.3, 0.2, 0.049, "ahead"), (0.3, 0.3, 0.06, "not decided"), (-0.4, 0.2, 0.05, "not decided"),
])  # fmt: skip
def test_verdicts(mean, half, adjusted, words):
    difference = Difference(mean, half, adjusted / 4, 5, holm=adjusted)  # half at 90%: 0.83 half
    assert verdict(difference, 0.5, 16) == words


def test_verdicts_want_the_correction():
    with pytest.raises(ValueError, match="from compare_all"):
        verdict(compare(TWO, "a", "b"), 0.5, 2)


@pytest.mark.parametrize(("gain", "seeds", "tests"), [(1.0, 5, 1), (2.5, 3, 1), (1.5, 5, 3)])
def test_power_is_that_of_simulated_lines(gain, seeds, tests):
    rng, lines, found = np.random.default_rng(3), 3000, 0
    means = {"base": 0.0, "arm": gain} | {f"other {i}": 0.0 for i in range(tests - 1)}
    for _ in range(lines):
        difference = compare(line(rng, means, seeds), "arm", "base")
        found += difference.mean > 0 and difference.p < 0.05 / tests
    expected = power(gain, 1.0, seeds, tests)
    # three standard errors of a share
    tolerance = 3 * math.sqrt(expected * (1 - expected) / lines)
    assert found / lines == pytest.approx(expected, abs=tolerance)


def test_power_grows_from_chance_to_certainty():
    assert power(0.0, 1.0, 5) == pytest.approx(0.025), "of 5% in the right direction"
    grown = [power(0.5, 1.0, n) for n in range(2, 40)]
    assert grown == sorted(grown) and power(50.0, 1.0, 50) == 1.0
    assert power(0.5, 1.0, 10) == power(-0.5, 1.0, 10) == pytest.approx(power(1.0, 2.0, 10))
    # with the deviation as good as known: the normal distribution
    known = stats.norm.sf(1.96 - 0.1 / math.sqrt(2 / 2000))
    assert power(0.1, 1.0, 2000) == pytest.approx(known, abs=1e-3)  # Student's of 1999 degrees
    for wrong in ((1.0, 1.0, 1), (1.0, 0.0, 5), (1.0, 1.0, 5, 0)):
        with pytest.raises(ValueError, match="two seeds or more, a test or more and a deviation"):
            power(*wrong)


@pytest.mark.parametrize("gain", [0.05, 0.5, -0.5, 1.0])
@pytest.mark.parametrize("tests", [1, 6])
def test_seeds_for_power_are_the_fewest(gain, tests):
    count = seeds_for_power(gain, 0.5, tests=tests)
    assert power(gain, 0.5, count - 1, tests) < 0.8 <= power(gain, 0.5, count, tests)
    assert seeds_for_power(gain, 0.5, 0.95, tests) > count


def test_seeds_for_power_start_at_the_fewest_that_have_an_interval():
    assert seeds_for_power(90.0, 0.5) == seeds_for_power(0.3, 0.5, power=0.001) == FEWEST
    for wrong in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="a gain other than 0"):
            seeds_for_power(*wrong)
