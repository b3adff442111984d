# SPDX-License-Identifier: BSD-3-Clause
"""The study of the scorecard's faults, its scVI model, and how an outcome is judged."""

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi.model import SCVI

logging.getLogger("scvi").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

CELLS, GENES = 60, 20
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "max_epochs": 2, "batch_size": 16}
Answer = tuple[int, str]


# -- the study and its model ---------------------------------------------------------------------------------------------------------


def counts(seed: int = 0) -> np.ndarray:
    """[60, 20] float32 counts, no empty cell or gene."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, (CELLS, GENES)) * (rng.random((CELLS, GENES)) < 0.3)
    x[:, 0] += 1
    x[0] += 1
    return x.astype(np.float32)


def study(x: Any = None) -> anndata.AnnData:
    """The study of tests/faults: counts in a layer, condition, cell type, donor and dose in obs."""
    i = np.arange(CELLS)
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.array(["control", "stimulated"])[i % 2]),
            "cell_type": pd.Categorical(np.array(["B", "NK", "T"])[(i // 2) % 3]),
            "donor": np.array(["d1", "d2"])[(i // 6) % 2],
            "dose": i.astype(float),
        },
        index=[f"cell_{k}" for k in i],
    )
    a = anndata.AnnData(sp.csr_matrix(counts()), obs=obs, var=pd.DataFrame(index=[f"GENE{j}" for j in range(GENES)]))
    a.layers["counts"] = sp.csr_matrix(counts()) if x is None else x
    return a


def with_value(value: float) -> anndata.AnnData:
    x = counts()
    x[17, 3] = value
    return study(sp.csr_matrix(x))


def untrained(a: anndata.AnnData, *, layer: str | None = "counts", setup: dict | None = None, **options: Any) -> SCVI:
    """Set-up and the model."""
    SCVI.setup_anndata(a, **{"layer": layer, "batch_key": "condition", **(setup or {})})
    return SCVI(a, n_latent=3, n_hidden=8, **options)


def fitted(a: anndata.AnnData, *, train: dict | None = None, **options: Any) -> SCVI:
    """Set-up and two epochs."""
    model = untrained(a, **options)
    model.train(**{**QUIET, **(train or {})})
    return model


def finite_weights(model: SCVI) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.module.state_dict().values() if t.is_floating_point())


def finite(model: SCVI, a: anndata.AnnData | None = None) -> bool:
    return finite_weights(model) and bool(np.isfinite(model.get_latent_representation(a)).all())


# -- how an outcome is judged --------------------------------------------------------------------------------------------------------


def _training(error: BaseException) -> bool:
    """Whether an error came from within a training step."""
    names, tb = set(), error.__traceback__
    while tb is not None:
        names.add(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    return bool(names & {"training_step", "_generic_forward", "inference", "generative"})


def refused(act: Callable[[], Any], *words: str, before_training: bool = True) -> Answer:
    """1 if an error comes, not in the middle of training, whose message holds every word (a regular expression)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            act()
        except BaseException as error:
            text = " ".join(str(error).split())
            late = before_training and _training(error)
            lacking = [w for w in words if not re.search(w, text)]
            good = not late and not lacking
            why = "" if good else " [in training]" if late else f" [does not name {lacking[0]}]"
            return int(good), f"{type(error).__name__}: {text[:160]}{why}"
    return 0, "accepted silently" if not _ours(said) else f"accepted with a warning: {_ours(said)[0][:120]}"


def warned(act: Callable[[], Any], *words: str) -> Answer:
    """1 if it works and a warning holds every word."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        act()
    for text in _ours(said):
        if all(re.search(w, text) for w in words):
            return 1, f"warning: {text[:160]}"
    return 0, "silent" if not _ours(said) else f"another warning: {_ours(said)[0][:120]}"


def works(good: bool, what: str) -> Answer:
    return int(good), what if good else f"not so: {what}"


def _ours(said: list[Any]) -> list[str]:
    common = "num_workers|Deprecat|logger|epoch|pin_memory|checkpoint"
    return [" ".join(str(w.message).split()) for w in said if w.category is UserWarning and not re.search(common, str(w.message))]
