"""``Answers``: what can be asked of a trained model about cells and genes. Methods check what is asked; the work is done below."""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trifold import effects, generation, labels, novelty, separation
from trifold.core import VAE, locate
from trifold.data import Cells, Schema, open, splits
from trifold.data.covariates import policies
from trifold.effects import columns_of
from trifold.errors import FormatError, NotFittedError, SpecError, TrifoldWarning
from trifold.inference import bound_of
from trifold.marginal import collect, fillings, moved_fillings, sees
from trifold.prediction import moved, require_effect, require_kind
from trifold.provenance import plain, was_seen
from trifold.records import Batch
from trifold.settle import block_of, unlabelled
from trifold.technique import BIOLOGY, Axes, Technique
from trifold.terms import Objective
from trifold.train import launch

if TYPE_CHECKING:
    from anndata import AnnData

Unknown = str | Mapping[str, str]


class Answers(ABC):
    """What a trained model answers.

    Arguments that mean the same everywhere:

    ``data``: cells with the schema's genes, in any order. ``missing``: ``"zero"`` accepts absent genes as zeros, ``"error"`` names them.
    ``device``: where to compute. ``unknown``: what becomes of covariates that are unseen or missing, for all roles or role -> policy.
    ``"error"`` names them; ``"zero"`` takes them as all-zero covariates; ``"marginalise"`` averages the answer over the role's known
    categories, weighted by their share of the training cells, as far as the model sees the role. A cell is known in a role or not: one of
    whose columns is unknown, or whose combination never occurred in training although each value did, is averaged over all combinations.
    Each category takes a pass over the cells that lack one.

    Tables and arrays come in the order of data's rows. Every method raises NotFittedError for an untrained model, SchemaError for columns
    and values that are not known, and DataError for values that cannot be used.
    """

    schema: Schema
    vae: VAE
    objective: Objective
    preset: str | None
    card: dict[str, Any]
    axes: Axes | None

    # -- cells ---------------------------------------------------------------------------------------------------------------------

    def latent(
        self,
        data: Any,
        *,
        block: str | None = None,
        rectified: bool = False,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
    ) -> np.ndarray:
        """Where each cell lies: the mean of q(z | x, c), or, for models that refine it, the mode of p(z | x, c).

        Args:
            data, missing, unknown, device: See :class:`Answers`.
            block: Name of a block, ``"invariant"`` or ``"spurious"``; None: all of the latent.
            rectified: In coordinates in which distances mean something. Of a model without blocks: linear ones, in which they are, as
                nearly as can be, lengths in data space (of x for real values, of the log rate less its mean over genes for counts). Of the
                invariant block: principal components, as many as it has dimensions, of decoded expression with technique averaged out
                (:mod:`trifold.technique`); of counts, distances between square roots of expected counts at a library size of 10,000,
                which are 141 times Hellinger distances. Either kind is fixed at the end of training.

        Returns:
            [n, d] float32. Dimensionless unless rectified.

        Raises:
            SpecError: No such block, or one that has no rectified coordinates.
            FormatError: Rectified coordinates of a run that was written before there were any.
        """
        self._need_fit("latent")
        at = columns_of(self.vae, block)
        biology = rectified and self._rectifiable(block)
        cells = self._cells(data, missing=missing, unknown=unknown)
        if biology:
            technique, axes = Technique(self.vae, self.schema, self.card), _kept(self.axes)
            seen = sees(self.vae, self.schema, decoded=True, told=technique.role)
            return self._collect(cells, lambda b: axes(technique.profile(locate(self.vae, b), b)), device, seen)
        z = self._collect(cells, lambda b: locate(self.vae, b)[:, at], device, sees(self.vae, self.schema))
        return z @ np.asarray(_kept(self.card.get("rectifier")), dtype=z.dtype) if rectified else z

    def expression(
        self, data: Any, *, corrected: bool = False, missing: str = "error", unknown: Unknown = "error", device: str = "auto"
    ) -> np.ndarray:
        """Denoised expression: the mean of p(x | z, c) at each cell's own library size and posterior mean.

        Args:
            data, missing, unknown, device: See :class:`Answers`.
            corrected: Average over technique instead of each cell's own: the cell is decoded under every category of the spurious role
                (the 16 with most training cells), with equal weights, its spurious block at the mean of that category's prior.

        Returns:
            [n, g] float32, in the schema's order of genes, in the units of x.

        Raises:
            SpecError: ``corrected`` of a model that sees no technique.
        """
        self._need_fit("expression")
        technique = Technique(self.vae, self.schema, self.card).required() if corrected else None
        cells = self._cells(data, missing=missing, unknown=unknown)

        def denoised(batch: Batch) -> Tensor:
            z = locate(self.vae, batch)
            return self.vae.likelihood.mean(self.vae.decode(z, batch), batch) if technique is None else technique.expression(z, batch)

        seen = sees(self.vae, self.schema, decoded=True, told=None if technique is None else technique.role)
        return self._collect(cells, denoised, device, seen)

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
    ) -> AnnData:
        """The same cells under other covariates.

        Each cell is encoded under its own covariates, moved in the latent from its place under its own prior to the same place under the
        target's (a column of technique moves the spurious block, one of biology the invariant block; other priors move nothing), and
        decoded under the target's, at its own library size.

        Args:
            data, missing, unknown, device: See :class:`Answers`. With ``"marginalise"``, draws are of one category drawn for each cell.
            to: column -> value of the target; columns that are not named stay as they are.
            where: column -> value or list of values: only cells that match all entries are predicted. None: all.
            kind: ``"mean"``: expected values; ``"sample"``: a draw, with fresh noise; ``"residual"``: the cell's own values moved from the
                one distribution to the other, so that it keeps its own noise.
            seed: Of the draws.

        Returns:
            A new AnnData in the units of the x that the model was trained on. Its obs are the source's, with ``target_COLUMN`` for each
            entry of ``to``, and ``seen``: whether cells of this combination were trained on. ``uns["trifold"]`` says how it was made.

        Raises:
            SpecError: An unknown kind, or a column that neither the decoder nor the prior sees.
        """
        require_kind(kind)
        self._need_fit("predict")
        require_effect(self.vae, self.schema, to)
        cells = self._cells(data, missing=missing, unknown=unknown)
        index = np.flatnonzero(splits.some(cells.obs, where, named="where=")) if where else np.arange(cells.n)
        obs = cells.obs.iloc[index]
        under = self.schema.under(obs, to)
        design, code = self.schema.covariates(under, unknown=cells.unknown)
        found = fillings(self.schema, self.card, cells.unknown, sees(self.vae, self.schema, decoded=True, to=to))
        targets = moved_fillings(self.schema, found, to)
        x = moved(self.vae, cells, index, design, code, found, targets, kind=kind, seed=seed, device=launch(device).device)
        obs = obs.assign(**{f"target_{column}": value for column, value in to.items()}, seen=was_seen(under, self.card["seen"]))
        return self._anndata(x, obs, kind=kind, to=plain(to), seed=seed)

    def score(self, data: Any, *, seed: int = 0, device: str = "auto") -> pd.DataFrame:
        """How well the model explains each cell: a one-sample evidence lower bound.

        Returns:
            A table with ``elbo``, ``reconstruction`` (log p(x | z, c)) and ``kl``, in nats per cell; ``elbo`` and ``kl`` are known up to a
            constant where the prior is.
        """
        self._need_fit("score")
        device = "cpu" if device == "auto" else device
        generator = torch.Generator(launch(device).device).manual_seed(seed)
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

        logits = self._collect(cells, logits_of, device, sees(self.vae, self.schema), predictor)
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

    # -- genes ---------------------------------------------------------------------------------------------------------------------

    def loadings(
        self, data: Any = None, *, block: str | None = BIOLOGY, missing: str = "error", unknown: Unknown = "error", seed: int = 0
    ) -> pd.DataFrame:
        """What each latent dimension does to each gene: the decoder's derivative, averaged over cells.

        Args:
            data: Cells (at most 500, evenly spaced) at whose latents and covariates it is taken; None: at 500 draws of the prior.
            block: Name of the block; None: all of the latent.
            missing, unknown: See :class:`Answers`. Unknown covariates are zeros.
            seed: Of the draws.

        Returns:
            [g, k] table, genes by ``BLOCK_0``, ... Change per unit of latent of x for real values, of the log rate less its mean over genes
            (nats) for counts, of the log odds for binary values.

        Raises:
            SpecError: No such block.
        """
        self._need_fit("loadings")
        columns_of(self.vae, block)
        points = self._cells(data, missing=missing, unknown=unknown) if data is not None else self._drawn({}, effects.POINTS, None, seed)[0]
        return effects.loadings_of(self.vae, points, block, list(self.schema.genes), seed=seed)

    def difference(
        self,
        data: Any,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        *,
        samples: int = 5_000,
        threshold: float = float(np.log(1.5)),
        seed: int = 0,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
    ) -> pd.DataFrame:
        """Which genes differ between two groups of cells, technique taken out.

        Of many pairs of a random cell of a and one of b, each at a latent drawn from its posterior, both are decoded under the same
        category of technique, the categories in turn; and the expected expression is compared. Models that see no technique decode
        each cell as it is.

        Args:
            data, missing, unknown, device: See :class:`Answers`; unknown covariates are zeros.
            a, b: column -> value or list of values that choose the groups' cells; at most 2,000 of each are drawn.
            samples: Number of pairs.
            threshold: Of the absolute change that counts: nats for counts, units of x otherwise.
            seed: Of pairs and latents.

        Returns:
            A table of genes, most probable first: ``log_fold_change`` (natural log of a over b, 0.01 counts per 10,000 added to either;
            for other values than counts ``change``, a - b in the units of x), its standard deviation ``sd`` over pairs, ``probability``
            that its absolute value exceeds the threshold, and ``mean_a``, ``mean_b``: expected counts at a library size of 10,000, or x.

        Raises:
            SchemaError: No cell matches, or one matches both.

        Source: Boyeau et al., bioRxiv 794289 (2019), the mode "change" of scVI. Both cells of a pair share technique; there, a batch.
        """
        self._need_fit("difference")
        cells = self._cells(data, missing=missing, unknown=unknown)
        chosen = splits.some(cells.obs, a, named="a="), splits.some(cells.obs, b, named="b=")
        pair = effects.groups_of(*chosen, seed=seed)
        there = launch(device).device
        return effects.difference(
            self.vae,
            Technique(self.vae, self.schema, self.card),
            cells,
            *pair,
            samples=samples,
            threshold=threshold,
            seed=seed,
            device=there,
        )

    def sample(
        self, given: Mapping[str, Any] | None = None, *, n: int = 1_000, size: float | None = None, seed: int = 0, device: str = "auto"
    ) -> AnnData:
        """New cells: covariates, then z from the prior, then x from the likelihood.

        Args:
            given: column -> value of all cells. Other columns that the model sees are drawn jointly, as often as the training cells that
                agree with ``given`` have them; numbers in ``given`` do not restrict them.
            n: Number of cells.
            size: Library size; None: drawn with replacement from those of training. Counts only.
            seed: Of everything.
            device: Where to compute.

        Returns:
            A new AnnData of draws (CSR counts, or an array of real values), whose obs hold the covariates and ``seen``.

        Raises:
            SchemaError: No training cell agrees with ``given``, and columns are left to draw.
            SpecError: A column that neither the decoder nor the prior sees, or a size or n that is not above 0.
        """
        from scipy.sparse import csr_matrix

        self._need_fit("sample")
        given = dict(given or {})
        require_effect(self.vae, self.schema, given, verb="sample")
        batch, obs = self._drawn(given, n, size, seed)
        x: Any = np.concatenate(generation.expressed(self.vae, batch, launch(device).device, seed))
        obs = obs.assign(seen=was_seen(obs, self.card["seen"]))
        return self._anndata(x if self.schema.kind == "real" else csr_matrix(x), obs, kind="sample", given=plain(given), seed=seed)

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _need_fit(self, verb: str) -> None:
        if not self.card:
            raise NotFittedError(
                f"{verb} needs a trained model; this one has not been trained. Call fit(data) first, or trifold.load(path)."
            )

    def _cells(self, data: Any, *, missing: str = "error", unknown: Unknown = "error") -> Cells:
        """The cells to answer for, each of them: what training would drop is kept."""
        empty = "keep" if self.schema.empty == "drop" else self.schema.empty
        return Cells(open(data, x=self.schema.x), self.schema, missing=missing, unknown=unknown, empty=empty)

    def _blind_cells(self, data: Any, missing: str, unknown: Unknown) -> Cells:
        """The cells, whatever their biology is called: it is not looked at."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"obs has no column .* \(invariant\)", TrifoldWarning)
            return self._cells(data, missing=missing, unknown={**policies(unknown), **dict.fromkeys(labels.TARGETS, "zero")})

    def _collect(self, cells: Cells, f: Callable[[Batch], Tensor], device: str, seen: Sequence[str], *parts: nn.Module) -> np.ndarray:
        """[n, ...] f of all cells, averaged over roles that are seen and unknown if that is the policy."""
        found, network = fillings(self.schema, self.card, cells.unknown, seen), nn.ModuleList([self.vae, *parts])
        return collect(network, cells, f, found, launch(device).device)

    def _table(self, data: Any, f: Callable[[Batch], Tensor], columns: list[str], device: str, *, missing: str = "error") -> pd.DataFrame:
        cells = self._cells(data, missing=missing)
        return pd.DataFrame(self._collect(cells, f, device, ()), index=cells.obs.index, columns=columns)

    def _anndata(self, x: Any, obs: pd.DataFrame, **about: Any) -> AnnData:
        from anndata import AnnData

        var = pd.DataFrame(index=list(self.schema.genes))
        return AnnData(x, obs=obs, var=var, uns={"trifold": {**about, "preset": self.preset or "", "x": self.schema.kind}})

    def _drawn(self, given: Mapping[str, Any], n: int, size: float | None, seed: int) -> tuple[Batch, pd.DataFrame]:
        """Cells without rows, and their covariates, as in training."""
        seen = sees(self.vae, self.schema, decoded=True, to=dict.fromkeys(separation.columns_of(self.schema, self.vae.prior.roles)))
        obs = generation.covariates_of(self.schema, self.card, seen, given, n, seed)
        return generation.batch_of(self.schema, obs, generation.library_sizes(self.card, n, size, seed)), obs

    def _rectifiable(self, block: str | None) -> bool:
        """Whether rectified coordinates are those of the invariant block; refused of another block, or of several."""
        if block is None and BIOLOGY not in self.vae.prior.slices:
            return False
        if block != BIOLOGY:
            raise SpecError(f"Rectified coordinates are those of the invariant block; found block={block!r}. Pass block='invariant'.")
        return True


def _kept(value: Any) -> Any:
    if value is None:
        raise FormatError("Rectified coordinates are fixed by fit, and this run was written by a trifold without them. Train it again.")
    return value
