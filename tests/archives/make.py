"""Writes the golden models of this release: ``python tests/archives/make.py``. Run once for a release, by hand; never by a test.

Each folder holds a run, ``model``, and ``inputs.npz``: the cells, their covariates and names, and what the model said of them on the
machine that made it, with one thread. A later release must say the same to 1e-5.
"""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch

import trifold

CELLS, GENES = 48, 16
HERE = Path(__file__).parent / f"v{trifold.__version__.rsplit('.', 1)[0]}"


def data() -> anndata.AnnData:
    """[48, 16] counts, with condition, cell type, donor and dose."""
    rng = np.random.default_rng(0)
    i = np.arange(CELLS)
    x = (rng.poisson(3.0, (CELLS, GENES)) + (i % 2)[:, None] * rng.poisson(2.0, GENES)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "condition": np.array(["control", "stimulated"])[i % 2],
            "cell_type": np.array(["B", "NK", "T"])[i // 2 % 3],
            "donor": np.array(["d1", "d2"])[i // 6 % 2],
            "dose": rng.random(CELLS),
        },
        index=[f"cell_{k}" for k in i],
    )
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"GENE{j}" for j in range(GENES)]))


def models(a: anndata.AnnData) -> dict[str, trifold.Model]:
    """One model of each preset, trained for three epochs."""
    found = {
        "trvae": trifold.trvae(trifold.Schema.of(a, condition="condition", label="cell_type"), latent=3, hidden=(12,)),
        "gamma_vae": trifold.gamma_vae(trifold.Schema.of(a), latent=3, hidden=(12,)),
        "invae": trifold.invae(
            trifold.Schema.of(a, invariant=["cell_type", "dose"], spurious="donor"), invariant=3, spurious=2, hidden=(12,)
        ),
    }
    for model in found.values():
        model.fit(a, epochs=3, batch=16, validation=0.0, seed=1, device="cpu", progress=False)
    return found


def said(name: str, model: trifold.Model, a: anndata.AnnData) -> dict[str, np.ndarray]:
    """What a model says of the cells: latents, and genes under another condition, along the surface, or under another donor."""
    answers = {"latent": model.latent(a)}
    if name == "trvae":
        answers["genes"] = np.asarray(model.predict(a, {"condition": "stimulated"}).X)
    elif name == "invae":
        answers["genes"] = np.asarray(model.predict(a, {"donor": "d2"}).X)
    else:
        answers["curvature"] = model.curvature(a)["extrinsic"].to_numpy()
    return answers


def main() -> None:
    """Write the folders."""
    torch.set_num_threads(1)
    a = data()
    cells = {"x": a.X, "obs_names": a.obs_names.to_numpy(str), "genes": a.var_names.to_numpy(str)}
    cells |= {f"obs/{c}": a.obs[c].to_numpy(str if a.obs[c].dtype == object else float) for c in a.obs}
    for name, model in models(a).items():
        folder = HERE / name
        folder.mkdir(parents=True)
        model.save(folder / "model")
        np.savez_compressed(folder / "inputs.npz", **cells, **{f"said/{k}": v for k, v in said(name, model, a).items()})


if __name__ == "__main__":
    main()
