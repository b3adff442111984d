"""``load``: the model that a run folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trifold import store
from trifold.core import VAE
from trifold.data import Schema
from trifold.errors import FormatError, listing
from trifold.model import Model
from trifold.spec import from_spec
from trifold.terms import Objective
from trifold.train import Plan


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
    return model.adopt(parts)


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
