"""The study that workers share: where Optuna keeps it, how it draws, which trials count, what all must agree in."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.errors import SpecError
from trifold.provenance import plain
from trifold.sweeps.space import Space

if TYPE_CHECKING:
    import pandas as pd

_STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
_HEARTBEAT = 60  # seconds between two signs of life of a trial; one that has given none for twice as long counts as not run
_ATTEMPTS = 5  # at opening a study: workers that begin together all make its tables, and one is first
_RACE = re.compile("already exist|locked|unique|duplicate", re.IGNORECASE)
_EARLY = 5  # trials, and epochs of each, before any is cut short


def the_optuna() -> Any:
    """The package.

    Raises:
        SpecError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SpecError("A sweep needs Optuna, which is not installed. Type: pip install 'trifold[sweep]'") from None
    return optuna


@contextmanager
def study_of(optuna: Any, storage: str | None, name: str | None, seed: int, *, prune: bool) -> Iterator[Any]:
    """The study of a name, made if it is not there; its database is closed at the end of the block.

    Args:
        optuna: The package.
        storage: As of :func:`trifold.sweeps.sweep`.
        name: Of the study.
        seed: Of the draws.
        prune: Whether trials are cut short.

    Raises:
        SpecError: A storage without a name or the other way round, or one that cannot be used.
    """
    if (storage is None) != (name is None):
        raise SpecError(f"storage and study go together; found storage={storage!r} and study={name!r}. Pass both, or none of them.")
    from sqlalchemy.exc import SQLAlchemyError

    shown = re.sub(r"//[^@/]*@", "//…@", storage or "")
    for attempt in range(_ATTEMPTS):
        try:
            kept = _storage(optuna, storage)
            study = optuna.create_study(
                storage=kept,
                study_name=name,
                load_if_exists=True,
                direction="minimize",
                sampler=_sampler(optuna, seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_EARLY, n_warmup_steps=_EARLY) if prune else optuna.pruners.NopPruner(),
            )
            break
        except (SQLAlchemyError, OSError, ImportError, ValueError, optuna.exceptions.OptunaError) as error:
            if attempt + 1 < _ATTEMPTS and _RACE.search(str(error)):
                time.sleep(0.5 + attempt)
                continue
            said = str(error).splitlines()[0].replace(storage or " ", shown)
            raise SpecError(
                f"The storage {shown!r} cannot be used: {said.rstrip('. ')}. "
                "Pass storage='sqlite:///study.db', a database's URL, or 'journal:///folder/study.log'."
            ) from error
    try:
        yield study
    finally:
        if hasattr(kept, "engine"):
            kept.remove_session()
            kept.engine.dispose()


def _storage(optuna: Any, storage: str | None) -> Any:
    if storage is None:
        return None
    if storage.startswith("journal:///"):
        path = storage.removeprefix("journal://")
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(path))
    return optuna.storages.RDBStorage(storage, heartbeat_interval=_HEARTBEAT)


def _sampler(optuna: Any, seed: int) -> Any:
    class ByNumber(optuna.samplers.BaseSampler):  # type: ignore[misc,name-defined]
        """Tree-structured Parzen estimators, seeded by the number of each trial: workers with one seed do not repeat each other."""

        def before_trial(self, study: Any, trial: Any) -> None:
            own = int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0])
            self.inner = optuna.samplers.TPESampler(seed=own, constant_liar=True)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

    return ByNumber()


def counted(optuna: Any, study: Any) -> int:
    """Trials that have run or are running; not those whose worker died."""
    optuna.storages.fail_stale_trials(study)
    return sum(trial.state.name != "FAIL" or "reason" in trial.user_attrs for trial in study.get_trials(deepcopy=False))


def agree(study: Any, about: str, facts: dict[str, Any]) -> None:
    """Facts of the study: written by the first who knows them, and those of everyone after."""
    there = study.user_attrs.get(about)
    if there is None:
        if about == "settings" and study.get_trials(deepcopy=False):
            raise SpecError(f"The study {study.study_name!r} holds trials that trifold did not make. Pass study= another name.")
        study.set_user_attr(about, facts)
        return
    for name, value in facts.items():
        if there.get(name) != plain(value):
            found, hint = there.get(name), "Choose another study."
            if name == "weights of the loss":
                hint = "Name terms instead: metric='elbo', or 'nll+kl'."
            raise SpecError(f"Trials of study {study.study_name!r} must agree in {name}; found {value!r}, and earlier {found!r}. {hint}")


def table_of(study: Any, space: Space) -> pd.DataFrame:
    """One row per trial."""
    import pandas as pd

    rows = []
    for trial in study.get_trials(deepcopy=False):
        ended = trial.datetime_complete
        rows.append(
            {
                "number": trial.number,
                "state": _STATES[trial.state.name],
                "value": math.nan if trial.values is None else trial.values[0],
                "epochs": len(trial.intermediate_values),
                "seconds": (ended - trial.datetime_start).total_seconds() if ended and trial.datetime_start else math.nan,
                **{name: space[name].read(trial.params[name]) if name in trial.params else None for name in space},
                "reason": trial.user_attrs.get("reason", ""),
            }
        )
    return pd.DataFrame(rows, columns=["number", "state", "value", "epochs", "seconds", *space, "reason"])


@contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Optuna says nothing inside: neither of each trial, nor that a feature is new."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
