# SPDX-License-Identifier: BSD-3-Clause
"""Peer: inVAE (Aliee et al. 2023) as its authors publish it: FinVAE (factorised prior) and NFinVAE (not factorised), of the package inVAE.

Reads a file of benchmarks/integration_data.py: raw counts, obs columns `batch` and `given`. With labels the package is used as its page
says: trained on the labelled cells, and the others labelled by its own classifier, from latents that are found by search and descent.

    python integration_invae.py --data FILE.h5ad --method finvae --labels given --seed 1 --out OUT.npz
"""

import os

for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(key, "1")

import argparse  # noqa: E402
import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from importlib.metadata import version  # noqa: E402

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

UNKNOWN = "unknown"


def main() -> None:
    """Train and write OUT.npz."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--method", choices=("finvae", "nfinvae"), required=True)
    p.add_argument("--labels", choices=("given", "none"), default="none")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, default=500)
    p.add_argument("--no-classifier", action="store_true", help="only the latent; the search takes a second for some ten cells")
    a = p.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from inVAE import FinVAE, NFinVAE

    full = ad.read_h5ad(a.data)
    obs = full.obs[["batch", "given"]].astype(str).astype(object)  # the true labels stay outside
    data = ad.AnnData(full.X.toarray().astype(np.float32), obs=obs, var=full.var[[]])
    labelled = (obs["given"] != UNKNOWN).to_numpy()
    train = data[labelled].copy() if a.labels == "given" else data

    times = [time.perf_counter(), time.process_time()]
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    kind = {"finvae": FinVAE, "nfinvae": NFinVAE}[a.method]
    invariant = {"cont": [], "cat": ["given"] if a.labels == "given" else []}
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        model = kind(train, inv_covar_keys=invariant, spur_covar_keys={"cont": [], "cat": ["batch"]})
        model.train(n_epochs=a.epochs, lr_train=0.001, weight_decay=0.0001)
        found["latent"] = latent(model, data)
        if a.labels == "given" and not a.no_classifier:
            found["predicted"] = obs["given"].to_numpy(str).copy()
            found["predicted"][~labelled] = classified(model, train, data[~labelled].copy(), a.seed)
    seconds, cpu_seconds = (now - then for now, then in zip([time.perf_counter(), time.process_time()], times, strict=True))

    names = ("inVAE", "torch", "scanpy", "anndata", "numpy", "pandas", "scikit-learn")
    np.savez_compressed(
        a.out,
        **found,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        epochs_run=a.epochs,
        versions=json.dumps({"python": platform.python_version()} | {n: version(n) for n in names}),
    )


def latent(model, data: ad.AnnData) -> np.ndarray:
    """Means of the invariant latent. The encoder reads the given label and the batch: those it has not seen in training are zeros to it."""
    return np.asarray(model.get_latent_representation(data, latent_type="invariant"), dtype=np.float32)


def classified(model, train: ad.AnnData, query: ad.AnnData, seed: int) -> np.ndarray:
    """Labels of unlabelled cells by the package's classifier. The labels that its functions ask for are dummies: they only count hits."""
    some = train[np.random.default_rng(seed).permutation(train.n_obs)[:20]].copy()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    torch.optim.lr_scheduler.ReduceLROnPlateau = lambda *args, verbose=None, **named: plateau(*args, **named)  # torch has dropped `verbose`
    # the package's own number of epochs between prints is not whole
    model.train_classifier(some, batch_key="batch", label_key="given", class_print_every_n_epochs=100, opt_val_print_every_n_epochs=20)
    query.obs["given"] = train.obs["given"].iloc[0]
    return np.asarray(model.predict(query, dataset_type="test"), dtype=str)


if __name__ == "__main__":
    main()
