"""What a person sees: tables on standard output; errors and notices on standard error."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from trifold.cli.advice import typed
from trifold.errors import Interrupted, TrifoldError, TrifoldWarning, listing

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from trifold.model import Model

Command = TypeVar("Command", bound=Callable[..., Any])

METRICS = {
    "pearson_delta": "Pearson\nchange",
    "pearson_delta_top20": "Pearson\ntop 20",
    "rmse_delta": "RMSE\nchange",
    "e_distance": "E-dis-\ntance",
    "variance_concordance": "var.\nconc.",
    "zero_concordance": "zero\nconc.",
}  # those shown; a file given to --out holds all


def console(*, stderr: bool = False) -> Console:
    """Where tables go; where errors and notices go."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def readable(command: Command) -> Command:
    """A command whose errors are one block on standard error and exit code 1, and whose notices are paragraphs there.

    Of a training that was stopped the code is 128 + signal.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        import typer

        try:
            with notices():
                return command(*args, **kwargs)
        except TrifoldError as error:
            _say(f"[bold red]{type(error).__name__}[/]: ", str(error) + typed(str(error), command))
            raise typer.Exit(128 + error.signal if isinstance(error, Interrupted) else 1) from None

    return run  # type: ignore[return-value]


@contextmanager
def notices() -> Iterator[None]:
    """Trifold's warnings as paragraphs on standard error, each once; those of other packages as Python prints them."""
    said: set[str] = set()
    with warnings.catch_warnings():
        python = warnings.showwarning
        warnings.simplefilter("always", TrifoldWarning)

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if not issubclass(category, TrifoldWarning):
                python(message, category, *where, **more)
            elif str(message) not in said:
                said.add(str(message))
                _say("[bold yellow]Note[/]: ", str(message))

        warnings.showwarning = show
        yield


