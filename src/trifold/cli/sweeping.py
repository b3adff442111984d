"""``trifold sweep``: the three tables, ranges for some of their keys, and a study that other workers may share."""

from __future__ import annotations

import functools
import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from trifold.cli import show
from trifold.cli.config import Tables, callables, checked, override, read_config
from trifold.cli.files import cells_of, require_free, write
from trifold.cli.pairs import pairs, with_blanks
from trifold.cli.training import prepare, train
from trifold.data import Schema
from trifold.errors import SpecError
from trifold.folders import alone
from trifold.outputs import writing
from trifold.sweeps import Sweep, sweep
from trifold.sweeps.space import Space, space_of

_KEPT = "study.json"  # says whose folder it is, so that workers of one study may write to it, and nobody else


def search(
    config: Path,
    data: Path,
    space: Sequence[str],
    out: Path,
    *,
    trials: int,
    metric: str,
    storage: str | None,
    study: str | None,
    prune: bool,
    seed: int,
    settings: Sequence[str] | None,
    hold_out: Sequence[str] | None,
    refit: bool,
    quiet: bool,
    force: bool,
) -> Sweep:
    """Run trials, then write ``best.toml`` and ``trials.csv``, and with ``refit`` the run of the best; print what was found.

    Args:
        config: TOML file.
        data: The cells.
        space: Texts ``name=range``.
        out: Folder; workers of one study write to the same one.
        trials, metric, storage, study, prune, seed: As of :func:`trifold.sweeps.sweep`.
        settings: Texts ``table.key=value``, over the file.
        hold_out: Texts ``column=value``.
        refit: Train the best configuration, once no trial is running any more.
        quiet: Say nothing of single trials.
        force: Replace what is in the folder.

    Raises:
        TrifoldError: As ``Schema.of``, the preset and ``sweep``; SpecError for the tables, ranges and their values.
    """
    given = read_config(config)
    held = pairs(hold_out, option="--hold-out")
    if held:
        given["fit"]["hold_out"] = held
    override(given, settings)
    tables = checked(deepcopy(given))
    ranges = _ranges(space)
    build = callables(tables)["model"]
    found = space_of(ranges, functools.partial(build, None))
    _require_values(given, found)
    _require_ours(out, study, force=force)
    fit = {name: value for name, value in tables["fit"].items() if name not in ("out", "resume", "progress")}
    source, prepared = prepare(cells_of(data, tables["data"].pop("x", None)), {**tables, "fit": fit})
    schema = Schema.of(source, **with_blanks(prepared["data"], source.obs))
    fixed = {name: value for name, value in tables["model"].items() if name != "preset"}
    with _terminated():
        best = sweep(
            functools.partial(build, schema, **fixed),
            source,
            ranges,
            trials=trials,
            fit=prepared["fit"],
            metric=metric,
            storage=storage,
            study=study,
            prune=prune,
            seed=seed,
            report=None if quiet else functools.partial(_say, names=list(found)),
        )
    path = _write(out, best, given, study)
    _print(best, list(found))
    if not refit:
        show.say("Next:", style="bold")
        show.say(f"  trifold fit {data} --config {path} --out {out / 'run'}")
    elif (best.trials["state"] == "running").any():
        show.say("Trials are running elsewhere; the worker that ends last trains the best configuration.")
    else:
        train(data, path, {"fit": {"out": str(out / "run")}}, None, None, quiet=quiet, force=True)
    return best


def toml_of(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The three tables as TOML; None as the word none, which the tables take for it."""
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{_key(name)} = {_toml(value)}" for name, value in keys.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return _text(str(value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _ranges(space: Sequence[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in space:
        name, equals, ends = (part.strip() for part in text.partition("="))
        if not (name and equals and ends):
            raise SpecError(f"--space needs name=range; found {text!r}. For instance: --space latent=8..40 --space lr=1e-4..1e-2:log.")
        if name in out:
            raise SpecError(f"--space names {name!r} twice: {out[name]} and {ends}. Leave one out.")
        out[name] = ends
    return out


def _require_values(tables: Tables, space: Space) -> None:
    """Refuse a range whose ends, or options, are not values of the argument: before the first trial, not in the tenth."""
    for name, found in space.items():
        table, _, key = name.partition(".")
        for value in found.examples:
            trial = deepcopy(tables)
            trial[table][key] = value
            checked(trial)


def _require_ours(out: Path, study: str | None, *, force: bool) -> None:
    if not _ours(out, study):
        require_free(out, force=force)


def _ours(out: Path, study: str | None) -> bool:
    """Whether a worker of the same study wrote to a folder."""
    try:
        return study is not None and json.loads((out / _KEPT).read_text(encoding="utf-8")) == {"study": study}
    except (OSError, ValueError):
        return False


def _ended(trials: Any) -> int:
    """How many trials of a table have ended.

    Args:
        trials: The table, or the path of its CSV file; 0 where there is none.
    """
    import pandas as pd

    try:
        table = pd.read_csv(trials) if isinstance(trials, Path) else trials
        return int((table["state"] != "running").sum())
    except (OSError, ValueError, KeyError):
        return 0


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the trial, which another worker then runs anew, and exits with code 143."""

    def leave(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(out: Path, best: Sweep, given: Tables, study: str | None) -> Path:
    """The tables of the best trial, and all trials, unless another worker of the study has written what it knew later."""
    chosen = {name: value for name, value in best.fit.items() if name != "hold_out"}
    tables = {**given, "model": {**given["model"], **best.model}, "fit": {**given["fit"], **chosen}}
    head = f"# Trial {best.number}: {best.metric} {best.value:.6g}, on cells that it did not train on.\n"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        if not _ours(out, study) or _ended(out / "trials.csv") <= _ended(best.trials):
            write(out / _KEPT, lambda part: part.write_text(json.dumps({"study": study}) + "\n", encoding="utf-8"))
            write(out / "trials.csv", lambda part: best.trials.to_csv(part, index=False))
            write(out / "best.toml", lambda part: part.write_text(head + toml_of(tables), encoding="utf-8"))
    return out / "best.toml"


def _say(row: Mapping[str, Any], names: Sequence[str]) -> None:
    end = f"{row['value']:.4f} after {row['epochs']} epochs" if row["state"] != "failed" else str(row["reason"])
    chosen = ", ".join(f"{name}={_short(row[name])}" for name in names)
    show.say(f"trial {row['number']} {row['state']}: {end}; best {row['best']:.4f}; {chosen}")


def _print(best: Sweep, names: Sequence[str]) -> None:
    table = best.trials[best.trials["state"] == "finished"].sort_values("value").head(10)
    rows = [(r["number"], f"{r['value']:.4f}", r["epochs"], *(_short(r[name]) for name in names)) for _, r in table.iterrows()]
    counts = ", ".join(f"{count} {state}" for state, count in best.trials["state"].value_counts().items())
    title = f"The best of {len(best.trials)} trials ({counts}) by {best.metric}, on watched cells; lower is better"
    heads = ["trial", "-elbo" if best.metric == "elbo" else best.metric, "epochs"]
    show.table(title, [*heads, *names], rows, numbers=heads)
    for reason, part in best.trials[best.trials["reason"] != ""].groupby("reason"):
        show.say(f"Failed: {len(part)} because: {reason}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
