"""Statistics of raw values: percentiles, and tests whether a mean difference between paired values is chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MissingDependencyError
from ..pip_command import pip_install

#: Number of random sign flips of the randomisation test; its smallest p value is 1 / (this + 1).
RESAMPLES = 9_999

#: Smaller differences are rounding errors: the same values were added in another order.
_NOISE = 1e-12


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, percentiles (linear interpolation), extremes and sample standard deviation, in the given unit."""
    array = np.asarray(values, dtype=np.float64)
    quantiles = dict(zip(("p50", "p90", "p95", "p99"), np.percentile(array, (50, 90, 95, 99)).tolist(), strict=True))
    return {
        "n": len(array),
        "mean": float(array.mean()),
        "stdev": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
        **quantiles,
    }


@dataclass(frozen=True)
class Significance:
    """A mean difference between paired values, and how likely chance alone gives one as large.

    Attributes:
        difference: mean of b - a.
        low, high: its 95% confidence interval, by Student's t.
        t_test: two-sided p value of the paired t-test, for which means over many queries are normal enough.
        randomisation: two-sided p value of Fisher's randomisation test, which assumes no distribution: how often
            random signs of the differences give a mean as far from 0.
        wins, losses, ties: number of queries where b is above, below and equal to a.
    """

    difference: float
    low: float
    high: float
    t_test: float
    randomisation: float
    wins: int
    losses: int
    ties: int


def paired(a: Sequence[float], b: Sequence[float], *, seed: int) -> Significance:
    """Compare values of the same queries under two systems.

    Args:
        a, b: one value per query, in the same order.
        seed: seed of the randomisation test.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.stats import permutation_test, ttest_1samp
    except ImportError as error:
        raise MissingDependencyError(f"significance needs scipy: {pip_install('bench')}") from error
    delta = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    delta[np.abs(delta) < _NOISE] = 0.0
    counts = {"wins": int((delta > 0).sum()), "losses": int((delta < 0).sum()), "ties": int((delta == 0).sum())}
    mean = float(delta.mean())
    if len(delta) < 2 or not delta.any():  # no spread to compare with: chance cannot be excluded
        return Significance(mean, mean, mean, 1.0, 1.0, **counts)
    if np.ptp(delta) < _NOISE:  # the same gain for every query: t is infinite, and scipy warns
        low = high = mean
        t_test = 0.0
    else:
        tested = ttest_1samp(delta, 0.0)
        interval = tested.confidence_interval(0.95)
        low, high, t_test = float(interval.low), float(interval.high), float(tested.pvalue)
    permuted = permutation_test(
        (delta,),
        lambda signed, axis: signed.mean(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return Significance(mean, low, high, t_test, float(permuted.pvalue), **counts)
