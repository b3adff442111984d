"""trifold: flat, invariant and transferable representations of high-dimensional data.

The public names, nothing else. Each is imported when it is first used, so that ``import trifold`` takes no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Schema": "trifold.data",
    "open": "trifold.data",
    "check": "trifold.data",
    "simulate": "trifold.data",
    "Model": "trifold.model",
    "load": "trifold.loading",
    "gamma_vae": "trifold.presets",
    "invae": "trifold.presets",
    "trvae": "trifold.presets",
    "VAE": "trifold.core",
    "Prior": "trifold.core",
    "Likelihood": "trifold.core",
    "Objective": "trifold.terms",
    "Term": "trifold.terms",
    "NLL": "trifold.terms",
    "KL": "trifold.terms",
    "MMD": "trifold.terms",
    "Curvature": "trifold.terms",
    "Isometry": "trifold.terms",
    "ConditionalMMD": "trifold.terms",
    "HSIC": "trifold.terms",
    "Predictor": "trifold.terms",
    "Probe": "trifold.terms",
    "ScoreMatching": "trifold.terms",
    "TotalCorrelation": "trifold.terms",
    "Ramp": "trifold.schedule",
    "migrate": "trifold.migrating",
    "profile": "trifold.profiling",
    "sweep": "trifold.sweeps",
    "verify": "trifold.loading",
    "TrifoldError": "trifold.errors",
    "TrifoldWarning": "trifold.errors",
}
_MODULES = ("evaluate", "geometry", "report")

__all__ = [
    "HSIC",
    "KL",
    "MMD",
    "NLL",
    "VAE",
    "ConditionalMMD",
    "Curvature",
    "Isometry",
    "Likelihood",
    "Model",
    "Objective",
    "Predictor",
    "Prior",
    "Probe",
    "Ramp",
    "Schema",
    "ScoreMatching",
    "Term",
    "TotalCorrelation",
    "TrifoldError",
    "TrifoldWarning",
    "__version__",
    "check",
    "evaluate",
    "gamma_vae",
    "geometry",
    "invae",
    "load",
    "migrate",
    "open",
    "profile",
    "report",
    "simulate",
    "sweep",
    "trvae",
    "verify",
]

if TYPE_CHECKING:
    from trifold import evaluate, geometry, report
    from trifold.core import VAE, Likelihood, Prior
    from trifold.data import Schema, check, open, simulate
    from trifold.errors import TrifoldError, TrifoldWarning
    from trifold.loading import load, verify
    from trifold.migrating import migrate
    from trifold.model import Model
    from trifold.presets.gamma_vae import gamma_vae
    from trifold.presets.invae import invae
    from trifold.presets.trvae import trvae
    from trifold.profiling import profile
    from trifold.schedule import Ramp
    from trifold.sweeps import sweep
    from trifold.terms import (
        HSIC,
        KL,
        MMD,
        NLL,
        ConditionalMMD,
        Curvature,
        Isometry,
        Objective,
        Predictor,
        Probe,
        ScoreMatching,
        Term,
        TotalCorrelation,
    )


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"trifold.{name}")
    raise AttributeError(f"module 'trifold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
