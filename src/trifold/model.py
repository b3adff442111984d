"""``Model``: what a user holds. A schema, a VAE, an objective and a plan; it is trained, looked at and saved here, asked in ``Answers``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trifold import mapping, separation, store
from trifold.answers import Answers
from trifold.cite import bibtex
from trifold.core import VAE
from trifold.data import Schema
from trifold.errors import COPY, DeviceError, FormatError, SpecError, suggest
from trifold.fitting import Run, clear, fitted
from trifold.geometry import Surface
from trifold.provenance import card_of
from trifold.shape import curvature_of, end_of, under_of, walk
from trifold.spec import to_spec
from trifold.technique import Axes
from trifold.terms import Objective
from trifold.train import History, Plan, group, grouped, launch, require, together

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


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
        compile: bool | EllipsisType = ...,
        seed: int = 0,
        device: str = "auto",
        devices: int = 1,
        num_nodes: int = 1,
        out: str | Path | None = None,
        resume: bool = False,
        checkpoint_every: int | None = None,
        checkpoint_minutes: float | None = 10.0,
        progress: bool = True,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> Model:
        """Train on data. Arguments left at ``...`` are the preset's own.

        Args:
            data: AnnData, path to h5ad, or whatever the schema was made of.
            hold_out: column -> value or list of values: cells that match all entries are never seen.
            epochs: Passes over the training cells; None: from the size of the data.
            batch: Cells per minibatch. With larger ones than the preset's, and ``lr`` and ``epochs`` left alone, the learning rate rises
                and the number of steps falls with the square root of the ratio, which keeps the quality.
            lr: Learning rate of Adam.
            validation: Share of the training cells, drawn evenly from all conditions, that is watched and not trained on; 0: none.
            patience: Epochs without improvement of the watched loss after which training stops and the best weights are restored; None: no
                early stopping, the last weights are kept. Of a prior known up to a constant, whose loss says nothing, the likelihood and
                the other terms are watched.
            balance: Role whose categories get equal shares of each minibatch; None: no balancing.
            precision: ``"32-true"`` or ``"bf16-mixed"``; likelihood, KL, MMD and curvature run in float32 either way.
            compile: Compile the forward pass with ``torch.compile``; where that fails, a warning says why and training goes on without it.
            seed: Of the split, the minibatches, dropout and the noise of z. Weights are drawn when the preset is called, from its own seed.
            device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
            devices: Processes on this machine that train together, each on a device of its own and on its share of every minibatch; they
                give what one gives, to rounding. They are started here, unless torchrun (which then says how many) or SLURM has.
            num_nodes: Machines that train together; begin the processes with torchrun or SLURM (docs/cluster.md).
            out: Run folder that is written at the end; an earlier run there is replaced. While training, checkpoints are kept beside it, in
                ``NAME.checkpoint``: Ctrl-C and SIGTERM then finish the step, write one, and raise Interrupted (exit codes 130 and 143).
            resume: Go on from the newest checkpoint beside ``out``, bit for bit, if there is one; if the run there is finished, with these
                very arguments and data, it is the answer.
            checkpoint_every: Steps between checkpoints; None: by time only.
            checkpoint_minutes: Minutes between checkpoints; None: by steps only. With neither, none is written.
            progress: Show a progress bar when a person is looking.
            on_epoch: Called with each epoch's row of the history; what it raises ends training.

        Returns:
            The model itself.

        Raises:
            DataError, SchemaError: The data do not fit the schema, or hold values that cannot be trained on.
            TrainingError: A term or the gradient is not finite, or a term has diverged; good weights, at most 20 steps old, are put back.
            CheckpointError: ``out`` cannot be written: said before training begins. The checkpoint is of another run. A checkpoint cannot
                be written: training stops, weights are those of that step, and earlier checkpoints serve ``resume=True``.
            Interrupted: Training was asked to stop, and wrote a checkpoint.
            DeviceError: The device is not there, or not so many.
        """
        if out is not None:
            store.check_writable(out)
        if resume and out is None:
            raise SpecError("resume=True needs out=, the run folder beside which the checkpoints are; found none. Pass out='run'.")
        given = {"epochs": epochs, "batch": batch, "lr": lr, "validation": validation, "patience": patience, "balance": balance}
        plan = self._plan(**given, precision=precision, compile=compile)
        folder = None if out is None else Path(out)
        devices, num_nodes = group(devices, num_nodes)
        run = Run(
            hold_out=hold_out,
            seed=seed,
            device=device,
            devices=devices,
            num_nodes=num_nodes,
            out=folder,
            resume=resume,
            every=checkpoint_every,
            minutes=checkpoint_minutes,
            progress=progress,
            on_epoch=on_epoch,
        )
        if devices * num_nodes > 1 and not grouped():
            require(device, devices)
            self._fit_together(data, plan, run)
            return self
        self._fit_here(data, plan, run)
        return self

    def _fit_here(self, data: Any, plan: Plan, run: Run, *, also: Path | None = None) -> None:
        """Train in this process, alone or as one of several; the first of them writes to ``run.out``, and to ``also``."""
        found = fitted(self.schema, self.vae, self.objective, data, plan, run, preset=self.preset, begun=bool(self.card))
        if found.finished is not None:
            self.adopt(found.finished)
        else:
            self.history, self.card, self.axes = found.history, found.card, found.axes
        if not found.writes:
            return
        if run.out is not None and found.finished is None:
            self.save(run.out)
            clear(run.out)
        if also is not None:
            self.save(also)

    def _fit_together(self, data: Any, plan: Plan, run: Run) -> None:
        """As :meth:`fit`, in processes of their own; what the first of them saved is taken over."""
        if run.num_nodes > 1:
            raise DeviceError(
                f"num_nodes={run.num_nodes} needs processes that torchrun or SLURM began on each machine; found this one alone. "
                "See docs/cluster.md."
            )
        if run.on_epoch is not None:
            raise SpecError("on_epoch= cannot be called from other processes: leave out devices=, or begin the script with torchrun.")
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "run"
            together(_fit_one, self, data, plan, run, saved, processes=run.devices)
            self.adopt(store.read_run(saved))

    def adopt(self, parts: Mapping[str, Any]) -> Model:
        """Take over what a run folder of the same specification holds: weights, history, card.

        Args:
            parts: As :func:`trifold.store.read_run` gives.

        Raises:
            FormatError, CorruptModelError: They do not fit.
        """
        saved = parts["weights"].get("axes.axes")
        self.axes = None if saved is None else Axes(len(self.schema.genes), saved.shape[-1] if saved.ndim else 0)
        store.load_weights(self.network, parts["weights"])
        self.history = History.from_csv(parts["history"])
        if not isinstance(parts["card"], dict):
            raise FormatError(f"card.json must hold an object; found {type(parts['card']).__name__}. {COPY}")
        self.card = parts["card"] if "seen" in parts["card"] else {}  # one that was saved untrained is still untrained
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
        chosen = {name: value for name, value in given.items() if value is not ...}
        plan = replace(self.plan.at(chosen.get("batch", self.plan.batch)), **chosen)
        if plan.balance is not None and plan.balance not in self.schema.roles:
            raise SpecError(
                f"balance needs a role of the schema, or None; found {plan.balance!r}.{suggest(plan.balance, self.schema.roles)} "
                f"It has: {', '.join(self.schema.roles) or 'none'}."
            )
        return plan

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


def _fit_one(model: Model, data: Any, plan: Plan, run: Run, saved: Path) -> None:
    """One of several processes that train together."""
    model._fit_here(data, plan, run, also=saved)
