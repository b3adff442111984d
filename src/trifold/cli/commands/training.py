"""``check``, ``fit`` and ``map``: from data to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trifold.cli.options import (
    Condition,
    Data,
    Device,
    Force,
    Invariant,
    Label,
    Missing,
    Quiet,
    Run,
    Spurious,
    Trust,
    Unknown,
    Unlabelled,
    X,
    given,
)


def check(
    data: Data,
    x: X = None,
    condition: Condition = None,
    invariant: Invariant = None,
    spurious: Spurious = None,
    label: Label = None,
    unlabelled: Unlabelled = None,
    size: Annotated[str | None, typer.Option(help="Column of obs with library sizes.")] = None,
    kind: Annotated[str | None, typer.Option(help="counts, real or binary. Default: from the values.", show_default=False)] = None,
) -> None:
    """Look at data: what the file holds, what is wrong with it, the schema that would be made, and what is confounded."""
    from trifold.cli.checking import inspect

    roles = given(condition=condition, invariant=invariant, spurious=spurious, label=label, unlabelled=unlabelled, size=size, kind=kind)
    inspect(data, x, roles)


def fit(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TOML with the tables [bold]data[/], [bold]model[/] and [bold]fit[/].")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, over the file and the flags. Repeatable.")] = None,
    preset: Annotated[str | None, typer.Option(help="Which model: trvae, gamma_vae or invae. Default: trvae.", show_default=False)] = None,
    x: X = None,
    condition: Condition = None,
    invariant: Invariant = None,
    spurious: Spurious = None,
    label: Label = None,
    unlabelled: Unlabelled = None,
    genes: Annotated[int | None, typer.Option(help="Keep this many most variable genes, chosen on training cells only.")] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="column=value: cells that match all of them are never seen. A column named twice has two values."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the cells. Default: from their number.", show_default=False)] = None,
    batch: Annotated[int | None, typer.Option(help="Cells per minibatch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the initial weights and of training. Default: 0.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps. Default: auto.", show_default=False)] = None,
    devices: Annotated[int | None, typer.Option(help="Processes that train together. Default: 1.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")] = False,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints, besides one every 10 minutes.")] = None,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Train a model. Every option but --config, --set, --quiet and --force is a key of one of the three tables.

    The tables are keyword arguments: [bold]data[/] of Schema.of (and genes), [bold]model[/] of the preset (and preset), [bold]fit[/] of
    Model.fit. For instance: trifold fit data.h5ad --condition condition --hold-out condition=stimulated --hold-out cell_type=NK --out run

    Or, for a flat latent of data without conditions: trifold fit data.h5ad --preset gamma_vae --genes 2000 --set model.latent=2 --out run

    Or, to take technique out: trifold fit data.h5ad --preset invae --spurious batch --invariant cell_type --unlabelled unknown --out run

    Ctrl-C and SIGTERM finish the step and write a checkpoint beside the run folder (exit codes 130 and 143); --resume goes on from it.
    """
    from trifold.cli.training import train

    flags = {
        "data": given(x=x, condition=condition, invariant=invariant, spurious=spurious, label=label, unlabelled=unlabelled, genes=genes),
        "model": given(preset=preset, seed=seed),
        "fit": given(epochs=epochs, batch=batch, lr=lr, seed=seed, device=device, devices=devices)
        | given(resume=resume or None, checkpoint_every=checkpoint_every, out=None if out is None else str(out)),
    }
    train(data, config, flags, set_, hold_out, quiet=quiet, force=force)


def map_(
    run: Run,
    query: Annotated[Path, typer.Argument(exists=True, help="New cells, with the run's column of technique.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Run folder to write.", show_default=False)],
    reference: Annotated[
        Path | None, typer.Option(exists=True, help="Cells that the run was trained on, to compare with.", show_default=False)
    ] = None,
    adapt: Annotated[bool, typer.Option(help="Let encoders that do not see the batch see new ones.")] = True,
    steps: Annotated[int, typer.Option(help="Minibatches.")] = 400,
    seed: Annotated[int, typer.Option(help="Of minibatches and noise.")] = 0,
    device: Device = "auto",
    missing: Missing = "error",
    unknown: Unknown = None,
    trust: Trust = None,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """A run that also knows the batches of new cells; of its own cells it says what it said, bit for bit.

    For instance: trifold map run new.h5ad --reference data.h5ad --out mapped
    """
    from trifold.cli.mapping import map_query

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    map_query(run, query, out, reference=reference, adapt=adapt, steps=steps, seed=seed, quiet=quiet, **more)
