"""Temperature and Platt scaling of margins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError, MissingDependencyError
from ...pip_command import pip_install

Floats = NDArray[np.float64]

#: Number of parts of the queries in cross-fitting: each part is scored with a fit to the others.
FOLDS = 5
#: A flatter line would map different margins to equal floats.
_SMALLEST_SLOPE = 1e-6


def fit(method: str, margins: Floats, relevant: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, intercept) that make sigmoid(slope * margin + intercept) most likely.

    Labels are replaced by Platt's targets, (n_relevant + 1) / (n_relevant + 2) and 1 / (n_others + 2), which keeps the
    slope finite for margins that separate the labels perfectly (Platt 1999; Lin et al. 2007,
    https://doi.org/10.1007/s10994-007-5018-6). Both are convex problems.

    Args:
        method: "platt", or "temperature", whose intercept is 0.
        margins: float64 [n_pairs].
        relevant: bool [n_pairs], with both values in it.

    Raises:
        InvalidInputError: a higher margin does not make a pair more likely to be relevant, so the order would change.
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise MissingDependencyError(f"calibration needs scipy: {pip_install('bench')}") from error
    positive, negative = int(relevant.sum()), int((~relevant).sum())
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    width = float(np.abs(margins).max()) or 1.0  # of one, the problem is well conditioned
    columns = margins[:, None] / width
    if method == "platt":
        columns = np.concatenate([columns, np.ones_like(columns)], axis=1)

    def loss(line: Floats) -> tuple[float, Floats]:
        odds = columns @ line
        value = (np.logaddexp(0.0, odds) - targets * odds).mean()
        return float(value), columns.T @ (0.5 * (1.0 + np.tanh(0.5 * odds)) - targets) / len(odds)

    def curvature(line: Floats) -> Floats:
        score = 0.5 * (1.0 + np.tanh(0.5 * (columns @ line)))
        matrix: Floats = (columns * (score * (1 - score))[:, None]).T @ columns / len(columns)
        return matrix

    start = np.zeros(columns.shape[1])
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10})
    slope = float(found.x[0]) / width
    intercept = float(found.x[1]) if method == "platt" else 0.0
    if not slope > _SMALLEST_SLOPE:
        raise InvalidInputError(
            "calibrate",
            method,
            f"gives the slope {slope:.3g}: on these labels a higher margin does not make a pair more likely to be "
            "relevant, and a calibration never changes the order; check the labels, --relevant-from and the model",
        )
    return slope, intercept


def cross_fitted(
    method: str, margins: Floats, relevant: NDArray[np.bool_], queries: NDArray[np.intp], *, seed: int
) -> Floats | None:
    """Calibrated log-odds of each pair, from a line that was fitted without the pair's query; float64 [n_pairs].

    On the labels that it was fitted to, a calibration looks better than it is. Whole queries are left out because the
    pairs of one query are alike.

    Returns:
        None if there are too few queries, or a part cannot be fitted.
    """
    count = int(queries.max()) + 1
    parts = min(FOLDS, count)
    if parts < 2:
        return None
    part = (np.random.default_rng(seed).permutation(count) % parts)[queries]
    found = np.empty_like(margins)
    for number in range(parts):
        inside = part == number
        rest = relevant[~inside]
        if rest.all() or not rest.any():
            return None
        try:
            slope, intercept = fit(method, margins[~inside], rest)
        except InvalidInputError:  # the whole sample may still be fitted, without this figure
            return None
        found[inside] = slope * margins[inside] + intercept
    return found
