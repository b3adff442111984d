"""``sweep``: many trainings, each a trial of other arguments, by Optuna; any number of machines may work on one study."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trifold.errors import SpecError, TrainingError, listing, suggest
from trifold.model import Model
from trifold.provenance import plain
from trifold.sweeps.metric import columns_of, comparable
from trifold.sweeps.space import Space, space_of
from trifold.sweeps.study import agree, counted, quiet, study_of, table_of, the_optuna

if TYPE_CHECKING:
    import pandas as pd

_OURS = ("data", "out", "resume", "progress", "on_epoch", "devices", "num_nodes", "checkpoint_every", "checkpoint_minutes")
_REASONS = (TrainingError, torch.cuda.OutOfMemoryError)  # for which a trial may fail while the study goes on


@dataclass(frozen=True)
class Sweep:
    """What a study has found.

    Args:
        metric: What was compared, lower is better.
        value: The best trial's. Nats per cell for the ELBO.
        number: Of the best trial.
        model: Keyword arguments of the best trial for ``build``.
        fit: Keyword arguments of the best trial for ``Model.fit``, those that were not chosen among them.
        trials: One row per trial: ``number``, ``state`` (``finished``, ``pruned``, ``failed``, ``running``), ``value``, ``epochs``,
            ``seconds``, a column for each name of the space, and ``reason`` why it failed.
    """

    metric: str
    value: float
    number: int
    model: dict[str, Any]
    fit: dict[str, Any]
    trials: pd.DataFrame


def sweep(
    build: Callable[..., Model],
    data: Any,
    space: Mapping[str, str | Sequence[Any]],
    *,
    trials: int = 50,
    fit: Mapping[str, Any] | None = None,
    metric: str = "elbo",
    storage: str | None = None,
    study: str | None = None,
    prune: bool = True,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Sweep:
    """Choose arguments of a model and of its training by the cells that training watches. Held-out cells are never looked at.

    Every trial trains on the same cells and is scored on the same others: ``validation`` of them (0.1 if ``fit`` does not say), drawn with
    the seed of ``fit``, none of which match ``hold_out``. The score is that of the weights which training keeps: the best epoch with
    ``patience``, else the last. A trial is cut short when after some epochs it is worse than the median of earlier trials was then. One
    whose training fails, or that needs more memory than there is, is kept as failed with its reason, and the study goes on.

    Which metric: a loss whose weights are chosen is a different loss in each trial, and cannot be compared. ``"elbo"`` is minus the
    evidence lower bound, -log p(x | z, c) + KL with weights of 1, whatever weights the trial trains with. It says how well cells are
    described and nothing else: by it, the weight of a term that costs likelihood, such as MMD, goes to zero. Choose such a weight by a
    metric that holds the term at a weight of your own: ``"nll+kl+100*mmd"``. ``"loss"`` is refused once its weights differ between trials.

    Args:
        build: Makes an untrained model from keyword arguments: ``functools.partial(tri.trvae, schema)``.
        data: Cells; best opened once: ``tri.open("atlas.h5ad")``.
        space: Name -> range: ``{"latent": "8..40", "fit.lr": "1e-4..1e-2:log", "likelihood": "negative_binomial|poisson"}``, or a list
            of values. A name is an argument of ``build`` or of ``fit``; ``model.latent`` and ``fit.lr`` say of which.
        trials: Trials of the study in all, those of other workers and of earlier calls among them. Workers that end together may overshoot
            by one each.
        fit: Other keyword arguments of ``Model.fit``: ``{"hold_out": {...}, "epochs": 50}``.
        metric: ``"elbo"``, ``"loss"``, or a sum of the objective's terms, ``"nll+kl+100*mmd"``. Lower is better.
        storage: Where the study is kept, so that others can work on it too: ``"sqlite:///study.db"`` (one machine), a database server's
            URL, or ``"journal:///shared/study.log"`` (a file that several machines see). None: in memory.
        study: Its name there.
        prune: Cut hopeless trials short, from the sixth trial and epoch on.
        seed: Of the choices, with the number of the trial: workers do not repeat each other.
        report: Called after each trial of this worker with its row of the table, and ``best``, the lowest value so far.

    Returns:
        The best finished trial and the table of all.

    Raises:
        SpecError: A space, metric, storage or argument that cannot be used, Optuna absent, or a study of other data or settings.
        TrainingError: No trial has finished.
        DataError, SchemaError: The data do not fit the model.
    """
    optuna = the_optuna()
    if trials < 1:
        raise SpecError(f"sweep needs trials >= 1; found {trials}. Pass trials=50.")
    ranges = space_of(space, build)
    settings = _settings(fit)
    with quiet(optuna), study_of(optuna, storage, study, seed, prune=prune) as held:
        told = {name: plain(settings.get(name)) for name in ("hold_out", "validation", "seed")}
        agree(held, "settings", {"metric": metric, "space": {n: str(r) for n, r in ranges.items()}, **told})

        def trial_of(trial: Any) -> float:
            return _trial(trial, build, data, ranges, settings, metric)

        def tell(held: Any, trial: Any) -> None:
            if report is not None:
                table = table_of(held, ranges).set_index("number", drop=False)
                report({**table.loc[trial.number].to_dict(), "best": float(table["value"][table["state"] == "finished"].min())})

        while counted(optuna, held) < trials:
            held.optimize(trial_of, n_trials=1, catch=_REASONS, callbacks=[tell])
        return _found(held, ranges, settings, metric)


def _trial(trial: Any, build: Callable[..., Model], data: Any, space: Space, settings: Mapping[str, Any], metric: str) -> float:
    import optuna

    chosen = {name: found.draw(trial, name) for name, found in space.items()}
    rows: list[dict[str, float]] = []
    try:
        model = build(**_part(chosen, "model"))
        columns = columns_of(metric, model)
        agree(trial.study, "objective", comparable(model, metric))

        def each(row: dict[str, float]) -> None:
            rows.append(row)
            trial.report(_value(row, columns), step=int(row["epoch"]))
            if trial.should_prune():
                raise optuna.TrialPruned

        model.fit(data, **{**settings, **_part(chosen, "fit")}, progress=False, on_epoch=each)
        agree(trial.study, "data", {"fingerprint": model.card["data"], "cells": model.card["cells"]})
        return _value(_kept(rows, model, settings, chosen), columns)
    except _REASONS as error:
        trial.set_user_attr("reason", str(error))
        raise
    except SystemExit:
        trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)  # without a reason: another worker runs it anew
        raise


def _kept(rows: list[dict[str, float]], model: Model, settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, float]:
    """The epoch whose weights training kept."""
    patience = chosen.get("fit.patience", settings.get("patience", model.plan.patience))
    watched = "validation/watched" if "validation/watched" in rows[-1] else "validation/loss"
    return rows[-1] if patience is None else min(rows, key=lambda row: row[watched])


def _value(row: Mapping[str, float], columns: Mapping[str, float]) -> float:
    return sum(weight * row[name] for name, weight in columns.items())


def _part(chosen: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in chosen.items() if name.startswith(f"{table}.")}


def _settings(fit: Mapping[str, Any] | None) -> dict[str, Any]:
    known = [name for name in inspect.signature(Model.fit).parameters if name not in ("self", *_OURS)]
    for name in fit or {}:
        if name not in known:
            why = " Each trial runs in one process and is not kept; start more workers instead." if name in _OURS else suggest(name, known)
            raise SpecError(f"fit= of a sweep has no {name!r}.{why} It has: {listing(known, 30)}.")
    out = {"validation": 0.1, "seed": 0, **(fit or {})}
    if not out["validation"] or not 0 < out["validation"] < 1:
        raise SpecError(f"A sweep needs cells to watch: validation in (0, 1); found {out['validation']!r}. Leave it out for 0.1.")
    return out


def _found(study: Any, space: Space, settings: Mapping[str, Any], metric: str) -> Sweep:
    table = table_of(study, space)
    done = table[table["state"] == "finished"]
    if done.empty:
        failed = [reason for reason in table["reason"] if reason]
        raise TrainingError(
            f"No trial of the study has finished: {len(failed)} of {len(table)} failed"
            + (f", the last because: {failed[-1]}" if failed else ", or others are still running.")
        )
    best = done.loc[done["value"].idxmin()]
    chosen = {name: space[name].read(study.trials[int(best["number"])].params[name]) for name in space}
    return Sweep(metric, float(best["value"]), int(best["number"]), _part(chosen, "model"), {**settings, **_part(chosen, "fit")}, table)
