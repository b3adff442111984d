"""``Answers``: what can be asked of a trained model about cells and genes. Methods check what is asked; the work is done below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trifold import labels, novelty
from trifold.asking import Unknown
from trifold.core import locate
from trifold.data import splits
from trifold.effects import columns_of
from trifold.errors import FormatError
from trifold.gene_answers import GeneAnswers
from trifold.inference import bound_of, device_of
from trifold.marginal import fillings, moved_fillings, sees
from trifold.prediction import Target, moved, require_effect, require_kind
from trifold.provenance import plain, was_seen
from trifold.records import Batch
from trifold.results import require_out
from trifold.settle import block_of, unlabelled
from trifold.technique import Technique


class Answers(GeneAnswers):
    """What a trained model answers.

    Arguments that mean the same everywhere:

    ``data``: cells with the schema's genes, in any order. ``missing``: ``"zero"`` accepts absent genes as zeros, ``"error"`` names them.
    ``device``: where to compute. ``unknown``: what becomes of covariates that are unseen or missing, for all roles or role -> policy.
    ``"error"`` names them; ``"zero"`` takes them as all-zero covariates; ``"marginalise"`` averages the answer over the role's known
    categories, weighted by their share of the training cells, as far as the model sees the role. A cell is known in a role or not: one of
    whose columns is unknown, or whose combination never occurred in training although each value did, is averaged over all combinations.
    Each category takes a pass over the cells that lack one.

    ``out``: None, or a file to write the answer to piece by piece, so that no more than a few thousand cells of it are held: ``NAME.h5ad``
    or ``NAME.zarr``, an AnnData file whose X is the answer and whose obs are the cells'. The method then returns its path;
    ``anndata.read_h5ad(path, backed="r")``, ``anndata.read_zarr(path)`` and :func:`trifold.open` read it. The numbers are those that the
    answer has in memory, bit for bit. After an error or Ctrl-C nothing is left. ``overwrite``: replace what is there.

    Tables and arrays come in the order of data's rows. Every method raises NotFittedError for an untrained model, SchemaError for columns
    and values that are not known, DataError for values that cannot be used, and, of ``out``, SpecError for another suffix and
    CheckpointError for a file that exists or cannot be written.
    """

    def latent(
        self,
        data: Any,
        *,
        block: str | None = None,
        rectified: bool = False,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> Any:
        """Where each cell lies: the mean of q(z | x, c), or, for models that refine it, the mode of p(z | x, c).

        Args:
            data, missing, unknown, device, out, overwrite: See :class:`Answers`. Columns of X are ``latent_0``, ... or ``BLOCK_0``, ...
            block: Name of a block, ``"invariant"`` or ``"spurious"``; None: all of the latent.
            rectified: In coordinates in which distances mean something. Of a model without blocks: linear ones, in which they are, as
                nearly as can be, lengths in data space (of x for real values, of the log rate less its mean over genes for counts). Of the
                invariant block: principal components, as many as it has dimensions, of decoded expression with technique averaged out
                (:mod:`trifold.technique`); of counts, distances between square roots of expected counts at a library size of 10,000,
                which are 141 times Hellinger distances. Either kind is fixed at the end of training.

        Returns:
            [n, d] float32 array, or the path ``out``. Dimensionless unless rectified.

        Raises:
            SpecError: No such block, or one that has no rectified coordinates.
            FormatError: Rectified coordinates of a run that was written before there were any.
        """
        self._need_fit("latent")
        path = None if out is None else require_out(out, overwrite=overwrite)
        at = columns_of(self.vae, block)
        biology = rectified and self._rectifiable(block)
        technique, axes = (Technique(self.vae, self.schema, self.card), _kept(self.axes)) if biology else (None, None)
        turn = torch.tensor(_kept(self.card.get("rectifier")), dtype=torch.float32) if rectified and not biology else None
        cells = self._cells(data, missing=missing, unknown=unknown)

        def place(batch: Batch) -> Tensor:
            z = locate(self.vae, batch)
            if technique is not None and axes is not None:
                return axes(technique.profile(z, batch))  # type: ignore[no-any-return]
            return z[:, at] if turn is None else z[:, at] @ turn.to(z)

        seen = sees(self.vae, self.schema, decoded=biology, told=None if technique is None else technique.role)
        width = axes.axes.shape[1] if axes is not None else at.stop - at.start
        names = [f"{block or 'latent'}_{j}" for j in range(width)]
        about = self._about(block=block or "", rectified=rectified)
        return self._delivered(lambda into: self._stream(cells, place, device, seen, into, decoded=biology), path, cells.obs, names, about)

    def expression(
        self,
        data: Any,
        *,
        corrected: bool = False,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> Any:
        """Denoised expression: the mean of p(x | z, c) at each cell's own library size and posterior mean.

        Args:
            data, missing, unknown, device, out, overwrite: See :class:`Answers`.
            corrected: Average over technique instead of each cell's own: the cell is decoded under every category of the spurious role
                (the 16 with most training cells), with equal weights, its spurious block at the mean of that category's prior.

        Returns:
            [n, g] float32 array, in the schema's order of genes, in the units of x, or the path ``out``.

        Raises:
            SpecError: ``corrected`` of a model that sees no technique.
        """
        self._need_fit("expression")
        path = None if out is None else require_out(out, overwrite=overwrite)
        technique = Technique(self.vae, self.schema, self.card).required() if corrected else None
        cells = self._cells(data, missing=missing, unknown=unknown)

        def denoised(batch: Batch) -> Tensor:
            z = locate(self.vae, batch)
            return self.vae.likelihood.mean(self.vae.decode(z, batch), batch) if technique is None else technique.expression(z, batch)

        seen = sees(self.vae, self.schema, decoded=True, told=None if technique is None else technique.role)
        about = self._about(corrected=corrected)
        return self._delivered(lambda into: self._stream(cells, denoised, device, seen, into), path, cells.obs, self.schema.genes, about)

    def predict(
        self,
        data: Any,
        to: Mapping[str, Any],
        *,
        where: Mapping[str, Any] | None = None,
        kind: str = "mean",
        seed: int = 0,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> Any:
        """The same cells under other covariates.

        Each cell is encoded under its own covariates, moved in the latent from its place under its own prior to the same place under the
        target's (a column of technique moves the spurious block, one of biology the invariant block; other priors move nothing), and
        decoded under the target's, at its own library size.

        Args:
            data, missing, unknown, device, out, overwrite: See :class:`Answers`. With ``"marginalise"``, draws are of one category drawn
                for each cell.
            to: column -> value of the target; columns that are not named stay as they are.
            where: column -> value or list of values: only cells that match all entries are predicted. None: all.
            kind: ``"mean"``: expected values; ``"sample"``: a draw, with fresh noise; ``"residual"``: the cell's own values moved from the
                one distribution to the other, so that it keeps its own noise.
            seed: Of the draws.

        Returns:
            A new AnnData, or the path ``out``, in the units of the x that the model was trained on. Its obs are the source's, with
            ``target_COLUMN`` for each entry of ``to``, and ``seen``: whether cells of this combination were trained on.
            ``uns["trifold"]`` says how it was made.

        Raises:
            SpecError: An unknown kind, or a column that neither the decoder nor the prior sees.
        """
        from anndata import AnnData

        require_kind(kind)
        self._need_fit("predict")
        path = None if out is None else require_out(out, overwrite=overwrite)
        require_effect(self.vae, self.schema, to)
        cells = self._cells(data, missing=missing, unknown=unknown)
        index = np.flatnonzero(splits.some(cells.obs, where, named="where=")) if where else np.arange(cells.n)
        obs = cells.obs.iloc[index]
        target = Target(self.schema, obs, to, cells.unknown)
        found = fillings(self.schema, self.card, cells.unknown, sees(self.vae, self.schema, decoded=True, to=to))
        ways = (target, found, moved_fillings(self.schema, found, to))
        there = device_of(device)
        obs = obs.assign(**{f"target_{column}": value for column, value in to.items()}, seen=was_seen(target.obs, self.card["seen"]))
        x = self._delivered(
            lambda into: moved(self.vae, cells, index, *ways, into, kind=kind, seed=seed, device=there),
            path,
            obs,
            self.schema.genes,
            about := self._about(kind=kind, to=plain(to), seed=seed),
            sparse=kind != "mean" and self.schema.kind != "real",
        )
        return x if path else AnnData(x, obs=obs, var=pd.DataFrame(index=list(self.schema.genes)), uns=about)

    def score(self, data: Any, *, seed: int = 0, device: str = "auto") -> pd.DataFrame:
        """How well the model explains each cell: a one-sample evidence lower bound.

        Returns:
            A table with ``elbo``, ``reconstruction`` (log p(x | z, c)) and ``kl``, in nats per cell; ``elbo`` and ``kl`` are known up to a
            constant where the prior is.
        """
        self._need_fit("score")
        device = "cpu" if device == "auto" else device
        generator = torch.Generator(device_of(device)).manual_seed(seed)
        return self._table(data, lambda b: bound_of(self.vae, b, generator), ["elbo", "reconstruction", "kl"], device)

    def classify(
        self,
        data: Any,
        *,
        reject: float = 0.5,
        probabilities: bool = False,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
    ) -> pd.DataFrame:
        """The label of each cell, or else its joint category of biology, read from the invariant block at the posterior mean.

        The encoder is never shown the label or the invariant role. Probabilities are tempered by the one temperature that fits the labelled
        cells that were watched in training; ``card["calibration"]`` says how well calibrated they are.

        Args:
            data, missing, unknown, device: See :class:`Answers`.
            reject: Probability below which the answer is declined.
            probabilities: Add a column ``p_LABEL`` for each class.

        Returns:
            A table with ``label`` (columns of a role of several are joined by a slash), ``probability`` and ``rejected``.

        Raises:
            SpecError: The model was not trained to predict a label, or ``reject`` is not in [0, 1].
        """
        self._need_fit("classify")
        predictor = labels.predictor_of(self.objective)
        cells = self._blind_cells(data, missing, unknown)

        def logits_of(batch: Batch) -> Tensor:
            return labels.logits_of(predictor, locate(self.vae, unlabelled(batch)), self.vae.prior.slices)

        logits = self._collect(cells, logits_of, device, sees(self.vae, self.schema), predictor, decoded=False)
        names, calibrated = labels.classes(self.schema, predictor.role), self.card.get("calibration", {})
        return labels.table_of(logits, names, cells.obs.index, calibrated=calibrated, reject=reject, probabilities=probabilities)

    def novelty(self, data: Any, *, missing: str = "error", unknown: Unknown = "error", device: str = "auto") -> pd.DataFrame:
        """How unlike the training cells each cell is, in the invariant block if there is one, else in the latent.

        Args:
            data, missing, unknown, device: See :class:`Answers`.

        Returns:
            A table with ``distance`` (Mahalanobis distance to the nearest class, with the shrunk covariance that all classes share;
            classes are labels, else categories of biology, else components of a mixture prior, else all cells), ``misfit``
            (-log p(x | z, c), in standard deviations above what is expected at the cell's library size) and ``score``, 1 - p with p the
            smaller of the shares of watched cells (of training cells where fewer than 50 were watched) that lie as far out in either:
            because it is the smaller of two, a cell like those of training exceeds a score of 0.95 with a chance of up to 0.1.

        Raises:
            FormatError: A run that was written before there was a reference.
        """
        self._need_fit("novelty")
        cells, block = self._blind_cells(data, missing, unknown), block_of(self.vae)
        seen = sees(self.vae, self.schema, decoded=True)
        values = self._collect(cells, lambda b: novelty.located(self.vae, unlabelled(b), block), device, seen)
        return novelty.table_of(values, self.card.get("novelty"), cells.obs.index)


def _kept(value: Any) -> Any:
    if value is None:
        raise FormatError(
            "rectified=True needs coordinates that fit keeps; this run was written by an older trifold, without them. "
            "Train it again with fit(data), or leave rectified out."
        )
    return value
