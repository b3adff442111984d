"""Classification from the invariant block: probabilities that mean what they say, and the right to decline."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from trifold.data import Schema
from trifold.errors import SpecError, TrifoldWarning
from trifold.terms import Objective, Predictor

if TYPE_CHECKING:
    import pandas as pd

TARGETS = ("label", "invariant")
FEWEST = 10  # labelled watched cells from which a temperature is fitted
_RANGE = (-3.0, 3.0)  # of the log of the temperature


def predictor_of(objective: Objective) -> Predictor:
    """The term that predicts the label, or the invariant role.

    Raises:
        SpecError: The objective has none.
    """
    found = {t.role: t for t in reversed(objective.terms.values()) if isinstance(t, Predictor)}
    for role in TARGETS:
        if role in found:
            return found[role]
    raise SpecError(
        "classify needs a model that was trained to predict a label; this one was not. Train one with a role of two "
        "categories or more: invae(Schema.of(data, spurious='batch', label='cell_type')), or invariant='cell_type'."
    )


def has_predictor(objective: Objective) -> bool:
    """Whether the objective predicts a label or the invariant role."""
    return any(isinstance(t, Predictor) and t.role in TARGETS for t in objective.terms.values())


def classes(schema: Schema, role: str) -> list[str]:
    """Names of a role's joint categories; of several columns, joined by a slash."""
    return [" / ".join(map(str, values)) for values in schema.categories(role)]


def logits_of(predictor: Predictor, z: Tensor, slices: Mapping[str, slice]) -> Tensor:
    """[n, k] of the predictor at latents, [n, d]."""
    return predictor.logits(z if predictor.block is None else z[:, slices[predictor.block]])


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """[n, k] float64 probabilities; rows sum to 1."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)  # type: ignore[no-any-return]


def temperature_of(logits: np.ndarray, code: np.ndarray) -> float:
    r"""The T that minimises the mean of :math:`-\log \mathrm{softmax}(\mathrm{logits} / T)` at the truth, in [0.05, 20].

    Source: Guo et al., ICML (2017), section 4.2.
    """
    from scipy.optimize import minimize_scalar

    def nll(log: float) -> float:
        p = softmax(logits, float(np.exp(log)))[np.arange(len(code)), code]
        return float(-np.log(np.maximum(p, 1e-300)).mean())

    return float(np.exp(minimize_scalar(nll, bounds=_RANGE, method="bounded").x))


def calibrate(logits: np.ndarray, code: np.ndarray, *, role: str, seed: int) -> dict[str, Any]:
    """The temperature, and how well probabilities are calibrated before and after, as plain data.

    Args:
        logits: [n, k] of watched cells.
        code: [n] their true classes; -1 unknown, left out.
        role: Role that is predicted.
        seed: Of the halves.

    Returns:
        ``temperature`` (1 with fewer than 10 labelled cells), ``cells`` (labelled and watched), ``accuracy``, and the expected calibration
        error: ``ece_before`` (temperature 1) and ``ece_after``, cross-fitted: each half at the temperature of the other half.
    """
    known = code >= 0
    logits, code = logits[known], code[known]
    out: dict[str, Any] = {"role": role, "temperature": 1.0, "cells": len(code), "accuracy": None, "ece_before": None, "ece_after": None}
    if len(code) < FEWEST:
        return out
    from trifold.evaluate.calibration import calibration

    half = np.random.default_rng([seed, 7]).permutation(len(code)) % 2
    crossed = np.empty(logits.shape, dtype=np.float64)
    for own in (0, 1):
        crossed[half == own] = softmax(logits[half == own], temperature_of(logits[half != own], code[half != own]))
    names = range(logits.shape[1])
    before = calibration(softmax(logits, 1.0), names, code)
    after = calibration(crossed, names, code)
    return out | {
        "temperature": temperature_of(logits, code),
        "accuracy": before.accuracy,
        "ece_before": before.calibration_error,
        "ece_after": after.calibration_error,
    }


def table_of(
    logits: np.ndarray, names: Sequence[str], index: Any, *, calibrated: Mapping[str, Any], reject: float, probabilities: bool
) -> pd.DataFrame:
    """Label, probability, and whether it is declined, of each cell.

    Args:
        logits: [n, k].
        names: [k] of the classes.
        index: [n] names of the cells.
        calibrated: From :func:`calibrate`.
        reject: Probability below which the answer is declined.
        probabilities: Add a column ``p_NAME`` for each class.

    Raises:
        SpecError: ``reject`` is no probability.
    """
    import pandas as pd

    if not 0 <= reject <= 1:
        raise SpecError(f"reject needs a probability in [0, 1]; found {reject!r}. 0 declines nothing.")
    if calibrated.get("cells", 0) < FEWEST:
        warnings.warn(
            f"These probabilities are not calibrated: {calibrated.get('cells', 0)} labelled cells were watched in training, of {FEWEST} "
            "that are needed. Train with validation=0.1, or more labels.",
            TrifoldWarning,
            stacklevel=3,
        )
    p = softmax(logits, calibrated.get("temperature", 1.0))
    best, top = p.argmax(1), p.max(1)
    label = pd.Categorical.from_codes(best, categories=list(names))
    table = pd.DataFrame({"label": label, "probability": top, "rejected": top < reject}, index=index)
    return table.assign(**{f"p_{name}": p[:, j] for j, name in enumerate(names)}) if probabilities else table
