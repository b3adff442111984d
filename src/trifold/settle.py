"""What is fixed at the end of training, so that every later answer is the same: counts, coordinates, calibration, reference, separation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trifold.core import VAE, locate
from trifold.data import Cells
from trifold.generation import combinations_of, sizes_of
from trifold.inference import Inference, chunks
from trifold.labels import TARGETS, calibrate, has_predictor, logits_of, predictor_of
from trifold.marginal import hidden
from trifold.novelty import components, located, reference
from trifold.records import Batch
from trifold.separation import columns_of, scored, separation_of
from trifold.shape import rectifier_of
from trifold.technique import BIOLOGY, Axes, Technique, axes_of
from trifold.terms import Objective

_SOME = 2_000  # cells from which coordinates are fitted
_REFERENCE = 5_000  # cells with which novelty is measured ...
_REFINED = 1_000  # ... and where each has to be searched for
_WATCHED = 10_000  # cells on which probabilities are calibrated


def settle(
    vae: VAE, objective: Objective, cells: Cells, train: np.ndarray, watched: np.ndarray, *, seed: int
) -> tuple[dict[str, Any], Axes | None]:
    """Facts for the card, as plain data, and the axes of rectified coordinates where the latent has an invariant block.

    Args:
        vae, objective: Trained.
        cells: The data.
        train, watched: Positions of the cells that were trained on, and watched.
        seed: Of probes and halves.
    """
    schema = cells.schema
    facts: dict[str, Any] = {
        "counts": {role: cells.subset(train).counts(role).tolist() for role in schema.roles},
        "combinations": combinations_of(cells.obs.iloc[train], columns_of(schema, list(schema.roles))),
        "sizes": sizes_of(cells.size[train]),
    }
    some = _every(train, _SOME)
    axes = None
    with Inference(vae, torch.device("cpu")):
        facts["rectifier"] = rectifier_of(vae, chunks(cells, some))
        if BIOLOGY in vae.prior.slices:
            axes = axes_of(vae, Technique(vae, schema, facts), lambda: chunks(cells, some))
        if has_predictor(objective):
            objective.to("cpu").eval()
            facts["calibration"] = _calibrated(vae, objective, cells, _every(watched, _WATCHED), seed)
        facts["novelty"] = _reference(vae, objective, cells, train, watched)
        if scored(schema, vae) and len(watched) > 1:
            facts["separation"] = separation_of(vae, cells, train, watched, seed=seed)
    return facts, axes


def block_of(vae: VAE) -> slice:
    """Columns in which novelty is measured: the invariant block, else all of the latent."""
    return vae.prior.slices.get(BIOLOGY, slice(0, vae.posterior.latent))


def unlabelled(batch: Batch) -> Batch:
    """The batch without what is to be predicted."""
    return hidden(batch, TARGETS)


def _calibrated(vae: VAE, objective: Objective, cells: Cells, index: np.ndarray, seed: int) -> dict[str, Any]:
    predictor = predictor_of(objective)
    logits = _collected(cells, index, lambda b: logits_of(predictor, locate(vae, unlabelled(b)), vae.prior.slices))
    logits = logits if len(index) else np.zeros((0, predictor.categories))
    return calibrate(logits, cells.code[predictor.role][index], role=predictor.role, seed=seed)


def _reference(vae: VAE, objective: Objective, cells: Cells, train: np.ndarray, watched: np.ndarray) -> dict[str, Any]:
    block, most = block_of(vae), _REFINED if vae.refine else _REFERENCE
    fit, other = _every(train, most), _every(watched, most)
    values, beyond = (_collected(cells, index, lambda b: located(vae, unlabelled(b), block)) for index in (fit, other))
    role = next((role for role in TARGETS if len(cells.schema.categories(role)) > 1), None)
    code = np.full(len(fit), -1, dtype=np.int64) if role is None else cells.code[role][fit]
    if role is None:
        prior = getattr(vae.prior, "blocks", {}).get(BIOLOGY, vae.prior)
        z = torch.from_numpy(values[:, :-2])
        found = components(prior, z, cells.batch(fit[:1]).bare(torch.zeros(len(fit), dtype=torch.int64)))
        code = code if found is None else found
    return reference(values, code, beyond if len(other) else values[:0])


def _collected(cells: Cells, index: np.ndarray, f: Callable[[Batch], Tensor]) -> np.ndarray:
    parts = [f(batch).float().numpy() for batch in chunks(cells, index)]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _every(index: np.ndarray, most: int) -> np.ndarray:
    """At most so many, evenly spaced."""
    return index[:: max(1, -(-len(index) // most))]
