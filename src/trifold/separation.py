"""The separation table: how well biology and technique are read from each block of the latent, on cells that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.core import VAE, locate
from trifold.data import Cells, Schema
from trifold.inference import cut
from trifold.marginal import hidden
from trifold.provenance import plain
from trifold.records import Batch
from trifold.technique import BIOLOGY, BLOCK, ROLE

if TYPE_CHECKING:
    import pandas as pd

CELLS = 3_000  # on which probes are trained and scored
_WITHIN = "within"  # name of the column of joint biology


def columns_of(schema: Schema, roles: Sequence[str]) -> list[str]:
    """Columns of some roles, each once."""
    return list(dict.fromkeys(c.name for role in roles for c in schema.roles.get(role, ())))


def scored(schema: Schema, vae: VAE) -> bool:
    """Whether the model has both blocks and the schema says what is technique."""
    return {BIOLOGY, BLOCK} <= set(vae.prior.slices) and ROLE in schema.roles


def separation_of(vae: VAE, cells: Cells, train: np.ndarray, watched: np.ndarray, *, seed: int) -> list[dict[str, Any]]:
    """Rows of the table, as plain data: :func:`trifold.evaluate.probes` learns from training cells and is scored on watched ones.

    Neither biology nor technique is told to the encoder. Beside the blocks stand as many principal components as the invariant block has
    dimensions, of the values as its encoder takes them.

    Args:
        vae: A trained model, on the CPU, in evaluation mode.
        cells: The data.
        train, watched: Positions; of the 3,000 that are used at most, at most half are watched.
        seed: Of the probes.
    """
    watched = watched[:: -(-len(watched) // (CELLS // 2))]
    train = train[:: -(-len(train) // (CELLS - len(watched)))]
    index = np.concatenate([train, watched])
    tested = np.arange(len(index)) >= len(train)
    own, biology = columns_of(cells.schema, [ROLE]), columns_of(cells.schema, ["invariant", "label"])
    latents = _latents(vae, cells, index, tested)
    obs = cells.obs.iloc[index][[c for c in dict.fromkeys([*own, *biology]) if c in cells.obs]].copy()
    for column in biology:
        if column in obs:
            blank = obs[column].isin(list(cells.schema.unlabelled))
            obs[column] = obs[column].astype(object).where(~blank, None) if blank.any() else obs[column]
    # what composition gives away is known only where all labels are: which cells have none can tell the batch
    told = (role for role in ("label", "invariant") if len(cells.schema.categories(role)) > 1 and (cells.code[role][index] >= 0).all())
    within = next(told, None)
    if within is not None:
        obs[_WITHIN] = cells.code[within][index].astype(str)
    rows: list[dict[str, Any]] = []
    for columns, role, inside in ((own, "technique", None if within is None else _WITHIN), (biology, "biology", None)):
        for column in columns:
            if column in obs and _enough(obs[column], tested):
                rows += _probed(latents, obs, column, tested, role, inside, seed)
    return rows


def _probed(
    latents: Mapping[str, np.ndarray], obs: pd.DataFrame, column: str, tested: np.ndarray, role: str, within: str | None, seed: int
) -> list[dict[str, Any]]:
    from trifold.evaluate import probes

    found = probes(latents, obs, [column], within=within, train=~tested, test=tested, seed=seed)
    found.insert(2, "role", role)
    return [{k: plain(v) for k, v in row.items()} for row in found.to_dict("records")]


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of :func:`separation_of`'s rows; what is not defined is NaN."""
    import pandas as pd

    table = pd.DataFrame(list(rows))
    text = ("latent", "column", "role", "probe", "measure")
    return table.astype({c: np.float64 for c in table.columns if c not in text}).astype({"cells": int} if "cells" in table else {})


def _latents(vae: VAE, cells: Cells, index: np.ndarray, tested: np.ndarray) -> dict[str, np.ndarray]:
    from trifold.evaluate.space import fit_pca

    slices = vae.prior.slices
    z, rows = [], []
    for at in cut(index):
        batch = hidden(cells.batch(at), ["invariant", "label", ROLE])
        z.append(locate(vae, batch).float().numpy())
        rows.append(_values(vae, batch))
    x = _stacked(rows)
    width = slices[BIOLOGY].stop - slices[BIOLOGY].start
    pca = fit_pca(x[~tested], width)
    components = pca.transform(x)
    both = np.concatenate(z)
    return {"invariant": both[:, slices[BIOLOGY]], "spurious": both[:, slices[BLOCK]], "pca": np.asarray(components)}


def _values(vae: VAE, batch: Batch) -> Any:
    """Rows as the invariant block's encoder takes them, all genes: CSR where they are sparse."""
    from scipy.sparse import csr_matrix

    encoder = getattr(vae.posterior, "blocks", {}).get(BIOLOGY, vae.posterior)
    rows = encoder.transformed(batch) if hasattr(encoder, "transformed") else batch.rows
    if not rows.sparse:
        return rows.to_dense().numpy()
    crow, col, val = rows.csr()
    return csr_matrix((val.numpy(), col.numpy(), crow.numpy()), shape=rows.shape)


def _stacked(parts: Sequence[Any]) -> Any:
    from scipy.sparse import issparse, vstack

    return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


def _enough(values: pd.Series, tested: np.ndarray) -> bool:
    """Whether probes can learn the column and be scored on it: two values among the training cells, two among the watched."""
    return all(values[mask].nunique() > 1 for mask in (tested, ~tested))