def say(text: str = "", style: str = "") -> None:
    """A paragraph on standard output, as it is."""
    console().print(text, style=style or None, markup=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """A table on standard output.

    Args:
        title: Above it.
        columns: Headings.
        rows: Cells; text may hold rich markup.
        numbers: Headings of the columns that are set flush right.
    """
    from rich import box
    from rich.table import Table

    out = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    out.show_header = any(columns)
    for name in columns:
        right = name in numbers
        out.add_column(name, justify="right" if right else "left", no_wrap=right or bool(numbers))
    for row in rows:
        out.add_row(*map(str, row))
    console().print(out)


def scores(wide: pd.DataFrame, *, title: str) -> None:
    """Table of scores: models, nulls and the ceiling as rows, the metrics that tell most as columns; the best of each but the ceiling bold.

    Args:
        wide: From :func:`trifold.evaluate.averages`: (kind, method) x metric.
        title: Above the table.
    """
    from trifold.evaluate import higher_is_better

    shown = [m for m in METRICS if m in wide.columns and wide[m].notna().any()]
    rivals = wide[wide.index.get_level_values("kind") != "ceiling"]
    best = {m: rivals[m].max() if higher_is_better(m) else rivals[m].min() for m in shown}
    rows = []
    for kind in ("model", "null model", "ceiling"):
        for (_, method), row in wide[wide.index.get_level_values("kind") == kind].iterrows():
            name = {"model": str(method), "null model": f"null: {method}", "ceiling": "ceiling (halves)"}[kind]
            rows.append([name, *(_number(row[m], bold=kind != "ceiling" and row[m] == best[m]) for m in shown)])
    heads = [METRICS[m] + ("\n↑" if higher_is_better(m) else "\n↓") for m in shown]
    table(title, ["", *heads], rows, numbers=heads)


def run(model: Model, path: object) -> None:
    """Card, schema, objective and the end of the history of a trained model."""
    card, schema = model.card, model.schema
    cells = card.get("cells", {})
    held = ", ".join(f"{c} = {_value(v)}" for c, v in card.get("hold_out", {}).items()) or "nothing"
    versions = card.get("versions", {})
    facts = [
        ("preset", model.preset or "own"),
        ("written", card.get("written", "")),
        ("cells", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in cells.items())),
        ("held out", held),
        ("seed", card.get("seed", "")),
        ("weights", f"{sum(p.numel() for p in model.vae.parameters()):,}"),
        ("data", f"SHA-256 {card.get('data', '')[:16]}…"),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in ("trifold", "torch", "anndata", "python") if name in versions)),
    ]
    table(f"Run {path}", ["", ""], facts)
    describe(schema)
    table("Objective", ["term", "weight", "what it is", "kind"], model.objective.table(), numbers=["weight"])
    if "separation" in card:
        separation(model.separation)
    for a, b in schema.confounded:
        say(f"Confounded: no cells tell {a} and {b} apart (trifold check shows the table), so what one has may be the other's.")
    history = model.history
    if history.rows:
        shown = [c for c in history.columns if c.startswith(("train/", "validation/"))]
        at = sorted({0, len(history) // 2, len(history) - 1})
        columns = [f"epoch {int(history.rows[i]['epoch']) + 1}" for i in at]
        seconds = sum(row.get("seconds", 0.0) for row in history.rows)
        values = [(c, *(f"{history.rows[i].get(c, float('nan')):.5g}" for i in at)) for c in shown]
        table(f"History: {len(history)} epochs, {seconds:.0f} s; nats per cell, terms unweighted", ["", *columns], values, numbers=columns)


def separation(found: pd.DataFrame) -> None:
    """Table of how well technique and biology are read from each block and from PCA, by the probe that reads each best.

    Args:
        found: From :attr:`trifold.Model.separation`; no rows: nothing to tell.
    """
    if found.empty:
        return
    latents = list(dict.fromkeys(found["latent"]))
    within = "chance_within" in found
    heads = [*latents, "chance", *(["chance from biology"] if within else [])]
    rows = []
    for (role, column), part in found.groupby(["role", "column"], sort=False):
        best = part.groupby("latent")["accuracy"].max()
        values = [best[name] for name in latents] + [part["chance"].iloc[0]] + ([part["chance_within"].iloc[0]] if within else [])
        unit = "" if part["measure"].iloc[0] == "accuracy" else " (R²)"
        rows.append((role, f"{column}{unit}", *(_number(v, bold=False) for v in values)))
    cells = int(found["cells"].max())
    title = f"Separation: accuracy of the best of three probes on {cells:,} cells not trained on; technique belongs in spurious only"
    table(title, ["", "column", *heads], rows, numbers=heads)


def describe(schema: Any) -> None:
    """Table of a schema."""
    rows = [
        ("x", schema.x or "X", f"{schema.kind}, {100 * schema.density:.3g} % not zero, read {'sparse' if schema.sparse else 'dense'}"),
        ("genes", f"{len(schema.genes):,}", listing(schema.genes)),
    ]
    for role, columns in schema.roles.items():
        for column in columns:
            values = getattr(column, "values", None)
            what = "numbers" if values is None else f"{len(values)} categories: {listing(values, 8)}"
            rows.append((role, column.name, what))
    if schema.unlabelled:
        rows.append(("not known", listing(map(repr, schema.unlabelled)), "in invariant and label"))
    rows.append(("library size", schema.size or "sum over genes", "" if schema.kind == "counts" else "not used"))
    table("Schema", ["", "", ""], rows)


def _value(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _number(value: float, *, bold: bool) -> str:
    text = "–" if value != value else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return f"[bold]{text}[/]" if bold else text


def _say(head: str, text: str) -> None:
    from rich.markup import escape

    console(stderr=True).print(head + escape(text), soft_wrap=True)


def columns_of(obs: pd.DataFrame) -> list[dict[str, str]]:
    """What each column of obs holds: name, type, number of values and the first of them."""
    out = []
    for name in obs.columns:
        column = obs[name]
        values = list(column.cat.categories) if hasattr(column, "cat") else list(column.dropna().unique())
        if column.dtype.kind in "fiu" and len(values) > 12:
            out.append({"name": str(name), "kind": "numbers", "values": f"{column.min():.4g} to {column.max():.4g}"})
        else:
            out.append({"name": str(name), "kind": f"{len(values)} values", "values": listing(values, 8)})
    return out
