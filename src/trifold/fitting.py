"""``fitted``: from data to a trained model, in this process or as one of several."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from trifold import store
from trifold.core import VAE, start
from trifold.data import Cells, Resident, Schema, batches, fits, open, samplers, splits
from trifold.errors import TrainingError
from trifold.extremes import worst
from trifold.folders import checkpoints_of
from trifold.inference import chunks, moments
from trifold.provenance import card_of, fingerprint, plain, seen_in
from trifold.records import Batch, Progress, Report
from trifold.schedule import weight_now
from trifold.settle import settle
from trifold.share import Share
from trifold.spec import to_spec
from trifold.technique import Axes
from trifold.terms import KL, Objective, ScoreMatching, Term
from trifold.train import Checkpoints, History, Plan, fit, launch, progress_bar, share_of

_START = 20_000  # cells from which the values that training begins with are taken

Sampler = samplers.Shuffled | samplers.Balanced


@dataclass(frozen=True)
class Run:
    """What ``fit`` is told beside data and plan.

    Args:
        hold_out: column -> value or list of values of cells that are never seen.
        seed: Of the split, the minibatches, dropout and the noise of z.
        device, devices, num_nodes: Where training runs.
        out: Run folder.
        resume: Go on from the newest checkpoint.
        every, minutes: Steps, and minutes, between checkpoints.
        progress: Show a progress bar when a person is looking.
        on_epoch: Called with each epoch's row of the history.
    """

    hold_out: Mapping[str, Any] | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    out: Path | None = None
    resume: bool = False
    every: int | None = None
    minutes: float | None = None
    progress: bool = True
    on_epoch: Callable[[dict[str, float]], None] | None = None


@dataclass(frozen=True)
class Fitted:
    """What training gives beside weights.

    Args:
        history: One row per epoch.
        card: Facts of the run.
        axes: Of rectified coordinates, or None.
        writes: Whether this process is the one that writes.
        finished: Parts of the run folder, where ``resume`` found the run finished; nothing was trained.
    """

    history: History
    card: dict[str, Any]
    axes: Axes | None
    writes: bool
    finished: dict[str, Any] | None = None


def fitted(schema: Schema, vae: VAE, objective: Objective, data: Any, plan: Plan, run: Run, *, preset: str | None, begun: bool) -> Fitted:
    """Train in place.

    Args:
        schema, vae, objective, plan, run: What is trained, and how.
        data: The cells.
        preset: Its name, for the card.
        begun: Whether the weights are trained ones already, with which training goes on.
    """
    fabric = launch(run.device, plan.precision, devices=run.devices, nodes=run.num_nodes)
    share = share_of(fabric)
    cells = Cells(open(data, x=schema.x), schema)
    kept = np.ones(cells.n, dtype=bool)
    if run.hold_out:
        kept &= ~splits.held_out(cells.obs, run.hold_out)
    train, watched = _split(cells, np.flatnonzero(kept), plan, run.seed)
    sampler = _sampler(cells, train, plan, run.seed, parts=share.world)
    count = plan.epochs_for(len(train))
    network = nn.ModuleDict({"vae": vae, "objective": objective})
    data_print = fingerprint(schema.genes, cells.names, cells.library)
    about = _about(vae, objective, plan, run, data=data_print, epochs=count, processes=share.world)
    checkpoints = None
    if run.out is not None and (run.every is not None or run.minutes is not None):
        checkpoints = Checkpoints(checkpoints_of(run.out), every=run.every, minutes=run.minutes, about=about, write=share.rank == 0)
        if run.resume and not checkpoints.there and (run.out / store.MANIFEST).exists():
            finished = store.read_run(run.out)
            if isinstance(finished["card"], dict) and finished["card"].get("about") == about:
                return Fitted(History(), {}, None, share.rank == 0, finished)
    if not begun and not (run.resume and checkpoints is not None and checkpoints.there):
        some = train[:: -(-len(train) // _START)]
        start(vae, *moments(cells, some), lambda: chunks(cells, some))
    held = Resident(cells, fabric.device) if fabric.device.type == "cuda" and fits(cells, fabric.device) else None
    with progress_bar(count, show=run.progress and share.rank == 0) as show, _blamed(vae, cells, sampler, share):
        history = fit(
            network,
            Forward(vae, objective),
            lambda epoch, first: _minibatches(cells, held, sampler, share, epoch, first),
            plan,
            steps=sampler.steps,
            epochs=count,
            cells=len(train),
            validation=(lambda: chunks(cells, watched)) if len(watched) else None,
            watch=None if vae.prior.normalised else _watched(vae, objective),
            seed=run.seed,
            fabric=fabric,
            report=_both(show, run.on_epoch),
            checkpoints=checkpoints,
            resume=run.resume,
        )
    settled, axes = settle(vae, objective, cells, train, watched, seed=run.seed)
    card = card_of(
        preset=preset,
        about=about,
        **settled,
        plan=to_spec(plan),
        seed=run.seed,
        hold_out=plain(run.hold_out or {}),
        cells={"trained": len(train), "watched": len(watched), "held_out": int(cells.n - kept.sum())},
        data=data_print,
        seen=seen_in(cells.obs.iloc[np.concatenate([train, watched])], [*covariates_of(schema), *(run.hold_out or {})]),
    )
    return Fitted(history, card, axes, share.rank == 0)


def clear(out: Path) -> None:
    """Remove the checkpoints of a run that is written."""
    shutil.rmtree(checkpoints_of(out), ignore_errors=True)


def covariates_of(schema: Schema) -> list[str]:
    """Columns of the roles that a model is told, each once."""
    return list(dict.fromkeys(column.name for role in schema.roles if role != "label" for column in schema.roles[role]))


class Forward:
    """One training step's forward pass and objective.

    Args:
        vae, objective: Of the model.
    """

    def __init__(self, vae: VAE, objective: Objective):
        self.vae = vae
        self.objective = objective

    def __call__(self, batch: Batch, progress: Progress) -> Report:
        """The objective's report."""
        return self.objective(self.vae(batch, progress))  # type: ignore[no-any-return]


