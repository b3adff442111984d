"""``load``: the model that a run folder holds; ``verify``: what is wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trifold import folders, store
from trifold.core import VAE
from trifold.data import Schema
from trifold.errors import COPY, FormatError, TrifoldError, listing
from trifold.model import Model
from trifold.spec import from_spec
from trifold.terms import Objective
from trifold.train import Plan, checkpoint


def load(path: str | Path, *, trust: Sequence[str] = ()) -> Model:
    """The model that ``Model.save`` or ``fit(out=...)`` wrote.

    Names, shapes and dtypes of the weights are compared with the specification before memory is taken for it.

    Args:
        path: Run folder.
        trust: Classes outside trifold that may be imported, ``"mylab.cycle:Cycle"``.

    Raises:
        FormatError, CorruptModelError: The folder is not a run, is damaged, or names a class that is not trusted.
    """
    parts = store.read_run(path)
    for found in _misfits(parts, path, trust):
        raise FormatError(found)
    return _built(parts, path, trust).adopt(parts)


def verify(path: str | Path, *, trust: Sequence[str] = ()) -> list[str]:
    """What is wrong with a run folder, or with a folder of checkpoints (``NAME.checkpoint``).

    Of every file the size and SHA-256, of a run that its model can be built and that the weights fit it and are finite; files that do not
    belong there; what interrupted writes left.

    Args:
        path: The folder.
        trust: As for :func:`load`.

    Returns:
        One sentence a fault, with the name of the file; none: the folder is sound, and :func:`load` or ``fit(resume=True)`` reads it.
    """
    path = Path(path)
    if path.name.endswith(".checkpoint") or any(path.glob("step-*")):
        return checkpoint.faults_in(path)
    found = folders.faults(path, store.FILES, what=store.WHAT)
    if not (path / folders.MANIFEST).exists():
        return found  # load() would read NAME.previous
    try:
        parts = store.read_run(path)
        weights = [*_misfits(parts, path, trust), *store.not_finite(parts["weights"])]
        if not weights:
            _built(parts, path, trust).adopt(parts)
        return found + weights
    except TrifoldError as error:
        return found if str(error) in found else [*found, str(error)]


def _misfits(parts: dict[str, Any], path: Any, trust: Sequence[str]) -> list[str]:
    """How the weights do not fit the specification, found without memory for it; a trusted class may need real values to be built."""
    if trust:
        return []
    with torch.device("meta"):
        network = _built(parts, path, trust).network
    return store.misfits(network, {name: t for name, t in parts["weights"].items() if not name.startswith("axes.")})


def _built(parts: dict[str, Any], path: Any, trust: Sequence[str]) -> Model:
    """The model of a run folder, without its weights."""
    spec = parts["spec"]
    if not isinstance(spec, dict) or sorted(spec) != ["objective", "plan", "preset", "vae"]:
        found = listing(spec, 10) if isinstance(spec, dict) else type(spec).__name__
        raise FormatError(f"spec.json of {str(path)!r} must hold vae, objective, plan and preset; found {found}. {COPY}")
    built = from_spec(spec, trust=trust)
    for name, kind in {"vae": VAE, "objective": Objective, "plan": Plan, "preset": str | None}.items():
        if not isinstance(built[name], kind):
            found = type(built[name]).__name__
            raise FormatError(f"{name!r} in spec.json of {str(path)!r} must be of type {_named(kind)}; found {found}. {COPY}")
    return Model(Schema.from_spec(parts["schema"]), built["vae"], built["objective"], plan=built["plan"], preset=built["preset"])


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
