"""``trifold profile``: where the time of a training step goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trifold.cli import show
from trifold.cli.config import callables, checked, override, read_config
from trifold.cli.files import cells_of
from trifold.cli.pairs import with_blanks
from trifold.cli.training import prepare
from trifold.data import Schema, Source
from trifold.errors import SpecError
from trifold.loading import load
from trifold.model import Model
from trifold.profiling import profile
from trifold.train import Plan


def profile_step(
    what: Path,
    data: Path,
    *,
    steps: int,
    batch: int | None,
    device: str | None,
    threads: int | None,
    settings: Sequence[str] | None,
    as_json: bool,
    trust: Sequence[str] = (),
) -> None:
    """Profile a run, or the model that a configuration describes, and print the tables.

    Args:
        what: Run folder, or TOML file.
        data: The cells.
        steps, batch, threads: As of :func:`trifold.profiling.profile`.
        device: As there; None: that of the configuration, else ``"auto"``.
        settings: Texts ``table.key=value``, over the file.
        as_json: One JSON object instead of tables: ``facts`` and ``rows``.
        trust: Classes outside trifold that a run may import.

    Raises:
        TrifoldError: As ``load``, ``Schema.of``, the preset and ``Model.fit``; SpecError for settings of a run.
    """
    if what.is_dir():
        if settings:
            raise SpecError(f"--set changes a configuration; {str(what)!r} is a run. Leave --set out, or pass a TOML file.")
        model = load(what, trust=trust)
        source, chosen = cells_of(data, model.schema.x), "auto"
    else:
        model, source, chosen = _described(what, data, settings)
    table = profile(model, source, steps=steps, batch=batch, device=device or chosen, threads=threads)
    if as_json:
        import typer

        typer.echo(json.dumps({"facts": table.attrs, "rows": table.to_dict("records")}))
    else:
        _print(table)


def _described(config: Path, data: Path, settings: Sequence[str] | None) -> tuple[Model, Source, str]:
    """The untrained model of a configuration with the plan of [fit], its cells, and the device."""
    tables = read_config(config)
    override(tables, settings)
    tables = checked(tables)
    source, tables = prepare(cells_of(data, tables["data"].pop("x", None)), tables)
    schema = Schema.of(source, **with_blanks(tables["data"], source.obs))
    model: Model = callables(tables)["model"](schema, **{k: v for k, v in tables["model"].items() if k != "preset"})
    known = {field.name for field in fields(Plan)}
    model.plan = replace(model.plan, **{name: value for name, value in tables["fit"].items() if name in known})
    return model, source, tables["fit"].get("device", "auto")


def _print(table: Any) -> None:
    about = table.attrs
    where = f"{about['device']} ({about['machine']}), {about['threads']} thread{'s' * (about['threads'] != 1)}, {about['precision']}"
    cells = f"{about['cells']:,} cells × {about['genes']:,} genes, {100 * about['filled']:.3g} % not zero"
    parts = table[table["kind"].isin(["part", "step"])]
    rows = [(r.part, f"{r.ms:.3f}", f"{100 * r.share:.1f} %", r.what) for r in parts.itertuples()]
    show.say(f"{cells}. {where}.")
    title = f"A step of {about['preset']}, {about['batch']:,} cells; medians of {about['steps']} steps"
    show.table(title, ["part", "ms", "share", "what"], rows, numbers=["ms", "share"])
    wide = table[table["kind"].isin(["forward", "backward"])].pivot_table(index=["part", "what"], columns="kind", values="ms", sort=False)
    rows = [(*name, f"{r['forward']:.3f}", f"{r['backward']:.3f}") for name, r in wide.iterrows()]
    heads = ["layer", "shape", "forward", "backward"]
    show.table("Its matrix multiplications alone, each layer dense, ms", heads, rows, numbers=heads[2:])
    bound = table.loc[table["kind"] == "bound", "ms"].iloc[0]
    show.say(
        f"{about['cells_per_second']:,.0f} cells per second. The multiplications alone, {bound:.3f} ms, would allow "
        f"{about['bound_cells_per_second']:,.0f}: {100 * about['share_of_bound']:.0f} % of that bound is reached. "
        f"{about['operators']:,} operators per step."
    )
