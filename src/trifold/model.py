"""``Model``: what a user holds. A schema, a VAE, an objective and a plan; it fits, embeds, predicts, saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trifold import store
from trifold.cite import bibtex
from trifold.core import VAE, locate, start
from trifold.data import Cells, Schema, open, samplers, splits
from trifold.errors import FormatError, NotFittedError, SpecError, listing, suggest
from trifold.geometry import Surface
from trifold.inference import Inference, chunks, cut, moments, tensors
from trifold.prediction import moved, require_effect, require_kind
from trifold.provenance import card_of, fingerprint, plain, seen_in, was_seen
from trifold.records import Batch, Progress, Report
from trifold.shape import curvature_of, end_of, point_of, rectifier_of, walk
from trifold.spec import from_spec, to_spec
from trifold.terms import Objective
from trifold.train import History, Plan, fit, launch, progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_SOME = 2_000  # cells from which rectified coordinates are fitted
_START = 20_000  # cells from which the values that training begins with are taken


class Model:
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
                early stopping, the last weights are kept.
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
        network = nn.ModuleDict({"vae": self.vae, "objective": self.objective})
        with progress_bar(count, show=progress) as show:
            self.history = fit(
                network,
                self._step,
                lambda epoch: (cells.batch(index) for index in sampler.epoch(epoch)),
                plan,
                steps=sampler.steps,
                epochs=count,
                cells=len(train),
                validation=(lambda: chunks(cells, watched)) if len(watched) else None,
                seed=seed,
                device=device,
                report=show,
            )
        with self._inference("cpu"):
            rectifier = rectifier_of(self.vae, chunks(cells, train[:: -(-len(train) // _SOME)]))
        self.card = card_of(
            preset=self.preset,
            rectifier=rectifier,
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

    def _step(self, batch: Batch, progress: Progress) -> Report:
        return self.objective(self.vae(batch, progress))  # type: ignore[no-any-return]

    # -- what a trained model answers ----------------------------------------------------------------------------------------------

    def latent(
        self, data: Any, *, rectified: bool = False, missing: str = "error", unknown: str = "error", device: str = "auto"
    ) -> np.ndarray:
        """Where each cell lies: the mean of q(z | x, c), or, for models that refine it, the mode of p(z | x, c).

        Args:
            data: Cells with the schema's genes, in any order.
            rectified: In linear coordinates in which distances are, as nearly as can be, lengths in data space: those of x for real
                values, of the log rate less its mean over genes for counts. The coordinates are fixed at the end of training.
            missing: ``"zero"`` accepts absent genes as zeros; ``"error"`` names them.
            unknown: ``"zero"`` accepts unseen categories as all-zero covariates; ``"error"`` names them.
            device: Where to compute.

        Returns:
            [n, d] float32, in the order of data's rows. Dimensionless, or a length in data space if rectified.

        Raises:
            FormatError: Rectified coordinates of a run that was written before there were any.
        """
        self._need_fit("latent")
        cells = self._cells(data, missing=missing, unknown=unknown)
        z = self._collect(cells, np.arange(cells.n), lambda b: locate(self.vae, b), device)
        return z @ self._rectifier().astype(z.dtype) if rectified else z

    def predict(
        self,
        data: Any,
        to: Mapping[str, Any],
        *,
        where: Mapping[str, Any] | None = None,
        kind: str = "mean",
        seed: int = 0,
        missing: str = "error",
        device: str = "auto",
    ) -> AnnData:
        """The same cells under another condition.

        Each cell is encoded under its own covariates and decoded under those of the target, at its own library size.

        Args:
            data: The source cells.
            to: column -> value of the target; columns that are not named stay as they are.
            where: column -> value or list of values: only cells that match all entries are predicted. None: all.
            kind: ``"mean"``: expected values; ``"sample"``: a draw, with fresh noise; ``"residual"``: the cell's own values moved from the
                one distribution to the other, so that it keeps its own noise.
            seed: Of the draws.
            missing: ``"zero"`` accepts absent genes as zeros.
            device: Where to compute.

        Returns:
            A new AnnData in the units of the x that the model was trained on. Its obs are the source's, with ``target_COLUMN`` for each
            entry of ``to``, and ``seen``: whether cells of this combination were trained on. ``uns["trifold"]`` says how it was made.

        Raises:
            SchemaError: An unknown column or value, or no cell matches.
            SpecError: An unknown kind, or a column that the decoder does not see.
            NotFittedError: The model was never trained.
        """
        import pandas as pd
        from anndata import AnnData
        from scipy.sparse import csr_matrix, vstack

        require_kind(kind)
        self._need_fit("predict")
        require_effect(self.vae, self.schema, to)
        cells = self._cells(data, missing=missing)
        index = np.flatnonzero(splits.some(cells.obs, where, named="where=")) if where else np.arange(cells.n)
        obs = cells.obs.iloc[index]
        under = self.schema.under(obs, to)
        design, code = self.schema.covariates(under)
        sparse = kind != "mean" and self.schema.kind != "real"
        values = moved(self.vae, cells, index, design, code, kind=kind, seed=seed, device=launch(device).device)
        parts = [csr_matrix(part) if sparse else part for part in values]
        return AnnData(
            X=vstack(parts, format="csr") if sparse else np.concatenate(parts),
            obs=obs.assign(**{f"target_{column}": value for column, value in to.items()}, seen=was_seen(under, self.card["seen"])),
            var=pd.DataFrame(index=list(self.schema.genes)),
            uns={"trifold": {"kind": kind, "to": plain(to), "seed": seed, "preset": self.preset or "", "x": self.schema.kind}},
        )

    def expression(self, data: Any, *, missing: str = "error", device: str = "auto") -> np.ndarray:
        """Denoised expression: the mean of p(x | z, c) at each cell's own covariates, library size and posterior mean.

        Returns:
            [n, g] float32, in the order of data's rows and the schema's genes, in the units of x.
        """
        self._need_fit("expression")
        cells = self._cells(data, missing=missing)
        return self._collect(cells, np.arange(cells.n), self._denoise, device)

    def score(self, data: Any, *, seed: int = 0, device: str = "auto") -> pd.DataFrame:
        """How well the model explains each cell: a one-sample evidence lower bound.

        Returns:
            A table in the order of data's rows with ``elbo``, ``reconstruction`` (log p(x | z, c)) and ``kl``, in nats per cell.
        """
        import pandas as pd

        self._need_fit("score")
        cells = self._cells(data)
        device = "cpu" if device == "auto" else device
        generator = torch.Generator(launch(device).device).manual_seed(seed)

        def parts(batch: Batch) -> Tensor:
            from trifold.terms import KL

            p = self.vae(batch, generator=generator)
            kl, fit_ = KL()(p), self.vae.likelihood.log_prob(p.h, batch)
            return torch.stack([fit_ - kl, fit_, kl], 1)

        values = self._collect(cells, np.arange(cells.n), parts, device)
        return pd.DataFrame(values, index=cells.obs.index, columns=["elbo", "reconstruction", "kl"])

    def surface(self, under: Mapping[str, Any] | None = None) -> Surface:
        """The decoder's surface, for :mod:`trifold.geometry`: a map from latent points [n, d] to data space [n, g].

        Data space is x for real values, the log rate less its mean over genes for counts, the log odds for binary values.

        Args:
            under: column -> value of the covariates that the decoder sees; columns that are not named count as unknown.

        Raises:
            SchemaError: An unknown column or value.
        """
        self._need_fit("surface")
        return self.vae.surface(self._point(under))

    def curvature(self, data: Any, *, directions: int = 32, seed: int = 0, missing: str = "error", device: str = "auto") -> pd.DataFrame:
        """How the surface bends at each cell's latent.

        Args:
            data: Cells with the schema's genes, in any order.
            directions: Pairs of random directions per cell where there are more than 6 latent dimensions; up to 6 the values are exact.
            seed: Of the directions.
            missing: ``"zero"`` accepts absent genes as zeros.
            device: Where to compute.

        Returns:
            A table in the order of data's rows with ``extrinsic`` (how fast the tangent space turns) and ``parameter`` (how fast the latent
            grid stretches), in 1/length² of data space, and ``condition``, the condition number of the metric.

        Raises:
            SpecError: A decoder with kinks, such as ReLU.
        """
        import pandas as pd

        self._need_fit("curvature")
        cells = self._cells(data, missing=missing)
        generator = torch.Generator(launch(device).device).manual_seed(seed)
        values = self._collect(cells, np.arange(cells.n), lambda b: curvature_of(self.vae, b, directions, generator), device)
        return pd.DataFrame(values, index=cells.obs.index, columns=["extrinsic", "parameter", "condition"])

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
            SchemaError: An unknown column or value, or no cell matches.
            ShapeError: A point of another width.
        """
        self._need_fit("path")
        obs, z = None, None
        if data is not None:
            obs, z = self._cells(data).obs, self.latent(data)
        d = self.vae.posterior.latent
        ends = end_of(a, z, obs, d, "a"), end_of(b, z, obs, d, "b")
        at = self._point(under)
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
        network = nn.ModuleDict({"vae": self.vae, "objective": self.objective})
        return store.write_run(
            path,
            card=self.card or card_of(preset=self.preset),
            schema=self.schema.to_spec(),
            spec=to_spec({"vae": self.vae, "objective": self.objective, "plan": self.plan, "preset": self.preset}),
            weights=network.state_dict(),
            history=self.history.to_csv(),
        )

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.vae.parameters())
        state = f"trained for {len(self.history)} epochs" if self.history.rows else "not trained"
        return f"Model({self.preset or 'own'}, {len(self.schema.genes)} genes, {count:,} weights, {state})\n{self.objective}"

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _denoise(self, batch: Batch) -> Tensor:
        return self.vae.likelihood.mean(self.vae.decode(locate(self.vae, batch), batch), batch)

    def _point(self, under: Mapping[str, Any] | None) -> Batch:
        """One cell without rows, under some covariates; the others unknown."""
        import pandas as pd

        asked = dict(under or {})
        columns = [c.name for role in self.schema.roles.values() for c in role]
        obs = pd.DataFrame({name: pd.Series([asked.get(name)], dtype=object) for name in columns}, index=["point"])
        known = self.schema.under(obs, asked)
        design, code = self.schema.covariates(known, unknown="zero")
        at = np.arange(1)
        return point_of(tensors(design, at), tensors(code, at))

    def _rectifier(self) -> np.ndarray:
        if "rectifier" not in self.card:
            raise FormatError("Rectified coordinates are fixed by fit, and this run was written by a trifold without them. Train it again.")
        return np.asarray(self.card["rectifier"], dtype=np.float64)

    def _collect(self, cells: Cells, index: np.ndarray, f: Callable[[Batch], Tensor], device: str) -> np.ndarray:
        with self._inference(device) as there:
            parts = [f(cells.batch(at).to(there)).float().cpu().numpy() for at in cut(index)]
        return np.concatenate(parts)

    def _inference(self, device: str) -> Inference:
        return Inference(self.vae, launch(device).device)

    def _need_fit(self, verb: str) -> None:
        if not self.card:
            raise NotFittedError(
                f"{verb} needs a trained model; this one has not been trained. Call fit(data) first, or trifold.load(path)."
            )

    def _cells(self, data: Any, *, missing: str = "error", unknown: str = "error") -> Cells:
        """The cells to answer for, each of them: what training would drop is kept."""
        empty = "keep" if self.schema.empty == "drop" else self.schema.empty
        return Cells(open(data, x=self.schema.x), self.schema, missing=missing, unknown=unknown, empty=empty)

    def _covariates(self) -> list[str]:
        return list(dict.fromkeys(column.name for role in self.schema.roles if role != "label" for column in self.schema.roles[role]))


