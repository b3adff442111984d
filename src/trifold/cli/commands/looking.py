"""``curvature``, ``path``, ``show``, ``verify``, ``migrate``, ``cite`` and ``demo``: what a run looks like, and everything once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trifold.cli.options import Data, Device, Force, Missing, Out, Run, Trust


def curvature(
    run: Run,
    data: Data,
    out: Out,
    group: Annotated[str | None, typer.Option(help="Column that splits the summary and names cells in the plot.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The latent plane: .png, .pdf or .svg.", show_default=False)] = None,
    color: Annotated[str, typer.Option(help="What colours the plane: extrinsic, parameter, or a column of obs.")] = "extrinsic",
    directions: Annotated[int, typer.Option(help="Pairs of random directions per cell above 6 latent dimensions.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the directions.")] = 0,
    device: Device = "auto",
    missing: Missing = "error",
    trust: Trust = None,
    force: Force = False,
) -> None:
    """How the surface of a run bends at each cell: .csv with extrinsic and parameter curvature and the condition of the metric.

    For instance: trifold curvature run data.h5ad --group cell_type --out curvature.csv --plot plane.png
    """
    from trifold.cli.shapes import write_curvature

    write_curvature(
        run,
        data,
        out,
        group=group,
        plot=plot,
        color=color,
        directions=directions,
        seed=seed,
        device=device,
        missing=missing,
        trust=trust or (),
        force=force,
    )


def path(
    run: Run,
    data: Data,
    start: Annotated[
        list[str],
        typer.Option("--from", help="column=value: the path begins at the mean of the cells that match all of them.", show_default=False),
    ],
    end: Annotated[list[str], typer.Option("--to", help="column=value: where it ends. Repeatable.", show_default=False)],
    out: Out,
    kind: Annotated[str, typer.Option(help="straight: in the latent; geodesic: shortest on the surface.")] = "straight",
    steps: Annotated[int, typer.Option(help="Points along the path, ends included.")] = 50,
    under: Annotated[list[str] | None, typer.Option(help="column=value of a covariate that the decoder sees. Repeatable.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The genes along the path: .png, .pdf or .svg.", show_default=False)] = None,
    top: Annotated[int, typer.Option(help="How many genes to show, those that change most.")] = 12,
    missing: Missing = "error",
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Genes along a path from one group of cells to another: .h5ad of points × genes, with the change and linearity of each gene.

    For instance: trifold path run data.h5ad --from tissue=Lung --to tissue=Skin --kind geodesic --out path.h5ad --plot genes.png
    """
    from trifold.cli.shapes import write_path

    write_path(
        run,
        data,
        out,
        start=start,
        end=end,
        kind=kind,
        steps=steps,
        under=under,
        plot=plot,
        top=top,
        missing=missing,
        trust=trust or (),
        force=force,
    )


def show(run: Run, trust: Trust = None) -> None:
    """A run: card, schema, objective and history."""
    from trifold.cli import show as screen
    from trifold.loading import load

    screen.run(load(run, trust=trust or ()), run)


def verify(
    run: Annotated[
        Path,
        typer.Argument(exists=True, file_okay=False, help="Run folder, or NAME.checkpoint beside it.", show_default=False),
    ],
    trust: Trust = None,
) -> None:
    """Whether a run folder is whole: every file, every weight. One line for each fault; exit code 1 if there is one."""
    from trifold.cli.verifying import verify_folder

    verify_folder(run, trust=trust or ())


def migrate(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run; else it replaces the old one, kept as NAME.previous.")] = None,
) -> None:
    """Rewrite a run folder of an earlier trifold in the format of this one."""
    from trifold.cli.show import say
    from trifold.migrating import migrate

    say(f"Written to {migrate(run, out)}: weights and answers are the same.")


def cite(run: Run, trust: Trust = None) -> None:
    """BibTeX entries of what a run is made of."""
    from trifold.loading import load

    typer.echo(load(run, trust=trust or ()).cite())


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results; an earlier demo there is replaced.")] = Path("demo-run"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller data and fewer steps: for a first look, not for good scores.")] = False,
    seed: Annotated[int, typer.Option(help="Of data and training.")] = 0,
) -> None:
    """Everything once, without data of your own: a simulated perturbation study, and real handwriting. Under three minutes."""
    from trifold.cli.demo import demonstrate

    demonstrate(out, quick=quick, seed=seed)
