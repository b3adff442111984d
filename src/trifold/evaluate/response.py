"""Scores of a predicted response, gene by gene: agreement of means, changes, variances and zeros over genes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifold.errors import EvaluationError
from trifold.evaluate.space import dense, mean

Vector = NDArray[np.float64]
ZERO = 1e-6  # values up to this count as zero, in score space: a decoder that says 1e-9 means zero


def correlation(a: Vector, b: Vector) -> float:
    """Pearson correlation of two [g] vectors; 0 where either does not vary (it says nothing about the genes)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = a - a.mean(), b - b.mean()
    size_x, size_y = np.linalg.norm(x), np.linalg.norm(y)
    if size_x <= 1e-12 * np.linalg.norm(a) or size_y <= 1e-12 * np.linalg.norm(b):  # constant up to rounding; all zero too
        return 0.0
    return float(np.clip((x / size_x) @ (y / size_y), -1.0, 1.0))


def concordance(a: Vector, b: Vector) -> float:
    r"""Lin's concordance correlation of two [g] vectors, in [-1, 1]: 1 iff they are equal, lower for a shift or a scale.

    .. math:: 2 s_{ab} / (s_a^2 + s_b^2 + (\bar a - \bar b)^2)

    Source: Lin, Biometrics 45 (1989). Equal constants give 1; a constant against a vector that varies gives 0.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return 1.0 if spread == 0 else float(2 * ((a - a.mean()) * (b - b.mean())).mean() / spread)


def r2_mean(predicted: Any, real: Any) -> float:
    """Squared Pearson correlation over genes of the mean expressions, in [0, 1], as the trVAE and scGen papers report it.

    Dominated by which genes are expressed at all: the control cells as they are reach 0.9. Report the change beside it.

    Args:
        predicted: [n, g] predicted cells in score space.
        real: [m, g] real cells in score space.

    Raises:
        EvaluationError: The genes differ in number, there are no cells, or values are not finite.

    Source: Lotfollahi et al. 2020, section 4; see :func:`bootstrap` for its error bars.
    """
    p, r = pair(predicted, real)
    return correlation(mean(p), mean(r)) ** 2


def r2_var(predicted: Any, real: Any) -> float:
    """Squared Pearson correlation over genes of the variances over cells, in [0, 1]; arguments as :func:`r2_mean`."""
    p, r = pair(predicted, real)
    return correlation(_var(p), _var(r)) ** 2


def pearson_delta(predicted: Any, real: Any, control: Any, *, genes: Any = None) -> float:
    """Pearson correlation over genes of the predicted and the real change of the mean, in [-1, 1].

    Both changes are taken against the mean of the same control cells, whose noise they share.

    Args:
        predicted: [n, g] predicted cells in score space.
        real: [m, g] real cells under the target.
        control: [l, g] real cells of the same group under the source, or [1, g] or [g] any other reference (the
            centroid of other groups' target cells, say).
        genes: Index of the genes to use (from training groups only); None uses all.

    Returns:
        The correlation; 0 where either change is the same for every gene.

    Raises:
        EvaluationError: The genes differ in number, there are no cells, or values are not finite.
    """
    a, b = _changes(predicted, real, control, genes)
    return correlation(a, b)


def rmse_delta(predicted: Any, real: Any, control: Any, *, genes: Any = None) -> float:
    """Root mean squared error over genes of the change of the mean, in score-space units; arguments as :func:`pearson_delta`.

    The control cancels: it is the error of the mean itself.
    """
    a, b = _changes(predicted, real, control, genes)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def variance_concordance(predicted: Any, real: Any) -> float:
    """Concordance over genes of the log variance over cells, in [-1, 1]; 1 is perfect.

    Unlike :func:`r2_var` it is not ruled by a few genes, and a prediction whose variances are all too small loses. To each
    variance is added the median positive variance of the real cells, below which variances of a few hundred sparse cells
    are noise: with a hundredth of it, control cells of the Kang data score above real ones.

    Args:
        predicted: [n, g] predicted cells in score space.
        real: [m, g] real cells.

    Returns:
        The concordance; NaN where the real cells do not vary at all.

    Raises:
        EvaluationError: The genes differ in number, there are no cells, or values are not finite.
    """
    p, r = pair(predicted, real)
    a, b = _var(p), _var(r)
    if not (b > 0).any():
        return float("nan")
    floor = np.median(b[b > 0])
    return concordance(np.log(a + floor), np.log(b + floor))


def zero_concordance(predicted: Any, real: Any) -> float:
    """Concordance over genes of the share of cells in which a gene is zero (at most 1e-6), in [-1, 1]; 1 is perfect.

    Predicted means, which are never zero, give about 0; values that a shift has made negative count as zero.

    Args:
        predicted: [n, g] predicted cells in score space.
        real: [m, g] real cells.

    Returns:
        The concordance; NaN where the real values have no zeros or are negative somewhere (zero then means nothing).

    Raises:
        EvaluationError: The genes differ in number, there are no cells, or values are not finite.
    """
    p, r = pair(predicted, real)
    b = (r <= ZERO).mean(0)
    if r.min() < 0 or not b.any():
        return float("nan")
    return concordance((p <= ZERO).mean(0), b)


def bootstrap(metric: Callable[[Any, Any], float], predicted: Any, real: Any, *, times: int = 100, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of a metric over resamples of the cells, both samples drawn anew with replacement.

    The published error bars of R² are of this kind. They know the cells' noise, not that of training: report seeds too.

    Args:
        metric: Takes [n, g] predicted and [m, g] real cells: ``r2_mean``, or a lambda around ``pearson_delta``.
        predicted, real: The cells in score space.
        times: Resamples.
        seed: Of the draws; the global generator is left as found.

    Raises:
        EvaluationError: The genes differ in number, there are no cells, or ``times`` is under two.
    """
    if times < 2:
        raise EvaluationError(f"times must be at least 2 resamples; found {times}. Pass times=100.")
    p, r = pair(predicted, real)
    rng = np.random.default_rng(seed)
    values = [metric(p[rng.integers(len(p), size=len(p))], r[rng.integers(len(r), size=len(r))]) for _ in range(times)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def pair(predicted: Any, real: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both samples as dense arrays, checked: the same genes, one cell at least, finite.

    Raises:
        EvaluationError: They are not.
    """
    p, r = dense(predicted), dense(real)
    if p.shape[1] != r.shape[1]:
        raise EvaluationError(
            f"predicted and real cells need the same genes; found {p.shape[1]} and {r.shape[1]}. Subset both to the same var_names."
        )
    if not (len(p) and len(r)):
        raise EvaluationError(
            f"predicted and real need one cell or more each; found {len(p)} predicted and {len(r)} real. Check the group's name."
        )
    return p, r


def _var(x: NDArray[Any]) -> Vector:
    return np.asarray(np.var(x, axis=0, dtype=np.float64))


def _changes(predicted: Any, real: Any, control: Any, genes: Any) -> tuple[Vector, Vector]:
    p, r = pair(predicted, real)
    if not hasattr(control, "obs") and np.ndim(control) == 1:
        control = np.asarray(control)[None, :]
    c, _ = pair(control, r)
    base = mean(c)
    a, b = mean(p) - base, mean(r) - base
    return (a, b) if genes is None else (a[genes], b[genes])
