"""``profile`` and ``sweep``: many steps or many trainings, to learn what a training costs and how it is best set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trifold.cli.options import Data, Force, Trust

_SET = typer.Option("--set", help="table.key=value, over the file. Repeatable.")


def profile(
    what: Annotated[
        Path, typer.Argument(metavar="CONFIG_OR_RUN", exists=True, help="TOML file as for fit, or a run folder.", show_default=False)
    ],
    data: Data,
    steps: Annotated[int, typer.Option(help="Steps that are timed, after five that are not.")] = 50,
    batch: Annotated[int | None, typer.Option(help="Cells per minibatch. Default: the model's own.", show_default=False)] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps. Default: the configuration's, else auto.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU. Default: torch's own choice.", show_default=False)] = None,
    set_: Annotated[list[str] | None, _SET] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    trust: Trust = None,
) -> None:
    """Where the time of a training step goes, on this machine and these data, beside the bound of its matrix multiplications.

    For instance: trifold profile run.toml data.h5ad --threads 1
    """
    from trifold.cli.profiling import profile_step

    profile_step(what, data, steps=steps, batch=batch, device=device, threads=threads, settings=set_, as_json=json, trust=trust or ())


def sweep(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="TOML file as for fit.", show_default=False)],
    data: Data,
    space: Annotated[
        list[str],
        typer.Option(help="name=range: latent=8..40, lr=1e-4..1e-2:log, hidden=[64]|[128,128]. Repeatable.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder for best.toml, trials.csv and, with --refit, run.", show_default=False)],
    trials: Annotated[int, typer.Option(help="Trials of the study in all, those of other workers among them.")] = 50,
    metric: Annotated[str, typer.Option(help="What is compared on watched cells: elbo, loss, or terms: nll+kl+100*mmd.")] = "elbo",
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where workers share the study: sqlite:///study.db, a database's URL, journal:///shared/study.log.", show_default=False
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Its name there.", show_default=False)] = None,
    prune: Annotated[bool, typer.Option(help="Cut hopeless trials short.")] = True,
    seed: Annotated[int, typer.Option(help="Of the choices.")] = 0,
    set_: Annotated[list[str] | None, _SET] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="column=value: cells that match all of them are never seen. A column named twice has two values."),
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Train the best configuration at the end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing of single trials.")] = False,
    force: Force = False,
) -> None:
    """Choose keys of [bold]model[/] and [bold]fit[/] by cells that training watches; many machines may run the same command.

    For instance: trifold sweep run.toml data.h5ad --space latent=8..40 --storage sqlite:///study.db --study first --out best
    """
    from trifold.cli.sweeping import search

    search(
        config,
        data,
        space,
        out,
        trials=trials,
        metric=metric,
        storage=storage,
        study=study,
        prune=prune,
        seed=seed,
        settings=set_,
        hold_out=hold_out,
        refit=refit,
        quiet=quiet,
        force=force,
    )
