"""Whether the probabilities of a classifier mean what they say, and what is left when it may decline to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trifold.errors import EvaluationError, listing
from trifold.evaluate.genes import labels as as_labels
from trifold.evaluate.preservation import same_cells
from trifold.evaluate.space import dense

FLOOR = 1e-12  # of a probability inside the logarithm: 27.6 nats


@dataclass(frozen=True)
class Calibration:
    """Scores of predicted probabilities. From :func:`calibration`, which says what each is."""

    accuracy: float
    macro_f1: float
    calibration_error: float
    brier: float
    nll: float
    rejected: float
    accuracy_kept: float
    novel: float
    reliability: pd.DataFrame

    def scores(self) -> pd.Series:
        """All but the table, by name."""
        return pd.Series({name: value for name, value in vars(self).items() if name != "reliability"}, dtype=np.float64)


def calibration(probability: Any, classes: Sequence[Any], truth: Any, *, bins: int = 15, rejected: Any = None) -> Calibration:
    r"""Accuracy, calibration and the use of rejection of predicted probabilities.

    The answer is the most probable class, and its probability is the confidence. Truths that are no class are novel types: every
    answer to them is wrong, and the probability that was given to the truth is 0.

    =====================  ====================================================================================================
    ``accuracy``           share of cells that are answered right, rejected or not
    ``macro_f1``           F1 averaged over all values of the truth; 0 for novel ones
    ``calibration_error``  expected calibration error: |accuracy - confidence| of each bin, averaged over cells
    ``brier``              squared distance of the probabilities from the truth, summed over classes, 0 to 2
    ``nll``                -log probability of the truth in nats, over cells that are not novel; probabilities are floored at 1e-12
    ``rejected``           share of cells that are rejected
    ``accuracy_kept``      share of the other cells that are answered right; NaN where none is left
    ``novel``              share of cells whose truth is no class
    =====================  ====================================================================================================

    .. math:: \mathrm{ECE} = \sum_m \frac{n_m}{n} | \mathrm{acc}_m - \mathrm{conf}_m |, \qquad
              \mathrm{Brier} = \frac1n \sum_i \Big( [\text{novel}_i] + \sum_k (p_{ik} - [y_i = k])^2 \Big)

    Bins have equal width, (m/M, (m+1)/M]. The calibration error is not a proper score and not unbiased: perfect probabilities have one
    of about :math:`\sqrt{2/\pi}\sum_m \sqrt{n_m\,\mathrm{acc}_m(1-\mathrm{acc}_m)}/n`. Compare it between models of the same cells.

    Args:
        probability: [n, k] probabilities; rows sum to 1.
        classes: [k] class of each column.
        truth: [n] true class of each cell.
        bins: Number of bins of the confidence.
        rejected: [n] mask of the cells that the classifier declines; None declines none.

    Returns:
        The scores, and ``reliability``: one row per bin with ``low``, ``high`` (its edges), ``confidence`` and ``accuracy`` (means; NaN
        where the bin is empty), ``cells``.

    Raises:
        EvaluationError: Probabilities are none, shapes do not fit, classes repeat, or a truth is missing.

    Source: Guo et al., ICML (2017), eq. 3, after Naeini et al., AAAI (2015); Brier, Monthly Weather Review 78 (1950).
    """
    p, names, y = _checked(probability, classes, truth, bins)
    n = len(p)
    keep = ~_mask(rejected, n)
    code = pd.Index(names, dtype=object).get_indexer(y)  # -1 of a novel type
    known = code >= 0
    answer, confidence = p.argmax(1), p.max(1)
    right = answer == code
    goal = np.zeros_like(p)
    goal[known, code[known]] = 1
    given = p[known, code[known]]
    reliability = _reliability(confidence, right, bins)
    gap = (reliability["accuracy"] - reliability["confidence"]).abs().fillna(0.0)
    return Calibration(
        accuracy=float(right.mean()),
        macro_f1=_macro_f1(answer, code, novel=len(set(y[~known]))),
        calibration_error=float((gap * reliability["cells"]).sum() / n),
        brier=float((~known + ((p - goal) ** 2).sum(1)).mean()),
        nll=float(-np.log(np.maximum(given, FLOOR)).mean()) if known.any() else np.nan,
        rejected=float(1 - keep.mean()),
        accuracy_kept=float(right[keep].mean()) if keep.any() else np.nan,
        novel=float(1 - known.mean()),
        reliability=reliability,
    )


def _reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int) -> pd.DataFrame:
    edges = np.linspace(0, 1, bins + 1)
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    cells = np.bincount(where, minlength=bins)
    size = np.where(cells > 0, cells, np.nan)
    mean = {
        name: np.bincount(where, weights=v, minlength=bins) / size for name, v in (("confidence", confidence), ("accuracy", right * 1.0))
    }
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **mean, "cells": cells})


def _macro_f1(answer: NDArray[Any], code: NDArray[Any], *, novel: int) -> float:
    """F1 averaged over the classes of the truth and the novel types, which have none."""
    k = int(max(answer.max(), code.max())) + 1
    truth, said, both = (np.bincount(v[v >= 0], minlength=k) for v in (code, answer, code[code == answer]))
    present = truth > 0
    return float((2 * both[present] / (truth + said)[present]).sum() / (present.sum() + novel))


def _checked(probability: Any, classes: Sequence[Any], truth: Any, bins: int) -> tuple[NDArray[np.float64], list[Any], NDArray[Any]]:
    p = dense(probability).astype(np.float64)
    names, y = list(classes), as_labels(truth)
    same_cells(len(p), truth=len(y))
    if p.shape[1] != len(names) or len(set(names)) != len(names) or not len(p):
        raise EvaluationError(
            f"probability needs a column for each of classes, each class once, and one cell or more; found shape {p.shape}, {len(names)} "
            "classes, "
            f"{len(set(names))} different: {listing(names)}. Pass classes= in the order of the columns."
        )
    off = np.abs(p.sum(1) - 1)
    if p.min() < 0 or off.max() > 1e-3:
        row = int(off.argmax())
        raise EvaluationError(
            f"probability needs values of zero or more whose rows sum to 1; found a smallest of {p.min():.3g} and row {row} with the sum "
            f"{p[row].sum():.4g}. Pass the softmax of the logits."
        )
    missing = int(sum(v is None for v in y))
    if missing:
        raise EvaluationError(
            f"truth needs a value for every cell; {missing} of {len(y)} are missing. "
            "Keep the rows of probability and truth where truth.notna()."
        )
    if bins < 1:
        raise EvaluationError(f"bins must be at least 1; found {bins}. Pass bins=15.")
    return p, names, y


def _mask(rejected: Any, n: int) -> NDArray[np.bool_]:
    mask = np.zeros(n, dtype=bool) if rejected is None else np.asarray(rejected)
    if mask.dtype != bool or mask.shape != (n,):
        raise EvaluationError(
            f"rejected must be a boolean mask of {n} cells; found {mask.dtype} of shape {mask.shape}. Pass rejected=(confidence < 0.5)."
        )
    return mask
