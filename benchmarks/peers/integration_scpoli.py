# SPDX-License-Identifier: BSD-3-Clause
"""Peer: scPoli (De Donno et al., Nature Methods 2023), of scArches.

Reads a file of benchmarks/integration_data.py: raw counts, obs columns `batch` and `given`. Settings are those of the authors' tutorial;
see README.md. Cells without a label are named as such to the model (`labeled_indices`).

    python integration_scpoli.py --data FILE.h5ad --method scpoli --labels given --seed 1 --out OUT.npz
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
STOPPING = {
    "early_stopping_metric": "val_prototype_loss",
    "mode": "min",
    "threshold": 0,
    "patience": 20,
    "reduce_lr": True,
    "lr_patience": 13,
    "lr_factor": 0.1,
}


def main() -> None:
    """Train and write OUT.npz."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--method", choices=("scpoli",), default="scpoli")
    p.add_argument("--labels", choices=("given", "none"), default="given")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, default=50, help="of these, the last fifth with prototypes")
    a = p.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        from scarches.models import scPoli

    full = ad.read_h5ad(a.data)
    obs = full.obs[["batch", "given"]].astype(str).astype(object)  # the true labels stay outside
    # dense: the package takes a sparse matrix apart with an attribute that scipy no longer has
    data = ad.AnnData(full.X.toarray().astype(np.float32), obs=obs, var=full.var[[]])
    labelled = np.flatnonzero(obs["given"] != UNKNOWN)

    start, cpu_start = time.perf_counter(), time.process_time()
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    known = {"cell_type_keys": "given", "unknown_ct_names": [UNKNOWN], "labeled_indices": labelled} if a.labels == "given" else {}
    with contextlib.redirect_stdout(io.StringIO()):
        model = scPoli(adata=data, condition_keys="batch", embedding_dims=5, recon_loss="nb", **known)
        model.train(
            n_epochs=a.epochs,
            pretraining_epochs=a.epochs * 4 // 5,
            early_stopping_kwargs=STOPPING if known else {},
            eta=5,
            seed=a.seed,
            monitor=False,
        )
    model.model.eval()
    found = {"latent": np.asarray(model.get_latent(data, mean=True), dtype=np.float32)}
    if known:
        torch.manual_seed(a.seed)  # classification draws from the posterior
        told = model.classify(data, get_prob=True)["given"]
        encoder = model.model.cell_type_encoder
        classes = np.array(sorted((c for c in encoder if encoder[c] >= 0), key=encoder.get), dtype=str)
        found |= {
            "classes": classes,
            "probability": np.asarray(told["weighted_distances"], dtype=np.float32),  # with get_prob, softmax of minus the distances
            "predicted": np.asarray(told["preds"], dtype=str),
        }
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    names = ("scarches", "torch", "scanpy", "anndata", "numpy", "pandas", "scipy")
    np.savez_compressed(
        a.out,
        **found,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        epochs_run=model.trainer.epoch + 1,
        versions=json.dumps({"python": platform.python_version()} | {n: version(n) for n in names}),
    )


if __name__ == "__main__":
    main()
