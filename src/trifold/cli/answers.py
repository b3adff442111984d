"""``trifold latent`` and ``trifold predict``: what a trained run says of cells, written to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trifold.cli import show
from trifold.cli.files import cells_of, require_free, require_suffix, write
from trifold.cli.pairs import pairs, policies, selection, target
from trifold.loading import load


def write_latent(
    run: Path,
    data: Path,
    out: Path,
    *,
    block: str | None,
    rectified: bool,
    device: str,
    missing: str,
    unknown: Sequence[str] | None,
    trust: Sequence[str],
    force: bool,
) -> None:
    """Latent coordinates to .h5ad (cells x latent dimensions with obs), .csv (with the names of the cells) or .npy.

    Raises:
        TrifoldError: As ``load`` and ``Model.latent``, or an output that cannot be written.
    """
    from anndata import AnnData

    require_suffix(out, (".h5ad", ".csv", ".npy"))
    require_free(out, force=force)
    policy = policies(unknown)
    model = load(run, trust=trust)
    source = cells_of(data, model.schema.x)
    z = model.latent(source, block=block, rectified=rectified, missing=missing, unknown=policy, device=device)
    names = [f"{block or 'latent'}_{j}" for j in range(z.shape[1])]
    if out.suffix == ".npy":
        write(out, lambda path: np.save(path, z))
    elif out.suffix == ".csv":
        write(out, lambda path: pd.DataFrame(z, index=source.obs.index, columns=names).to_csv(path, index_label="cell"))
    else:
        about = {"run": str(run), "rectified": rectified, "block": block or ""}
        answer = AnnData(z, obs=source.obs.copy(), var=pd.DataFrame(index=names), uns={"trifold": about})
        write(out, answer.write_h5ad)
    flat = "distances are lengths in data space, as nearly as can be"
    unit = f"; {flat if block is None else 'principal components of expression with technique averaged out'}" if rectified else ""
    show.say(f"{out}: {z.shape[0]:,} cells × {z.shape[1]} {'latent' if block is None else block} dimensions{unit}")


def write_prediction(
    run: Path,
    data: Path,
    out: Path,
    *,
    to: Sequence[str],
    where: Sequence[str] | None,
    kind: str,
    seed: int,
    device: str,
    missing: str,
    unknown: Sequence[str] | None,
    trust: Sequence[str],
    force: bool,
) -> None:
    """Cells under another condition to .h5ad.

    Raises:
        TrifoldError: As ``load`` and ``Model.predict``, or an output that cannot be written.
    """
    require_suffix(out, (".h5ad",))
    require_free(out, force=force)
    wanted, chosen, policy = pairs(to, option="--to"), pairs(where, option="--where"), policies(unknown)
    model = load(run, trust=trust)
    source = cells_of(data, model.schema.x)
    answer: Any = model.predict(
        source,
        target(wanted, model.schema),
        where=selection(chosen, source.obs) or None,
        kind=kind,
        seed=seed,
        missing=missing,
        unknown=policy,
        device=device,
    )
    write(out, answer.write_h5ad)
    unseen = int((~answer.obs["seen"]).sum())
    under = ", ".join(f"{c} = {v}" for c, v in answer.uns["trifold"]["to"].items())
    show.say(
        f"{out}: {answer.n_obs:,} cells × {answer.n_vars:,} genes under {under} ({kind}; {unseen:,} of a combination never trained on)"
    )
