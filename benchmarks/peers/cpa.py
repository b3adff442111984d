# SPDX-License-Identifier: BSD-3-Clause
"""Peer: CPA (Lotfollahi et al., Molecular Systems Biology 2023), package cpa-tools.

Trains on raw counts with the negative binomial loss and predicts the held cell type as CPA's tutorial does: the input
is the cell's control profile, the perturbation label is set to the target. All settings are those of the authors'
tutorial on Kang et al. (PBMC): see README.md. A tenth of the training cells is CPA's validation split; the held
combination is not in the file, so nothing is "ood".

    python cpa.py TRAIN.h5ad OUT.npz --held NK --seed 0
"""

import os

for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(key, "1")

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import types  # noqa: E402
import warnings  # noqa: E402
from importlib.metadata import version  # noqa: E402

# This file is called like the package: keep it out of the way.
sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

MODEL = {
    "n_latent": 64,
    "recon_loss": "nb",
    "doser_type": "linear",
    "n_hidden_encoder": 128,
    "n_layers_encoder": 2,
    "n_hidden_decoder": 512,
    "n_layers_decoder": 2,
    "use_batch_norm_encoder": True,
    "use_layer_norm_encoder": False,
    "use_batch_norm_decoder": False,
    "use_layer_norm_decoder": True,
    "dropout_rate_encoder": 0.0,
    "dropout_rate_decoder": 0.1,
    "variational": False,
}
PLAN = {
    "n_epochs_kl_warmup": None,
    "n_epochs_pretrain_ae": 30,
    "n_epochs_adv_warmup": 50,
    "n_epochs_mixup_warmup": 0,
    "mixup_alpha": 0.0,
    "adv_steps": None,
    "n_hidden_adv": 64,
    "n_layers_adv": 3,
    "use_batch_norm_adv": True,
    "use_layer_norm_adv": False,
    "dropout_rate_adv": 0.3,
    "reg_adv": 20.0,
    "pen_adv": 5.0,
    "lr": 3e-4,
    "wd": 4e-7,
    "adv_lr": 3e-4,
    "adv_wd": 4e-7,
    "adv_loss": "cce",
    "doser_lr": 3e-4,
    "doser_wd": 4e-7,
    "do_clip_grad": True,
    "gradient_clip_value": 1.0,
    "step_size_lr": 10,
}


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
    p.add_argument("--batch-size", type=int, default=512)
    a = p.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # The tuner pulls in ray, which nothing here uses.
    tuner = types.ModuleType("cpa._tuner")
    tuner.run_autotune = None
    sys.modules["cpa._tuner"] = tuner
    import cpa

    data = ad.read_h5ad(a.train)
    data.obs_names_make_unique()
    # CPA reads "+" in a label as a combination, so labels go in under plain codes.
    kinds = sorted(set(data.obs[a.cell_type].astype(str)))
    frame = data.obs[[]].copy()
    frame["condition"] = np.where(data.obs[a.condition] == a.control, "ctrl", "target")
    frame["cell_type"] = [f"t{kinds.index(str(t))}" for t in data.obs[a.cell_type]]
    held = f"t{kinds.index(a.held)}"
    assert not ((frame.cell_type == held) & (frame.condition == "target")).any(), "the held cells are in the training file"
    frame["dose"] = "1.0"
    rng = np.random.default_rng(a.seed)
    frame["split"] = np.where(rng.random(len(frame)) < 0.1, "valid", "train")
    x = np.asarray(data.X.toarray() if hasattr(data.X, "toarray") else data.X, dtype=np.float32)
    # The cells to predict stand in the same file, under the split that CPA calls "ood": training never reads them.
    source = ((frame.cell_type == held) & (frame.condition == "ctrl")).to_numpy()
    asked = frame[source].copy()
    asked.index = ["asked-" + str(i) for i in range(len(asked))]
    asked["condition"], asked["split"] = "target", "ood"
    both = ad.AnnData(np.concatenate([x, x[source]]), obs=pd.concat([frame, asked]), var=data.var[[]].copy(), dtype=np.float32)
    both.layers["counts"] = both.X.copy()

    start, cpu_start = time.perf_counter(), time.process_time()
    cpa.CPA.setup_anndata(
        both,
        perturbation_key="condition",
        control_group="ctrl",
        dosage_key="dose",
        categorical_covariate_keys=["cell_type"],
        is_count_data=True,
        max_comb_len=1,
    )
    model = cpa.CPA(adata=both, split_key="split", train_split="train", valid_split="valid", test_split="ood", seed=a.seed, **MODEL)
    model.train(
        max_epochs=a.epochs,
        use_gpu=False,
        batch_size=a.batch_size,
        plan_kwargs=PLAN,
        early_stopping_patience=5,
        check_val_every_n_epoch=5,
        save_path=False,
    )
    model.predict(both, batch_size=1024)
    predicted = both.obsm["CPA_pred"][len(frame) :]
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    names = ("cpa-tools", "scvi-tools", "torch", "pytorch-lightning", "scanpy", "anndata", "numpy")
    versions = {"python": platform.python_version()} | {n: version(n) for n in names}
    np.savez_compressed(
        a.out,
        predicted=np.asarray(predicted, dtype=np.float32),
        space="counts",
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        versions=json.dumps(versions),
        epochs_run=model.trainer.current_epoch,
    )


if __name__ == "__main__":
    main()
