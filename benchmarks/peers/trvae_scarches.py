# SPDX-License-Identifier: BSD-3-Clause
"""Peer: trVAE (Lotfollahi et al., Bioinformatics 2020), the PyTorch implementation in scArches.

Reads raw counts, trains `scarches.models.TRVAE` on everything in the file, and predicts the control cells of the held
cell type: encoded with the control condition, decoded with the target one. scArches has no method for that, so the
decoding is written out below; everything else is the package's own code. Cell types are not used in training.

Settings: see README.md (the scArches notebook on perturbation prediction where it speaks, else the package's defaults
and the trVAE surgery tutorial; MMD on the first decoder layer as in the paper). `--loss nb` is the package's default
likelihood and works on counts.

    python trvae_scarches.py TRAIN.h5ad OUT.npz --held NK --seed 0
"""

import os

for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
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
import scanpy as sc  # noqa: E402
import torch  # noqa: E402


def dense(x) -> np.ndarray:
    """A float32 array, whatever it was."""
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float32)


@torch.no_grad()
def transfer(net, x: np.ndarray, source: str, target: str, total: np.ndarray, sample: bool, seed: int) -> np.ndarray:
    """Encode with one condition, decode with another."""
    net.eval()
    torch.manual_seed(seed)
    code = net.condition_encoder
    x = torch.as_tensor(x)
    start, end = (torch.full((len(x), 1), float(code[c])) for c in (source, target))
    z = net.get_latent(x, start, mean=not sample)
    out = net.decoder(z, end)[0]
    if net.recon_loss != "mse":  # a share of the cell's total, times that total
        out = out * torch.as_tensor(total)[:, None]
    return out.numpy()


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
    p.add_argument("--epochs", type=int, default=2000)
    p.add_argument("--patience", type=int, default=750)
    p.add_argument("--reduce-lr", action="store_true", help="a tenth of the learning rate after 13 epochs without progress")
    p.add_argument("--loss", choices=("mse", "nb"), default="mse")
    p.add_argument("--hidden", type=int, nargs="+", default=[128, 128])
    p.add_argument("--latent", type=int, default=10)
    p.add_argument("--mmd-on", choices=("y", "z"), default="y")
    p.add_argument("--beta", type=float, default=1.0)
    p.add_argument("--sample", action="store_true", help="sample the latent instead of taking its mean")
    a = p.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        from scarches.models import TRVAE

    data = ad.read_h5ad(a.train)
    total = dense(data.X).sum(axis=1)
    if a.loss == "mse":
        sc.pp.normalize_total(data, target_sum=1e4)
        sc.pp.log1p(data)
    data.X = dense(data.X)
    is_control = (data.obs[a.condition] == a.control).to_numpy()
    is_held = (data.obs[a.cell_type] == a.held).to_numpy()
    assert not (is_held & (data.obs[a.condition] == a.target).to_numpy()).any(), "the held cells are in the training file"
    source = is_control & is_held
    # scArches takes the last tenth of each condition for validation, in file order: shuffle so that it is a fair draw.
    order = np.random.default_rng(a.seed).permutation(data.n_obs)
    train = data[order].copy()

    start, cpu_start = time.perf_counter(), time.process_time()
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    with contextlib.redirect_stdout(io.StringIO()):
        model = TRVAE(
            adata=train,
            condition_key=a.condition,
            conditions=[a.control, a.target],
            hidden_layer_sizes=list(a.hidden),
            latent_dim=a.latent,
            use_mmd=True,
            mmd_on=a.mmd_on,
            recon_loss=a.loss,
            beta=a.beta,
        )
        model.train(
            n_epochs=a.epochs,
            alpha_epoch_anneal=200,
            early_stopping_kwargs={
                "early_stopping_metric": "val_unweighted_loss",
                "threshold": 0,
                "patience": a.patience,
                "reduce_lr": a.reduce_lr,
                "lr_patience": 13,
                "lr_factor": 0.1,
            },
            seed=a.seed,
            monitor=False,
        )
    net = model.model.cpu()
    predicted = transfer(net, data.X[source], a.control, a.target, total[source], a.sample, a.seed)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    names = ("scarches", "scvi-tools", "torch", "scanpy", "anndata", "numpy")
    versions = {"python": platform.python_version()} | {n: version(n) for n in names}
    np.savez_compressed(
        a.out,
        predicted=predicted.astype(np.float32),
        space="log1p_1e4" if a.loss == "mse" else "counts",
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        versions=json.dumps(versions),
        epochs_run=model.trainer.epoch + 1,
    )


if __name__ == "__main__":
    main()
