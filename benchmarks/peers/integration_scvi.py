# SPDX-License-Identifier: BSD-3-Clause
"""Peers: scVI (Lopez et al. 2018), scANVI (Xu et al. 2021) and sysVI (Hrovatin et al. 2025), of scvi-tools.

Reads a file of benchmarks/integration_data.py: raw counts, obs columns `batch` and `given`. Settings are those of the authors' tutorials;
see README.md. scANVI starts from a trained scVI, which sees no labels: `--scvi FOLDER` keeps it there, or takes it from there if an earlier
run with the same counts and seed has left it. `seconds` and `cpu_seconds` count its training either way.

    python integration_scvi.py --data FILE.h5ad --method scanvi --labels given --seed 1 --out OUT.npz
"""

import os

for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(key, "1")

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import scanpy as sc  # noqa: E402
import torch  # noqa: E402

UNKNOWN = "unknown"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def scvi(data: ad.AnnData, epochs: int | None, folder: Path | None) -> tuple[Any, list[float]]:
    """The tutorial's scVI. Epochs by the package's rule, at most 400, if not given. And what was spent before, if it is an earlier one."""
    from scvi.model import SCVI

    if folder and (folder / "spent.json").exists():
        return SCVI.load(folder, adata=data, accelerator="cpu"), json.loads((folder / "spent.json").read_text())
    start = spent()
    SCVI.setup_anndata(data, batch_key="batch")
    model = SCVI(data, n_layers=2, n_latent=30, gene_likelihood="nb")
    model.train(max_epochs=epochs, **QUIET)
    if folder:
        model.save(folder, overwrite=True)
        (folder / "spent.json").write_text(json.dumps([b - a for a, b in zip(start, spent(), strict=True)]))
    return model, [0.0, 0.0]


def scanvi(data: ad.AnnData, epochs: int | None, folder: Path | None) -> tuple[Any, list[float]]:
    """The tutorial's scANVI: from a trained scVI, 20 epochs, 100 cells of each label in an epoch's classification."""
    from scvi.model import SCANVI

    start, before = scvi(data, epochs, folder)
    model = SCANVI.from_scvi_model(start, adata=data, labels_key="given", unlabeled_category=UNKNOWN)
    model.train(max_epochs=20, n_samples_per_label=100, **QUIET)
    return model, before


def sysvi(data: ad.AnnData, epochs: int | None, folder: Path | None) -> tuple[Any, list[float]]:
    """The tutorial's sysVI: log-normalised values, prior of 5 components, weight of latent cycle consistency 5, 200 epochs."""
    from scvi.external import SysVI

    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    SysVI.setup_anndata(data, batch_key="batch")
    model = SysVI(data)
    plan = {"z_distance_cycle_weight": 5}
    model.train(max_epochs=epochs or 200, check_val_every_n_epoch=1, plan_kwargs=plan, **QUIET)
    return model, [0.0, 0.0]


def spent() -> list[float]:
    """Seconds by the wall and of this process."""
    return [time.perf_counter(), time.process_time()]


METHODS = {"scvi": scvi, "scanvi": scanvi, "sysvi": sysvi}


def main() -> None:
    """Train and write OUT.npz."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--method", choices=METHODS, required=True)
    p.add_argument("--labels", choices=("given", "none"), default="none")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, help="of scVI (also below scANVI) or sysVI, instead of the authors' number")
    p.add_argument("--scvi", type=Path, help="where the scVI is kept")
    a = p.parse_args()
    if (a.method == "scanvi") != (a.labels == "given"):
        p.error(f"{a.method} needs --labels {'given' if a.method == 'scanvi' else 'none'}")

    warnings.simplefilter("ignore")
    import scvi as package

    package.settings.verbosity = logging.ERROR
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    package.settings.seed = a.seed

    full = ad.read_h5ad(a.data)
    data = ad.AnnData(full.X, obs=full.obs[["batch", "given"]].copy(), var=full.var[[]])  # the true labels stay outside
    start = spent()
    model, before = METHODS[a.method](data, a.epochs, a.scvi)
    given = {} if a.method == "sysvi" else {"give_mean": True}
    found = {"latent": np.asarray(model.get_latent_representation(**given), dtype=np.float32)}
    if a.method == "scanvi":
        soft = model.predict(soft=True)
        found |= {
            "classes": soft.columns.to_numpy(str),
            "probability": soft.to_numpy(np.float32),
            "predicted": np.asarray(model.predict(), dtype=str),
        }
    seconds, cpu_seconds = (now - then + c for now, then, c in zip(spent(), start, before, strict=True))

    names = ("scvi-tools", "torch", "lightning", "scanpy", "anndata", "numpy")
    np.savez_compressed(
        a.out,
        **found,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        epochs_run=len(next(iter(model.history.values()))),
        versions=json.dumps({"python": platform.python_version()} | {n: version(n) for n in names}),
    )


if __name__ == "__main__":
    main()
