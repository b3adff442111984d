"""``latent``, ``classify``, ``predict`` and ``evaluate``: what a run says of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trifold.cli.options import Data, Device, Force, Missing, Out, Run, Trust, Unknown


def latent(
    run: Run,
    data: Data,
    out: Out,
    block: Annotated[str | None, typer.Option(help="invariant or spurious, of a run of invae. Default: all.", show_default=False)] = None,
    rectified: Annotated[
        bool,
        typer.Option(
            "--rectified",
            help="In coordinates in which distances are lengths in data space, as nearly as can be; of the invariant block, those of "
            "expression with technique averaged out.",
        ),
    ] = False,
    device: Device = "auto",
    missing: Missing = "error",
    unknown: Unknown = None,
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Latent coordinates of cells, in the order of the rows: .h5ad or .zarr (cells x latent, with obs), .csv or .npy."""
    from trifold.cli.answers import write_latent

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    write_latent(run, data, out, block=block, rectified=rectified, **more)


def classify(
    run: Run,
    data: Data,
    out: Out,
    reject: Annotated[float, typer.Option(help="Probability below which the answer is declined.")] = 0.5,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="A column p_LABEL for each label.")] = False,
    device: Device = "auto",
    missing: Missing = "error",
    unknown: Unknown = None,
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Labels of cells, with calibrated probabilities and the right to decline: .csv with label, probability and rejected.

    For instance: trifold classify run new.h5ad --reject 0.8 --out labels.csv
    """
    from trifold.cli.classifying import write_labels

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    write_labels(run, data, out, reject=reject, probabilities=probabilities, **more)


def predict(
    run: Run,
    data: Data,
    to: Annotated[list[str], typer.Option(help="column=value of the target. Repeatable.", show_default=False)],
    out: Out,
    where: Annotated[
        list[str] | None, typer.Option(help="column=value: only cells that match all of them. A column named twice has two values.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="mean: expected values; sample: a draw; residual: each cell moved, with its own noise.")
    ] = "residual",
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Device = "auto",
    missing: Missing = "error",
    unknown: Unknown = None,
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Cells under another condition or technique, as a new .h5ad or .zarr in the units that the model was trained on.

    The answer is written as it is made, a few thousand cells at a time.

    For instance: trifold predict run data.h5ad --to condition=stimulated --where condition=control --where cell_type=NK --out nk.h5ad
    """
    from trifold.cli.answers import write_prediction

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    write_prediction(run, data, out, to=to, where=where, kind=kind, seed=seed, **more)


def evaluate(
    run: Run,
    data: Data,
    group: Annotated[list[str] | None, typer.Option(help="Column by whose values held-out cells are scored too. Repeatable.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="column=value of the cells to predict from. Default: the other, if there are two.", show_default=False),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="residual, mean or sample, as in predict. Repeatable. Default: residual.", show_default=False),
    ] = None,
    genes: Annotated[int, typer.Option(help="Score this many most variable genes, chosen on training cells.")] = 2000,
    out: Annotated[Path | None, typer.Option(help="Table of all scores, .csv.", show_default=False)] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for one page of plots per held-out combination.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of draws and of the ceiling's halves.")] = 0,
    device: Device = "auto",
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Score a run on what it held out, beside five predictions that have learned nothing and a half-against-half ceiling."""
    from trifold.cli.scoring import KINDS, evaluate_run

    evaluate_run(
        run,
        data,
        group=group or (),
        source=source,
        kinds=kind or KINDS,
        genes=genes,
        out=out,
        plots=plots,
        seed=seed,
        device=device,
        trust=trust or (),
        force=force,
    )
