"""``Model``: what a user holds. A schema, a VAE, an objective and a plan; it is trained, looked at and saved here, asked in ``Answers``."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trifold import mapping, separation, store
from trifold.answers import Answers
from trifold.cite import bibtex
from trifold.core import VAE, start
from trifold.data import Cells, Schema, open, samplers, splits
from trifold.errors import SpecError, suggest
from trifold.geometry import Surface
from trifold.inference import chunks, moments
from trifold.provenance import card_of, fingerprint, plain, seen_in
from trifold.records import Batch, Progress, Report
from trifold.schedule import weight_now
from trifold.settle import settle
from trifold.shape import curvature_of, end_of, under_of, walk
from trifold.spec import to_spec
from trifold.technique import Axes
from trifold.terms import KL, Objective, ScoreMatching, Term
from trifold.train import History, Plan, fit, launch, progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_START = 20_000  # cells from which the values that training begins with are taken


class Model(Answers):
    """A model of cells: schema, VAE, objective and plan. Presets make it; nothing of it is meant to be overridden.

    Args:
        schema: What the data look like.
        vae: The three conditional distributions and the likelihood.
        objective: What training minimises.
        plan: How it is trained, unless ``fit`` is told otherwise.
        preset: Name of the preset that made it, for citations.
    """

    def __init__(self, schema: Schema, vae: VAE, objective: Objective, *, plan: Plan | None = None, preset: str | None = None):
        self.schema = schema
        self.vae = vae.eval()
        self.objective = objective.eval()
        self.plan = plan or Plan()
        self.preset = preset
        self.history = History()
        self.card: dict[str, Any] = {}
        self.axes: Axes | None = None

    # -- training ------------------------------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        *,
        hold_out: Mapping[str, Any] | None = None,
        epochs: int | EllipsisType | None = ...,
        batch: int | EllipsisType = ...,
        lr: float | EllipsisType = ...,
        validation: float | EllipsisType = ...,
        patience: int | EllipsisType | None = ...,
        balance: str | EllipsisType | None = ...,
        precision: str | EllipsisType = ...,
        seed: int = 0,
        device: str = "auto",
        out: str | Path | None = None,
        progress: bool = True,
    ) -> Model:
        """Train on data. Arguments left at ``...`` are the preset's own.

        Args:
            data: AnnData, path to h5ad, or whatever the schema was made of.
            hold_out: column -> value or list of values: cells that match all entries are never seen.
            epochs: Passes over the training cells; None: from the size of the data.
            batch: Cells per minibatch.
            lr: Learning rate of Adam.
            validation: Share of the training cells, drawn evenly from all conditions, that is watched and not trained on; 0: none.
            patience: Epochs without improvement of the watched loss after which training stops and the best weights are restored; None: no
                early stopping, the last weights are kept. Of a prior known up to a constant, whose loss says nothing, the likelihood and
                the other terms are watched.
            balance: Role whose categories get equal shares of each minibatch; None: no balancing.
            precision: ``"32-true"`` or ``"bf16-mixed"``; likelihood, KL and MMD run in float32 either way.
            seed: Of the split, the minibatches, dropout and the noise of z. Weights are drawn when the preset is called, from its own seed.
            device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
            out: Run folder that is written at the end; an earlier run there is replaced.
            progress: Show a progress bar when a person is looking.

        Returns:
            The model itself.

        Raises:
            DataError, SchemaError: The data do not fit the schema, or hold values that cannot be trained on.
            TrainingError: A term or the gradient is not finite, or a term has diverged; good weights, at most 20 steps old, are put back.
            CheckpointError: ``out`` cannot be written: said before training begins.
        """
        if out is not None:
            store.check_writable(out)
        plan = self._plan(epochs=epochs, batch=batch, lr=lr, validation=validation, patience=patience, balance=balance, precision=precision)
        cells = Cells(open(data, x=self.schema.x), self.schema)
        kept = np.ones(cells.n, dtype=bool)
        if hold_out:
            kept &= ~splits.held_out(cells.obs, hold_out)
        train, watched = self._split(cells, np.flatnonzero(kept), plan, seed)
        sampler = self._sampler(cells, train, plan, seed)
        count = plan.epochs_for(len(train))
        if not self.card:
            some = train[:: -(-len(train) // _START)]
            start(self.vae, *moments(cells, some), lambda: chunks(cells, some))
        with progress_bar(count, show=progress) as show:
            self.history = fit(
                nn.ModuleDict({"vae": self.vae, "objective": self.objective}),
                self._step,
                lambda epoch, first: (cells.batch(index) for index in sampler.epoch(epoch)[first:]),
                plan,
                steps=sampler.steps,
                epochs=count,
                cells=len(train),
                validation=(lambda: chunks(cells, watched)) if len(watched) else None,
                watch=None if self.vae.prior.normalised else self._watched(),
                seed=seed,
                device=device,
                report=show,
            )
        settled, self.axes = settle(self.vae, self.objective, cells, train, watched, seed=seed)
        self.card = card_of(
            preset=self.preset,
            **settled,
            plan=to_spec(plan),
            seed=seed,
            hold_out=plain(hold_out or {}),
            cells={"trained": len(train), "watched": len(watched), "held_out": int(cells.n - kept.sum())},
            data=fingerprint(self.schema.genes, cells.names, cells.library),
            seen=seen_in(cells.obs.iloc[np.concatenate([train, watched])], [*self._covariates(), *(hold_out or {})]),
        )
        if out is not None:
            self.save(out)
        return self

    def map(
        self,
        query: Any,
        *,
        reference: Any = None,
        adapt: bool | None = None,
        epochs: int | None = None,
        steps: int = 400,
        batch: int = 256,
        lr: float = 2e-2,
        replay: float = 0.5,
        independence: float | None = None,
        unknown: str | Mapping[str, str] = "error",
        missing: str = "error",
        seed: int = 0,
        device: str = "auto",
        progress: bool = True,
    ) -> Model:
        """A model that also knows the batches and conditions of new cells, and says of its own cells what it said, bit for bit.

        Everything learned is frozen. Learned anew, from the cells of new categories of the roles spurious and condition, are these
        categories' rows of priors, columns of the first layers of encoders and decoder, dispersions, and rows of classifiers of the
        category. Labels may be there, some of them, or none. Without ``reference`` nothing is compared, and an encoder that adapts to the
        likelihood and the priors alone may place cells worse than one that does not: it then does not.

        Where categories have effects of their own in the last layer, as in trVAE, expression of the own cells is the same to rounding.

        Args:
            query: New cells, with the columns of spurious and condition.
            reference: Cells of training, or some: each minibatch holds a share of them, and the invariant block of the query's cells is to
                be distributed as theirs within each category, which cells without a label get from the prior; proportions may differ. At
                most 20,000 are used.
            adapt: Let encoders that do not see the batch see new ones; None: where there is a ``reference``.
            epochs: Passes over the query; None: as many as make about ``steps`` minibatches.
            steps, batch, lr: Minibatches; cells of each; learning rate of Adam, high because few weights move.
            replay: Share of the minibatch that is of the reference.
            independence: Weight of the comparison, an MMD; None: that of the reference's own ConditionalMMD, else 100.
            unknown: What becomes of unseen or missing biology: ``"error"``, or ``"zero"``: it counts as not known. A role whose column the
                query lacks is not known.
            missing, device: See :class:`Answers`.
            seed: Of minibatches and noise.
            progress: Show a progress bar when a person is looking.

        Returns:
            A new model; ``card["mapped"]`` says what was mapped. Calibration, novelty, axes and averages over technique stay those of the
            reference. If the query has no new category, nothing is trained, with a notice.

        Raises:
            SchemaError: The query lacks a column of a role that grows, or has biology that is not known.
            DataError: Its genes or values do not fit.
            SpecError: An argument out of its range, or a component of one's own that sees a role that grows.
        """
        self._need_fit("map")
        parts = (self.schema, self.vae, self.objective, self.card)
        schema, vae, objective, card = mapping.mapped(
            *parts,
            query,
            mapping.plan(epochs=epochs, steps=steps, batch=batch, lr=lr),
            reference=reference,
            adapt=reference is not None if adapt is None else adapt,
            replay=replay,
            independence=independence,
            unknown=unknown,
            missing=missing,
            seed=seed,
            device=device,
            progress=progress,
        )
        out = Model(schema, vae, objective, plan=self.plan, preset=self.preset)
        out.history, out.card, out.axes = History(self.history.rows), card, deepcopy(self.axes)
        return out

    def _plan(self, **given: Any) -> Plan:
        plan = replace(self.plan, **{name: value for name, value in given.items() if value is not ...})
        if plan.balance is not None and plan.balance not in self.schema.roles:
            raise SpecError(
                f"balance needs a role of the schema, or None; found {plan.balance!r}.{suggest(plan.balance, self.schema.roles)} "
                f"It has: {', '.join(self.schema.roles) or 'none'}."
            )
        return plan

    def _split(self, cells: Cells, index: np.ndarray, plan: Plan, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if plan.validation == 0:
            return index, index[:0]
        strata = next(iter(cells.code.values()))[index] if cells.code else np.zeros(len(index), dtype=np.int64)
        train, watched = splits.by_fraction(len(index), plan.validation, seed=seed, stratify=strata)
        return index[train], index[watched]

    def _sampler(self, cells: Cells, index: np.ndarray, plan: Plan, seed: int) -> Any:
        if plan.balance is None or len(np.unique(cells.code[plan.balance][index])) < 2:
            return samplers.Shuffled(index, plan.batch, seed=seed, block=cells.block)
        return samplers.Balanced(index, cells.code[plan.balance][index], plan.batch, seed=seed, block=cells.block)

    def _watched(self) -> dict[str, float]:
        """Term -> its last weight, of the terms whose values mean something without the prior's constant."""
        blocks = getattr(self.vae.prior, "blocks", {})

        def known(term: Term) -> bool:
            if isinstance(term, KL):
                return bool(blocks[term.block].normalised) if term.block in blocks else False
            return not isinstance(term, ScoreMatching)

        return {
            name: weight_now(self.objective.weights[name], Progress.done()) for name, term in self.objective.terms.items() if known(term)
        }

    def _step(self, batch: Batch, progress: Progress) -> Report:
        return self.objective(self.vae(batch, progress))  # type: ignore[no-any-return]

    # -- what a trained model looks like -------------------------------------------------------------------------------------------

    @property
    def separation(self) -> pd.DataFrame:
        """How well biology and technique are read from ``invariant``, ``spurious`` and as many principal components (``pca``).

        Probes learn from training cells and are scored on watched ones, at most 3,000 in all; the encoder sees neither biology nor
        technique. Columns as of :func:`trifold.evaluate.probes`, and ``role``. Technique also stands beside the chance ``within`` biology.

        Raises:
            SpecError: A model without both blocks, or trained without watched cells.
        """
        self._need_fit("separation")
        if "separation" not in self.card:
            raise SpecError(
                "The separation table needs an invariant and a spurious block, and watched cells; this run has not got them. "
                "Use invae(...).fit(data, validation=0.1)."
            )
        return separation.table_of(self.card["separation"])

    def surface(self, under: Mapping[str, Any] | None = None) -> Surface:
        """The decoder's surface, for :mod:`trifold.geometry`: a map from latent points [n, d] to data space [n, g].

        Data space is x for real values, the log rate less its mean over genes for counts, the log odds for binary values.

        Args:
            under: column -> value of the covariates that the decoder sees; columns that are not named count as unknown.
        """
        self._need_fit("surface")
        return self.vae.surface(under_of(self.schema, under))

    def curvature(self, data: Any, *, directions: int = 32, seed: int = 0, missing: str = "error", device: str = "auto") -> pd.DataFrame:
        """How the surface bends at each cell's latent.

        Args:
            data, missing, device: See :class:`Answers`.
            directions: Pairs of random directions per cell where there are more than 6 latent dimensions; up to 6 the values are exact.
            seed: Of the directions.

        Returns:
            A table with ``extrinsic`` (how fast the tangent space turns) and ``parameter`` (how fast the latent grid stretches), in
            1/length² of data space, and ``condition``, the condition number of the metric.

        Raises:
            SpecError: A decoder with kinks, such as ReLU.
        """
        self._need_fit("curvature")
        generator = torch.Generator(launch(device).device).manual_seed(seed)
        columns = ["extrinsic", "parameter", "condition"]
        return self._table(data, lambda b: curvature_of(self.vae, b, directions, generator), columns, device, missing=missing)

    def path(
        self, a: Any, b: Any, *, data: Any = None, kind: str = "straight", steps: int = 50, under: Mapping[str, Any] | None = None
    ) -> AnnData:
        """Decoded genes along a path from a to b.

        Args:
            a, b: Latent points [d], or selections of the data's cells, ``{"tissue": "Lung"}``, whose mean latents are the ends.
            data: The cells that selections choose from.
            kind: ``"straight"`` in the latent, or ``"geodesic"``: the shortest path on the surface near the straight one.
            steps: Points along the path, ends included.
            under: column -> value of the covariates that the decoder sees.

        Returns:
            A new AnnData of ``steps`` points: X the expected expression (counts: at a library size of 10,000); obs ``position`` (share of
            the way) and ``length`` (travelled in data space); var ``change`` from end to end and ``linearity``, the R² of a straight line
            along the path, both in data space (:meth:`surface`); obsm ``latent``; ``uns["trifold"]`` with both kinds' lengths and their
            ratio, ``straightness``, and ``x``, the kind of values.

        Raises:
            SpecError: A selection without data, an unknown kind, or fewer than three steps.
            ShapeError: A point of another width.
        """
        self._need_fit("path")
        obs, z = None, None
        if data is not None:
            obs, z = self._cells(data).obs, self.latent(data)
        d = self.vae.posterior.latent
        ends = end_of(a, z, obs, d, "a"), end_of(b, z, obs, d, "b")
        at = under_of(self.schema, under)
        return walk(self.vae, at, self.vae.surface(at), *ends, kind=kind, steps=steps, genes=list(self.schema.genes))

    def cite(self) -> str:
        """BibTeX entries of trifold, the preset's paper, and the components in use."""
        return bibtex(to_spec({"vae": self.vae, "objective": self.objective}), preset=self.preset)

    # -- saving --------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write a run folder (see docs/one_page.md); a kill at any moment leaves the old run or the new one.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        return store.write_run(
            path,
            card=self.card or card_of(preset=self.preset),
            schema=self.schema.to_spec(),
            spec=to_spec({"vae": self.vae, "objective": self.objective, "plan": self.plan, "preset": self.preset}),
            weights=self.network.state_dict(),
            history=self.history.to_csv(),
        )

    @property
    def network(self) -> nn.ModuleDict:
        """Everything whose weights are saved."""
        fixed = {} if self.axes is None else {"axes": self.axes}
        return nn.ModuleDict({"vae": self.vae, "objective": self.objective, **fixed})

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.vae.parameters())
        state = f"trained for {len(self.history)} epochs" if self.history.rows else "not trained"
        return f"Model({self.preset or 'own'}, {len(self.schema.genes)} genes, {count:,} weights, {state})\n{self.objective}"

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _covariates(self) -> list[str]:
        return list(dict.fromkeys(column.name for role in self.schema.roles if role != "label" for column in self.schema.roles[role]))
