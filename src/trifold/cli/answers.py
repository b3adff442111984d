"""``trifold latent`` and ``trifold predict``: what a trained run says of cells, written to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trifold.cli import show
from trifold.cli.files import cells_of, require_free, require_suffix, write
from trifold.cli.pairs import pairs, policies, selection, target
from trifold.data import open
from trifold.loading import load
from trifold.results import SUFFIXES

if TYPE_CHECKING:
    from trifold.data import Source
    from trifold.model import Model


class Asked(NamedTuple):
    """A run, the cells that it is asked about, and what becomes of unknown covariates."""

    model: Model
    source: Source
    unknown: str | dict[str, str]


def asked(
    run: Path, data: Path, out: Path, suffixes: Sequence[str], *, unknown: Sequence[str] | None, trust: Sequence[str], force: bool
) -> Asked:
    """What every command that asks a run about cells begins with: an output that can be written, the run, the cells.

    Args:
        run, data: Run folder, and file of the cells.
        out: Where the result goes.
        suffixes: Those that can be written.
        unknown: Policies as the user wrote them.
        trust: Classes outside trifold that may be imported.
        force: Whether what is there may be replaced.

    Raises:
        TrifoldError: As ``load`` and :func:`trifold.data.open`, or an output that cannot be written.
    """
    require_suffix(out, tuple(suffixes))
    require_free(out, force=force)
    policy = policies(unknown)
    model = load(run, trust=trust)
    return Asked(model, cells_of(data, model.schema.x), policy)


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
    """Latent coordinates to .h5ad or .zarr (cells x latent dimensions with obs), .csv (with the names of the cells) or .npy.

    Raises:
        TrifoldError: As ``load`` and ``Model.latent``, or an output that cannot be written.
    """
    import numpy as np
    import pandas as pd

    model, source, policy = asked(run, data, out, (*SUFFIXES, ".csv", ".npy"), unknown=unknown, trust=trust, force=force)
    given: dict[str, Any] = {"block": block, "rectified": rectified, "missing": missing, "unknown": policy, "device": device}
    if out.suffix in SUFFIXES:
        found = open(model.latent(source, **given, out=out, overwrite=force))
        shape = (found.n, len(found.genes))
    else:
        z = model.latent(source, **given)
        shape, names = z.shape, [f"{block or 'latent'}_{j}" for j in range(z.shape[1])]
        if out.suffix == ".npy":
            write(out, lambda path: np.save(path, z))
        else:
            write(out, lambda path: pd.DataFrame(z, index=source.obs.index, columns=names).to_csv(path, index_label="cell"))
    flat = "distances are lengths in data space, as nearly as can be"
    unit = f"; {flat if block is None else 'principal components of expression with technique averaged out'}" if rectified else ""
    show.say(f"{out}: {shape[0]:,} cells × {shape[1]} {'latent' if block is None else block} dimensions{unit}")


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
    """Cells under another condition to .h5ad or .zarr, a few thousand at a time.

    Raises:
        TrifoldError: As ``load`` and ``Model.predict``, or an output that cannot be written.
    """
    wanted, chosen = pairs(to, option="--to"), pairs(where, option="--where")
    model, source, policy = asked(run, data, out, SUFFIXES, unknown=unknown, trust=trust, force=force)
    goal = target(wanted, model.schema)
    model.predict(
        source,
        goal,
        where=selection(chosen, source.obs) or None,
        kind=kind,
        seed=seed,
        missing=missing,
        unknown=policy,
        device=device,
        out=out,
        overwrite=force,
    )
    found = open(out)
    unseen = int((~found.obs["seen"]).sum())
    under = ", ".join(f"{column} = {value}" for column, value in goal.items())
    show.say(f"{out}: {found.n:,} cells × {len(found.genes):,} genes under {under} ({kind}; {unseen:,} of a combination never trained on)")