def load(path: str | Path, *, trust: Sequence[str] = ()) -> Model:
    """The model that ``Model.save`` or ``fit(out=...)`` wrote.

    Args:
        path: Run folder.
        trust: Classes outside trifold that may be imported, ``"mylab.cycle:Cycle"``.

    Raises:
        FormatError, CorruptModelError: The folder is not a run, is damaged, or names a class that is not trusted.
    """
    parts = store.read_run(path)
    spec = parts["spec"]
    if not isinstance(spec, dict) or sorted(spec) != ["objective", "plan", "preset", "vae"]:
        found = listing(spec, 10) if isinstance(spec, dict) else type(spec).__name__
        raise FormatError(f"spec.json of {str(path)!r} must hold vae, objective, plan and preset; found {found}.")
    built = from_spec(spec, trust=trust)
    for name, kind in {"vae": VAE, "objective": Objective, "plan": Plan, "preset": str | None}.items():
        if not isinstance(built[name], kind):
            raise FormatError(f"{name!r} in spec.json of {str(path)!r} must be a {_named(kind)}; found {type(built[name]).__name__}.")
    model = Model(Schema.from_spec(parts["schema"]), built["vae"], built["objective"], plan=built["plan"], preset=built["preset"])
    store.load_weights(nn.ModuleDict({"vae": model.vae, "objective": model.objective}), parts["weights"])
    model.history = History.from_csv(parts["history"])
    if not isinstance(parts["card"], dict):
        raise FormatError(f"card.json of {str(path)!r} must hold the facts of the run; found {type(parts['card']).__name__}.")
    model.card = parts["card"] if "seen" in parts["card"] else {}  # one that was saved untrained is still untrained
    return model


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
