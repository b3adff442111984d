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
Label = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Cell type: what invae is to predict; trvae never trains on it.")]
Unlabelled = Annotated[
    list[str] | None,
    typer.Option(help="Value that means 'not known' in the columns of --invariant and --label. Repeatable.", show_default=False),
]
Unknown = Annotated[
    list[str] | None,
    typer.Option(help="error, zero or marginalise, or role=policy: what becomes of unseen covariates. Repeatable. Default: error."),
]


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
    unlabelled: Unlabelled = None,
    size: Annotated[str | None, typer.Option(help="Column of obs with library sizes.")] = None,
    kind: Annotated[str | None, typer.Option(help="counts, real or binary. Default: from the values.", show_default=False)] = None,
) -> None:
    """Look at data: what the file holds, what is wrong with it, the schema that would be made, and what is confounded."""
    from trifold.cli.checking import inspect

    roles = _given(condition=condition, invariant=invariant, spurious=spurious, label=label, unlabelled=unlabelled, size=size, kind=kind)
    inspect(data, x, roles)


@app.command()
@readable
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
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    force: Force = False,
) -> None:
    """Train a model. Every option but --config, --set, --quiet and --force is a key of one of the three tables.

    The tables are keyword arguments: [bold]data[/] of Schema.of (and genes), [bold]model[/] of the preset (and preset), [bold]fit[/] of
    Model.fit. For instance: trifold fit data.h5ad --condition condition --hold-out condition=stimulated --hold-out cell_type=NK --out run

    Or, for a flat latent of data without conditions: trifold fit data.h5ad --preset gamma_vae --genes 2000 --set model.latent=2 --out run

    Or, to take technique out: trifold fit data.h5ad --preset invae --spurious batch --invariant cell_type --unlabelled unknown --out run
    """
    from trifold.cli.training import train

    flags = {
        "data": _given(x=x, condition=condition, invariant=invariant, spurious=spurious, label=label, unlabelled=unlabelled, genes=genes),
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
    """Latent coordinates of cells, in the order of the rows: .h5ad (cells x latent, with obs), .csv or .npy."""
    from trifold.cli.answers import write_latent

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    write_latent(run, data, out, block=block, rectified=rectified, **more)


@app.command()
@readable
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


@app.command("map")
@readable
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
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    force: Force = False,
) -> None:
    """A run that also knows the batches of new cells; of its own cells it says what it said, bit for bit.

    For instance: trifold map run new.h5ad --reference data.h5ad --out mapped
    """
    from trifold.cli.mapping import map_query

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    map_query(run, query, out, reference=reference, adapt=adapt, steps=steps, seed=seed, quiet=quiet, **more)


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
    unknown: Unknown = None,
    trust: Trust = None,
    force: Force = False,
) -> None:
    """Cells under another condition or technique, as a new .h5ad in the units that the model was trained on.

    For instance: trifold predict run data.h5ad --to condition=stimulated --where condition=control --where cell_type=NK --out nk.h5ad
    """
    from trifold.cli.answers import write_prediction

    more: dict[str, Any] = {"device": device, "missing": missing, "unknown": unknown, "trust": trust or (), "force": force}
    write_prediction(run, data, out, to=to, where=where, kind=kind, seed=seed, **more)


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
    from trifold.loading import load

    screen.run(load(run, trust=trust or ()), run)


@app.command()
@readable
def cite(run: Run, trust: Trust = None) -> None:
    """BibTeX entries of what a run is made of."""
    from trifold.loading import load

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
