"""New cells on a trained reference: weights of their batches are learned, everything else stays bit for bit as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from trifold.core import VAE, Prior
from trifold.data import Category, Cells, Schema, Source, batches, open, samplers
from trifold.data.columns import key, levels
from trifold.errors import SchemaError, SpecError, TrifoldWarning, listing
from trifold.generation import combinations_of
from trifold.growth import Growth, grown
from trifold.inference import Inference, cut
from trifold.provenance import fingerprint, plain
from trifold.records import Batch, Pass, Progress, Report, Rows
from trifold.schedule import Ramp, weight_now
from trifold.technique import BIOLOGY
from trifold.terms import ConditionalMMD, Objective, Predictor, Probe, ScoreMatching, Term
from trifold.train import Plan, fit, progress_bar

GROWS = ("spurious", "condition")
FIXED = ("invariant", "label")
WEIGHT = 100.0  # of the MMD between query and reference, where the reference was trained without one
_REFERENCE = 20_000  # cells of the reference that are replayed
_QUERY, _ASSIGNED = "query", "assigned"  # roles of a minibatch in mapping: 0 reference or 1 + new category, and the category of biology


def plan(*, epochs: int | None, steps: int, batch: int, lr: float) -> Plan:
    """How mapping is trained: nothing is watched, the learning rate falls along a cosine."""
    return Plan(epochs=epochs, steps=steps, batch=batch, lr=lr, decay="cosine", plateau=None, patience=None, validation=0.0)


def mapped(
    schema: Schema,
    vae: VAE,
    objective: Objective,
    card: Mapping[str, Any],
    query: Any,
    plan: Plan,
    *,
    reference: Any,
    adapt: bool,
    replay: float,
    independence: float | None,
    unknown: str | Mapping[str, str],
    missing: str,
    seed: int,
    device: str,
    progress: bool,
) -> tuple[Schema, VAE, Objective, dict[str, Any]]:
    """Schema, VAE, objective and card of a model that knows the query's batches; :meth:`trifold.Model.map` says how.

    Raises:
        SchemaError: The query lacks a column, or has biology that the reference does not know.
        DataError: Its genes or values do not fit.
        SpecError: An argument out of its range, or a component that cannot be widened.
    """
    if not 0 <= replay < 1:
        raise SpecError(f"replay needs a share of the minibatch in [0, 1); found {replay!r}.")
    if independence is not None and independence < 0:
        raise SpecError(f"independence needs a weight >= 0, or None for the reference's own; found {independence!r}.")
    source = open(query, x=schema.x)
    roles = tuple(role for role in GROWS if role in schema.roles)
    _check(schema, source.obs, roles, unknown)
    growth = Growth(schema, schema.grown(source.obs, roles), roles, adapt)
    cells = _cells(source, growth.new, unknown, missing)
    wide, fresh = grown(vae, growth)
    aims, fresh_aims = grown(objective, growth)
    new = {role: growth.new.categories(role)[len(schema.categories(role)) :] for role in roles}
    index = np.flatnonzero(np.any([cells.code[role] >= len(schema.categories(role)) for role in roles], axis=0))
    about: dict[str, Any] = {"cells": cells.n, "new": plain(new), "trained": len(index), "replayed": 0, "steps": 0, "seed": seed}
    about["data"] = fingerprint(schema.genes, cells.names, cells.library)
    weights = {**{f"vae.{n}": m for n, m in fresh.items()}, **{f"objective.{n}": m for n, m in fresh_aims.items()}}
    if len(index) and weights:
        old = None
        if reference is not None and replay > 0:
            old = _cells(open(reference, x=schema.x), growth.new, unknown, missing)
            about["replayed"] = min(old.n, _REFERENCE)
        about |= _trained(growth, wide, aims, weights, cells, index, old, plan, replay, independence, seed, device, show=progress)
    else:
        warnings.warn(
            f"map learns weights of new categories of {' and '.join(roles)}; found {len(index)} cells of new ones, {len(weights)} "
            "tensors to learn: nothing was trained. For cells of known batches, use the reference as it is.",
            TrifoldWarning,
            stacklevel=3,
        )
    return growth.new, wide, aims, _card(growth, card, cells.obs.iloc[index], about)


def _trained(
    growth: Growth,
    vae: VAE,
    objective: Objective,
    weights: Mapping[str, Tensor],
    cells: Cells,
    index: np.ndarray,
    old: Cells | None,
    plan: Plan,
    replay: float,
    independence: float | None,
    seed: int,
    device: str,
    *,
    show: bool,
) -> dict[str, Any]:
    """Learn the fresh entries; facts for the card."""
    share = replay if old is not None else 0.0
    sampler = samplers.Shuffled(index, max(1, round(plan.batch * (1 - share))), seed=seed, block=cells.block, window=cells.window)
    count = plan.epochs or max(1, round(plan.steps / sampler.steps))
    network = _Still({"vae": vae, "objective": objective})
    past = None if old is None else Replay.of(vae, old, share / (1 - share))
    step = _Step(growth, vae, *_terms(growth, vae, objective, independence, joint=past is not None), past)
    with _only(network, weights), progress_bar(count, show=show) as report:
        history = fit(
            network,
            step,
            lambda epoch, first: batches(cells, sampler.epoch(epoch)[first:]),
            plan,
            steps=sampler.steps,
            epochs=count,
            cells=len(index),
            seed=seed,
            device=device,
            report=report,
        )
    last = {name.removeprefix("train/"): value for name, value in history.rows[-1].items() if name.startswith("train/")}
    return {"steps": int(history.rows[-1]["step"]), "lr": plan.lr, "batch": plan.batch, "replay": share, "values": plain(last)}


class _Still(nn.ModuleDict):
    """Parts that stay in evaluation mode, also when they are trained: no dropout, and running means as the reference left them."""

    def train(self, mode: bool = True) -> _Still:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)


@contextmanager
def _only(network: nn.Module, fresh: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, only the fresh entries of parameters get a gradient; the others get zeros, by which Adam moves nothing."""
    before = {name: p.requires_grad for name, p in network.named_parameters()}
    handles = []
    for name, p in network.named_parameters():
        p.requires_grad_(name in fresh)
        if name in fresh:
            handles.append(p.register_hook(lambda g, mask=fresh[name]: g.masked_fill(~mask.to(g.device), 0)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, p in network.named_parameters():
            p.requires_grad_(before[name])


# -- what is minimised -----------------------------------------------------------------------------------------------------------------


def _terms(
    growth: Growth, vae: VAE, objective: Objective, independence: float | None, *, joint: bool
) -> tuple[Objective, Objective | None]:
    """What is minimised of the query's cells, and, where the reference is replayed, of both together.

    Terms that compare cells are of both, and are left out without the reference. In place of what keeps the invariant block independent
    of a role that grows comes an MMD between query and reference within assigned categories: a probe most of whose rows are frozen is no
    adversary, and a ConditionalMMD may leave cells without labels out.
    """
    alone: dict[str, Term] = {}
    both: dict[str, Term] = {}
    rates: dict[str, Any] = {name: weight_now(weight, Progress.done()) for name, weight in objective.weights.items()}
    own = WEIGHT
    for name, term in objective.terms.items():
        told = getattr(term, "role", None) in growth
        if isinstance(term, (ConditionalMMD, Probe)) and told and term.block == BIOLOGY:
            own = rates[name] if isinstance(term, ConditionalMMD) else own
        elif isinstance(term, ScoreMatching) and not _moves(growth, vae.prior, term.block):
            continue  # the density that it would fit is that of the reference
        elif term.joint and not (isinstance(term, Predictor) and not told):
            both[name] = term
        else:
            alone[name] = term
    weight = own if independence is None else independence
    if BIOLOGY in vae.prior.slices and weight > 0:
        both[_QUERY], rates[_QUERY] = ConditionalMMD(BIOLOGY, role=_QUERY, within=_ASSIGNED), Ramp(weight, end=0.5)
    kept = [{name: rates[name] for name in terms} for terms in (alone, both)]
    return Objective(alone, kept[0]), Objective(both, kept[1]) if both and joint else None


def _moves(growth: Growth, prior: Prior, block: str | None) -> bool:
    """Whether a block of the prior depends on a role that grows."""
    part = getattr(prior, "blocks", {}).get(block, prior)
    return any(role in growth for role in part.roles)


@dataclass(frozen=True)
class Replay:
    """Latents of the reference, which mapping does not move, and so are found once.

    Args:
        batch: The cells, without their rows.
        mean, scale: [m, d] of q(z | x, c).
        ratio: Cells that are replayed for each cell of the query.
    """

    batch: Batch
    mean: Tensor
    scale: Tensor
    ratio: float

    @staticmethod
    def of(vae: VAE, cells: Cells, ratio: float) -> Replay:
        """Of at most 20,000 cells, evenly spaced."""
        found = []
        with Inference(vae, torch.device("cpu")):
            for at in cut(np.arange(cells.n)[:: -(-cells.n // _REFERENCE)]):
                batch = cells.batch(at)
                law = vae.posterior(batch).base_dist
                found.append((batch.bare(torch.arange(batch.n)), law.loc, law.scale))
        batches, means, scales = zip(*found, strict=True)
        return Replay(_beside(batches), torch.cat(means), torch.cat(scales), ratio)

    def draw(self, n: int) -> tuple[Batch, Tensor, Tensor]:
        """Covariates, mean and scale of some cells, for n of the query."""
        at = torch.randint(len(self.mean), (max(2, round(n * self.ratio)),))
        return self.batch.bare(at), self.mean[at], self.scale[at]


class _Step:
    """One minibatch of the query, and beside it cells of the reference."""

    def __init__(self, growth: Growth, vae: VAE, alone: Objective, both: Objective | None, replay: Replay | None):
        self.role = next(role for role in growth.roles if growth.count(role) > len(growth.old.categories(role)))
        self.known = len(growth.old.categories(self.role))
        self.vae, self.alone, self.both, self.replay = vae, alone.eval(), both, replay

    def __call__(self, batch: Batch, progress: Progress) -> Report:
        p = self.vae(batch, progress)
        own = self.alone(p)
        if self.both is None or self.replay is None:
            return own
        other = self.both.eval()(self._both(p))
        return Report(own.loss + other.loss, {**own.values, **other.values}, {**own.weights, **other.weights})

    def _both(self, p: Pass) -> Pass:
        batch, mean, scale = self.replay.draw(p.batch.n)  # type: ignore[union-attr]
        device = p.z.device
        batch, mean, scale = batch.to(device), mean.to(device), scale.to(device)
        every = _beside([p.batch.bare(torch.arange(p.batch.n, device=device)), batch])
        mean, scale = torch.cat([p.qz.base_dist.loc, mean]), torch.cat([p.qz.base_dist.scale, scale])  # type: ignore[attr-defined]
        z = torch.cat([p.z, mean[p.batch.n :] + scale[p.batch.n :] * torch.randn_like(mean[p.batch.n :])])
        new = p.batch.code[self.role] - self.known
        group = torch.cat([torch.where(new >= 0, new + 1, -1), torch.zeros_like(batch.code[self.role])])
        every = every.under(code={_QUERY: group, _ASSIGNED: assigned(self.vae, mean, every)})
        taps: dict[str, Tensor] = {}
        h = self.vae.decoder(z, every, taps=taps)
        return replace(p, batch=every, qz=Independent(Normal(mean, scale, validate_args=False), 1), z=z, h=h, taps=taps)


def assigned(vae: VAE, z: Tensor, batch: Batch) -> Tensor:
    """[n] each cell's category of biology: its own where it is known, else that of the prior under which its latent is most likely.

    Of a mixture prior the likeliest component; 0 for all cells where the prior knows no categories.

    Args:
        vae: The model.
        z: [n, d] latents.
        batch: The cells' covariates.
    """
    prior = getattr(vae.prior, "blocks", {}).get(BIOLOGY, vae.prior)
    z = z[:, vae.prior.slices.get(BIOLOGY, slice(None))].detach()
    with torch.no_grad():
        found = prior.candidates(batch)
        if found is not None:
            return found.assign(z)  # type: ignore[no-any-return]
        if not prior.roles:
            return torch.zeros(batch.n, dtype=torch.int64, device=z.device)
        role = prior.roles[0]
        known = batch.code[role]
        likely = [prior.log_prob(z, batch.under(code={role: torch.full_like(known, k)})) for k in range(prior.categories)]
        return torch.where(known < 0, torch.stack(likely, 1).argmax(1), known)


def _beside(batches: Any) -> Batch:
    """Covariates of several batches as one, without rows."""
    size = torch.cat([b.size for b in batches])
    return Batch(
        rows=Rows.of_dense(size.new_zeros(len(size), 0)),
        size=size,
        design={role: torch.cat([b.design[role] for b in batches]) for role in batches[0].design},
        code={role: torch.cat([b.code[role] for b in batches]) for role in batches[0].code},
    )


# -- what is asked and kept ------------------------------------------------------------------------------------------------------------


def _check(schema: Schema, obs: pd.DataFrame, roles: tuple[str, ...], unknown: str | Mapping[str, str]) -> None:
    """Refuse a query without its batches, or with biology that the reference has not got."""
    if not roles:
        raise SchemaError(
            f"map learns weights for new categories of the roles {' and '.join(GROWS)}; the reference's schema has "
            f"{listing(schema.roles) or 'no role'}. Train it with Schema.of(data, spurious=<column>)."
        )
    for role in roles:
        for column in schema.roles[role]:
            if column.name not in obs:
                raise SchemaError(
                    f"map needs the column {column.name!r} ({role}) in the query's obs, which says what batch each cell is of; found "
                    f"{listing(obs.columns, 10) or 'no column'}. Add it: query.obs[{column.name!r}] = 'new'."
                )
    for role in FIXED:
        for column in schema.roles.get(role, ()):
            if (unknown if isinstance(unknown, str) else unknown.get(role, "error")) != "error" or column.name not in obs:
                continue
            if isinstance(column, Category):
                known = column.positions()
                new = [v for v in levels(obs[column.name], column.name, schema.unlabelled_in(role))[0] if key(v) not in known]
                if new:
                    blank = f"Mark such cells as {schema.unlabelled[0]!r}" if schema.unlabelled else "Leave the column out"
                    raise SchemaError(
                        f"map learns technique, not biology: it needs known values of {column.name!r} ({role}); found "
                        f"{listing(map(repr, new))}. {blank}, or pass unknown={{{role!r}: 'zero'}}: they then count as not known."
                    )


def _cells(source: Source, schema: Schema, unknown: str | Mapping[str, str], missing: str) -> Cells:
    """The cells; biology of which they have no column is unknown."""
    policy = {role: unknown if isinstance(unknown, str) else unknown.get(role, "error") for role in schema.roles}
    bare = [role for role in FIXED if any(column.name not in source.obs for column in schema.roles.get(role, ()))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"obs has no column .* \(invariant\)", TrifoldWarning)
        return Cells(source, schema, unknown={role: "zero" if role in bare else asked for role, asked in policy.items()}, missing=missing)


def _card(growth: Growth, card: Mapping[str, Any], obs: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's card, with what was mapped, and the combinations that are now known.

    Averages over technique stay those over the reference's categories: new ones count no cell of training.
    """
    out = {**card, "mapped": [*card.get("mapped", ()), dict(about)]}
    if not len(obs):
        return out
    wanted = [*card["seen"]["columns"], *card["seen"]["ranges"]]
    table = obs.assign(**{name: None for name in wanted if name not in obs})
    rows = table[card["seen"]["columns"]].astype(object).drop_duplicates()
    more = [[plain(v) for v in row] for row in rows.itertuples(index=False)]
    ranges = {c: _range(obs, c, span) for c, span in card["seen"]["ranges"].items()}
    known = card["seen"]["values"]
    out["seen"] = {**card["seen"], "values": [*known, *(row for row in more if row not in known)], "ranges": ranges}
    if "counts" in card:
        short = {role: growth.count(role) - len(n) for role, n in card["counts"].items() if role in growth}
        out["counts"] = {role: [*n, *[0] * short.get(role, 0)] for role, n in card["counts"].items()}
    if "combinations" in card:
        columns = card["combinations"]["columns"]
        new = combinations_of(obs.assign(**{name: None for name in columns if name not in obs}), columns)
        out["combinations"] = {"columns": columns, **{k: [*card["combinations"][k], *new[k]] for k in ("values", "counts")}}
    return out


def _range(obs: pd.DataFrame, column: str, span: list[float]) -> list[float]:
    if column not in obs:
        return span
    return [min(span[0], float(obs[column].min())), max(span[1], float(obs[column].max()))]
