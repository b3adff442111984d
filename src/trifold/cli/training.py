"""``trifold fit``: the three tables to a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trifold import labels, store
from trifold.cli import show
from trifold.cli.config import Tables, callables, checked, override, read_config
from trifold.cli.files import cells_of, in_memory, require_free
from trifold.cli.pairs import pairs, selection, with_blanks
from trifold.data import Findings, Schema, Source, splits
from trifold.data import check as look
from trifold.data.source import MemorySource
from trifold.errors import SpecError
from trifold.evaluate import variable_genes
from trifold.model import Model
from trifold.train import first


def train(
    path: Path,
    config: Path | None,
    flags: Mapping[str, Mapping[str, Any]],
    settings: Sequence[str] | None,
    hold_out: Sequence[str] | None,
    *,
    quiet: bool,
    force: bool,
) -> Model:
    """Train and save; print what was made and what to type next.

    Args:
        path: The data.
        config: TOML file.
        flags: Table -> keys given as flags: over the file.
        settings: Texts ``table.key=value``: over both.
        hold_out: Texts ``column=value``.
        quiet: No progress bar.
        force: Replace an earlier run.

    Raises:
        TrifoldError: As ``Schema.of``, the preset and ``Model.fit``; SpecError for the tables.
    """
    tables = read_config(config)
    for table, keys in flags.items():
        tables[table] |= keys
    given = pairs(hold_out, option="--hold-out")
    if given:
        tables["fit"]["hold_out"] = given
    override(tables, settings)
    tables = checked(tables)
    out = tables["fit"].pop("out", None)
    if out is None:
        raise SpecError('A run folder to write is needed; found none. Pass --out run, or out = "run" under [fit].')
    require_free(Path(out), force=force or bool(tables["fit"].get("resume")) or not first())
    store.check_writable(out)
    source, tables = prepare(cells_of(path, tables["data"].pop("x", None)), tables)
    fit: dict[str, Any] = {"progress": not quiet} | tables["fit"] | {"out": out}
    schema = Schema.of(source, **with_blanks(tables["data"], source.obs))
    model: Model = callables(tables)["model"](schema, **{k: v for k, v in tables["model"].items() if k != "preset"})
    together = fit.get("devices", 1) > 1 and not isinstance(source, MemorySource)
    model.fit(path if together else source, **fit)  # other processes open the file themselves
    if not first():
        return model
    show.run(model, out)
    _next(out, path, model, source, fit.get("hold_out"))
    return model


def prepare(source: Source, tables: Tables) -> tuple[Source, Tables]:
    """The cells with the chosen genes, and the tables with the hold-out in the data's own values and without ``genes``.

    Raises:
        SchemaError, DataError: The hold-out names no cells.
    """
    fit, data = dict(tables["fit"]), dict(tables["data"])
    if fit.get("hold_out"):
        named = {c: v if isinstance(v, list) else [v] for c, v in fit["hold_out"].items()}
        fit["hold_out"] = selection(named, source.obs)
    genes = data.pop("genes", None)
    if genes is not None:
        source = select_genes(source, genes, hold_out=fit.get("hold_out"), kind=data.get("kind"))
    return source, {**tables, "fit": fit, "data": data}


def select_genes(source: Source, count: int, *, hold_out: Mapping[str, Any] | None = None, kind: str | None = None) -> Source:
    """The cells, in memory, with the most variable genes of those that are not held out.

    Args:
        source: All cells.
        count: How many genes.
        hold_out: column -> value or list of values: cells that match all entries are not looked at.
        kind: ``"counts"``, ``"real"`` or ``"binary"``; None: from the values.

    Raises:
        EvaluationError: count is under one.
        SchemaError, DataError: The hold-out names no cells.
    """
    found: Findings = look(source)
    kept = ~splits.held_out(source.obs, hold_out) if hold_out else np.ones(source.n, dtype=bool)
    counts = (kind or found.kind(fractional="allow")) == "counts"
    chosen = variable_genes(source.rows(np.flatnonzero(kept)), count, kind="counts" if counts else "real")
    return in_memory(source, columns=chosen)


def _next(out: str, path: Path, model: Model, source: Source, hold_out: Mapping[str, Any] | None) -> None:
    """What to type now, with the data's own columns and values."""
    condition = [c.name for c in model.schema.roles.get("condition", ())]
    flat, blocks = model.preset == "gamma_vae", "invariant" in model.vae.prior.slices
    show.say("Next:", style="bold")
    show.say(f"  trifold latent {out} {path}{' --block invariant' * blocks}{' --rectified' * (flat or blocks)} --out latent.h5ad")
    if flat:
        column, values = _classes(source, model.schema, hold_out)
        by = f' --group "{column}"' if column else ""
        show.say(f"  trifold curvature {out} {path}{by} --out curvature.csv --plot plane.png")
        ends = " ".join(f'{option} "{column or "COLUMN"}={value}"' for option, value in zip(("--from", "--to"), values, strict=True))
        show.say(f"  trifold path {out} {path} {ends} --kind geodesic --out path.h5ad --plot genes.png")
    if blocks:
        _apart(out, path, model)
    if condition:
        value = (hold_out or {}).get(condition[0]) or getattr(model.schema.column(condition[0]), "values", ["VALUE"])[-1]
        value = value[0] if isinstance(value, list) else value
        show.say(f'  trifold predict {out} {path} --to "{condition[0]}={value}" --out predicted.h5ad')
    if set(hold_out or {}) & set(condition):
        show.say(f"  trifold evaluate {out} {path} --out scores.csv --plots plots")


def _apart(out: str, path: Path, model: Model) -> None:
    """What to type with a model of biology and technique."""
    if labels.has_predictor(model.objective):
        show.say(f"  trifold classify {out} {path} --out labels.csv")
    for column in model.schema.roles.get("spurious", ())[:1]:
        value = getattr(column, "values", ["VALUE"])[-1]
        show.say(f'  trifold predict {out} {path} --to "{column.name}={value}" --out predicted.h5ad')
        show.say(f"  trifold map {out} QUERY.h5ad --reference {path} --out mapped")


def _classes(source: Source, schema: Schema, hold_out: Mapping[str, Any] | None) -> tuple[str | None, list[Any]]:
    """A column between whose classes a path could run, and its two largest: a role of biology, what was held out, or a column of words."""
    named = [c.name for role in ("label", "invariant", "condition") for c in schema.roles.get(role, ())]
    technique = {c.name for c in schema.roles.get("spurious", ())}
    words = [str(c) for c in source.obs.columns if source.obs[c].dtype.kind not in "iufb" and c not in technique]
    for column in dict.fromkeys([*named, *(hold_out or {}), *words]):
        if column in source.obs and source.obs[column].dtype.kind != "f":
            cells = source.obs[column].value_counts()
            if 2 <= (cells > 0).sum() <= 50:
                return column, list(cells.index[:2])
    return None, ["A", "B"]
