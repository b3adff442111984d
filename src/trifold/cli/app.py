"""The commands, their options and their help. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trifold.cli.show import readable

_EPILOG = "Exit codes: 0 fine; 1 an error of trifold, one block on standard error; 2 a command line that cannot be read."

app = typer.Typer(
    name="trifold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_EPILOG,
    help="Flat, invariant and transferable representations of high-dimensional data. Start with: trifold demo",
)

Data = Annotated[Path, typer.Argument(exists=True, help="An h5ad file or zarr folder.", show_default=False)]
Run = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Run folder that fit wrote.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Where the result goes.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Missing = Annotated[str, typer.Option(help="Genes of the model that the data lack: error, or zero to take them as zeros.")]
Trust = Annotated[list[str] | None, typer.Option(help="Class outside trifold that may be imported: mylab.cycle:Cycle. Repeatable.")]
X = Annotated[str | None, typer.Option("--x", help="Layer, 'raw' or key of obsm with the values. Default: X.", show_default=False)]
_COLUMN = "Column of obs. Repeatable."
Condition = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} What is to be predicted: treatment, dose, disease.")]
Invariant = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Biology.")]
Spurious = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Technique: batch, donor, site.")]
Label = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Cell type; never trained on by trvae.")]


def main() -> None:
    """The entry point ``trifold``."""
    app()


def _version(asked: bool) -> None:
    if asked:
        from trifold import __version__

        typer.echo(f"trifold {__version__}")
        raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Version, and leave.")] = False) -> None:
    pass


@app.command()
@readable
def check(
    data: Data,
    x: X = None,
    condition: Condition = None,
    invariant: Invariant = None,
    spurious: Spurious = None,
    label: Label = None,
    size: Annotated[str | None, typer.Option(help="Column of obs with library sizes.")] = None,
    kind: Annotated[str | None, typer.Option(help="counts, real or binary. Default: from the values.", show_default=False)] = None,
) -> None:
    """Look at data: what the file holds, what is wrong with it, the schema that would be made, and what is confounded."""
    from trifold.cli.checking import inspect

    inspect(data, x, _given(condition=condition, invariant=invariant, spurious=spurious, label=label, size=size, kind=kind))


@app.command()
@readable
def fit(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TOML with the tables [bold]data[/], [bold]model[/] and [bold]fit[/].")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, over the file and the flags. Repeatable.")] = None,
    preset: Annotated[str | None, typer.Option(help="Which model: trvae or gamma_vae. Default: trvae.", show_default=False)] = None,
    x: X = None,
    condition: Condition = None,
    invariant: Invariant = None,
    spurious: Spurious = None,
    label: Label = None,
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
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    force: Force = False,
) -> None:
    """Train a model. Every option but --config, --set, --quiet and --force is a key of one of the three tables.

    The tables are keyword arguments: [bold]data[/] of Schema.of (and genes), [bold]model[/] of the preset (and preset), [bold]fit[/] of
    Model.fit. For instance: trifold fit data.h5ad --condition condition --hold-out condition=stimulated --hold-out cell_type=NK --out run

    Or, for a flat latent of data without conditions: trifold fit data.h5ad --preset gamma_vae --genes 2000 --set model.latent=2 --out run
    """
    from trifold.cli.training import train

    flags = {
        "data": _given(x=x, condition=condition, invariant=invariant, spurious=spurious, label=label, genes=genes),
        "model": _given(preset=preset, seed=seed),
        "fit": _given(epochs=epochs, batch=batch, lr=lr, seed=seed, device=device, out=None if out is None else str(out)),
    }
    train(data, config, flags, set_, hold_out, quiet=quiet, force=force)


@app.command()
@readable
def latent(
    run: Run,
    data: Data,
    out: Out,
    rectified: Annotated[
        bool, typer.Option("--rectified", help="In coordinates in which distances are lengths in data space, as nearly as can be.")
    ] = False,
    device: Device = "auto",
    missing: Missing = "error",
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Latent coordinates of cells, in the order of the rows: .h5ad (cells x latent, with obs), .csv or .npy."""
    from trifold.cli.answers import write_latent

    write_latent(run, data, out, rectified=rectified, device=device, missing=missing, trust=trust or (), force=force)


@app.command()
@readable
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
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Cells under another condition, as a new .h5ad in the units that the model was trained on.

    For instance: trifold predict run data.h5ad --to condition=stimulated --where condition=control --where cell_type=NK --out nk.h5ad
    """
    from trifold.cli.answers import write_prediction

    write_prediction(
        run, data, out, to=to, where=where, kind=kind, seed=seed, device=device, missing=missing, trust=trust or (), force=force
    )


@app.command()
@readable
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


@app.command()
@readable
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


@app.command()
@readable
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


@app.command()
@readable
def show(run: Run, trust: Trust = None) -> None:
    """A run: card, schema, objective and history."""
    from trifold.cli import show as screen
    from trifold.model import load

    screen.run(load(run, trust=trust or ()), run)


@app.command()
@readable
def cite(run: Run, trust: Trust = None) -> None:
    """BibTeX entries of what a run is made of."""
    from trifold.model import load

    typer.echo(load(run, trust=trust or ()).cite())


@app.command()
@readable
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results; an earlier demo there is replaced.")] = Path("demo-run"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller data and fewer steps: for a first look, not for good scores.")] = False,
    seed: Annotated[int, typer.Option(help="Of data and training.")] = 0,
) -> None:
    """Everything once, without data of your own: a simulated perturbation study, and real handwriting. Under three minutes."""
    from trifold.cli.demo import demonstrate

    demonstrate(out, quick=quick, seed=seed)


def _given(**options: Any) -> dict[str, Any]:
    """Those that are not None; a list of one is its element, as Schema.of takes it."""
    found = {name: value for name, value in options.items() if value not in (None, [])}
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}