def _minibatches(cells: Cells, held: Resident | None, sampler: Sampler, share: Share, epoch: int, first: int) -> Iterable[Batch]:
    """This process's share of each minibatch, of one size in all processes: at most ``world - 1`` cells are left out of each.

    In memory, how many processes there are does not change what a minibatch holds; on disk, each process reads blocks of its own.
    """
    own = _own(sampler, share, epoch)[first:]
    return batches(cells, own) if held is None else held.epoch(own)


def _own(sampler: Sampler, share: Share, epoch: int) -> Sequence[np.ndarray]:
    """Positions of the cells of this process's share of each minibatch."""
    own = sampler.share(epoch, share.rank)
    return own if share.alone else [mine[: whole // share.world] for mine, whole in zip(own, sampler.sizes, strict=True)]


@contextmanager
def _blamed(vae: VAE, cells: Cells, sampler: Sampler, share: Share) -> Iterator[None]:
    """Where training fails at a step, its error also names the cells and genes of that step's minibatch that fit worst."""
    try:
        yield
    except TrainingError as error:
        if error.step is None or error.term == "validation loss":
            raise
        said = ""
        with suppress(Exception):  # cells that cannot be read again are no reason to lose the first error
            index = _own(sampler, share, error.step // sampler.steps)[error.step % sampler.steps]
            said = " " + worst(vae, cells.batch(index), cells.names[index], cells.schema.genes)
        raise TrainingError(f"{error}{said}", step=error.step, term=error.term) from None


def _both(show: Callable[[dict[str, float]], None] | None, then: Callable[[dict[str, float]], None] | None) -> Any:
    if show is None or then is None:
        return show or then

    def report(row: dict[str, float]) -> None:
        show(row)
        then(row)

    return report


def _about(vae: VAE, objective: Objective, plan: Plan, run: Run, **more: Any) -> dict[str, Any]:
    """What must be the same when training goes on."""
    spec = json.dumps(to_spec({"vae": vae, "objective": objective}), sort_keys=True)
    model = hashlib.sha256(spec.encode()).hexdigest()
    return {**asdict(plan), **more, "model": model, "seed": run.seed, "hold_out": plain(run.hold_out or {})}


def _split(cells: Cells, index: np.ndarray, plan: Plan, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if plan.validation == 0:
        return index, index[:0]
    strata = next(iter(cells.code.values()))[index] if cells.code else np.zeros(len(index), dtype=np.int64)
    train, watched = splits.by_fraction(len(index), plan.validation, seed=seed, stratify=strata)
    return index[train], index[watched]


def _sampler(cells: Cells, index: np.ndarray, plan: Plan, seed: int, *, parts: int) -> Sampler:
    how: dict[str, Any] = {"seed": seed, "block": cells.block, "window": cells.window, "parts": parts}
    if plan.balance is None or len(np.unique(cells.code[plan.balance][index])) < 2:
        return samplers.Shuffled(index, plan.batch, **how)
    return samplers.Balanced(index, cells.code[plan.balance][index], plan.batch, **how)


def _watched(vae: VAE, objective: Objective) -> dict[str, float]:
    """Term -> its last weight, of the terms whose values mean something without the prior's constant."""
    blocks = getattr(vae.prior, "blocks", {})

    def known(term: Term) -> bool:
        if isinstance(term, KL):
            return bool(blocks[term.block].normalised) if term.block in blocks else False
        return not isinstance(term, ScoreMatching)

    return {name: weight_now(objective.weights[name], Progress.done()) for name, term in objective.terms.items() if known(term)}
