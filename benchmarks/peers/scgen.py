# SPDX-License-Identifier: BSD-3-Clause
"""Peer: scGen (Lotfollahi, Wolf, Theis, Nature Methods 2019), the JAX implementation in pertpy.

Reads raw counts, makes log1p of 10,000 per cell, trains on everything in the file and moves the control cells of the
held cell type by the latent difference between the conditions. Settings are the authors' tutorial for Kang et al.
("scGen: perturbation prediction", also pertpy's): n_hidden 800, n_latent 100, 2 layers, dropout 0.2 (all defaults),
at most 100 epochs, batch 32, early stopping with patience 25.

    python scgen.py TRAIN.h5ad OUT.npz --held NK --seed 0
"""

import os

THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}
for key, value in THREADS.items():
    os.environ.setdefault(key, value)  # before jax is imported

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from importlib.metadata import version  # noqa: E402

# This file is called like a package that may be installed beside it: keep it out of the way.
sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import scanpy as sc  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    """Train, predict and write OUT.npz."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("train")
    p.add_argument("out")
    p.add_argument("--condition", default="condition")
    p.add_argument("--cell-type", default="cell_type")
    p.add_argument("--control", default="control")
    p.add_argument("--target", default="stimulated")
    p.add_argument("--held", required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, default=100)
    a = p.parse_args()

    import scvi
    from pertpy.tools import Scgen

    torch.set_num_threads(1)
    scvi.settings.seed = a.seed
    np.random.seed(a.seed)

    data = ad.read_h5ad(a.train)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    data.X = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    is_control = (data.obs[a.condition] == a.control).to_numpy()
    is_held = (data.obs[a.cell_type] == a.held).to_numpy()
    assert not (is_held & (data.obs[a.condition] == a.target).to_numpy()).any(), "the held cells are in the training file"

    start, cpu_start = time.perf_counter(), time.process_time()
    Scgen.setup_anndata(data, batch_key=a.condition, labels_key=a.cell_type)
    model = Scgen(data)
    model.train(max_epochs=a.epochs, batch_size=32, early_stopping=True, early_stopping_patience=25, accelerator="cpu")
    source = data[is_control & is_held].copy()
    predicted, _ = model.predict(ctrl_key=a.control, stim_key=a.target, adata_to_predict=source)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert list(predicted.obs_names) == list(source.obs_names)

    names = ("pertpy", "scvi-tools", "jax", "jaxlib", "flax", "torch", "scanpy", "anndata", "numpy")
    versions = {"python": platform.python_version()} | {n: version(n) for n in names}
    np.savez_compressed(
        a.out,
        predicted=np.asarray(predicted.X, dtype=np.float32),
        space="log1p_1e4",
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        versions=json.dumps(versions),
        epochs_run=len(next(iter(model.history.values()))) if model.history else -1,
    )


if __name__ == "__main__":
    main()
