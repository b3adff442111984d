"""The three tables of a run, ``[data]``, ``[model]`` and ``[fit]``: keyword arguments of ``Schema.of``, the preset and ``Model.fit``.

Two keys are the command line's own: ``data.genes``, the number of most variable genes to keep, and ``model.preset``.
"""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trifold.errors import SpecError, listing, suggest

TABLES = ("data", "model", "fit")
Tables = dict[str, dict[str, Any]]
_OWN: dict[str, dict[str, Any]] = {"data": {"genes": int | None}, "model": {"preset": str}, "fit": {}}
_LEFT_OUT = {"data": ("data", "obs", "cls"), "model": ("schema",), "fit": ("self", "data", "on_epoch")}


def read_config(path: Path | None) -> Tables:
    """The tables of a TOML file; three empty ones without a file. Keys are looked at in :func:`checked`.

    Raises:
        SpecError: The file is no TOML, or holds something else than the three tables.
    """
    if path is None:
        return {table: {} for table in TABLES}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{str(path)!r} must be TOML; found: {error}. Write tables and keys: [fit], and below it epochs = 20.") from None
    for name, value in found.items():
        _require_table(name, f"{str(path)!r}")
        if not isinstance(value, dict):
            raise SpecError(f"[{name}] of {str(path)!r} must be a table; found {value!r}. Write [{name}], and keys below it.")
    return {table: dict(found.get(table, {})) for table in TABLES}


def override(tables: Tables, given: Sequence[str] | None) -> None:
    """Put ``table.key=value`` into the tables. Values are TOML; what is not is taken as text: ``fit.hold_out.cell_type=NK``.

    Raises:
        SpecError: No ``=``, no table, or a table that is not one of the three.
    """
    for text in given or ():
        path, equals, value = text.partition("=")
        names = [name.strip() for name in path.split(".", 2)]
        if not equals or len(names) < 2 or not all(names):
            raise SpecError(f"--set needs table.key=value; found {text!r}. For instance: --set fit.epochs=20.")
        _require_table(names[0], "--set")
        here = tables[names[0]]
        for name in names[1:-1]:
            inner = here.setdefault(name, {})
            if not isinstance(inner, dict):
                raise SpecError(
                    f"--set {path.strip()} needs a table [{names[0]}.{name}]; found {name} = {inner!r}. Write that table in the file."
                )
            here = inner
        here[names[-1]] = _value(value.strip())


def checked(tables: Tables) -> Tables:
    """The tables with every key known and every value of a type that the argument takes; the word none stands for None.

    Raises:
        SpecError: An unknown key or preset, or a value of another type.
    """
    out: Tables = {}
    for table, f in callables(tables).items():
        takes = arguments(f, table)
        for key in tables[table]:
            if key not in takes:
                owner = [t for t, g in callables(tables).items() if key in arguments(g, t)]
                there = f" It belongs to [{owner[0]}]." if owner else suggest(key, takes)
                raise SpecError(f"[{table}] has no key {key!r}.{there} It has: {listing(takes, 30)}.")
        out[table] = {key: _accepted(value, takes[key], f"[{table}] {key}") for key, value in tables[table].items()}
    return out


def callables(tables: Tables) -> dict[str, Callable[..., Any]]:
    """Table -> the function whose keyword arguments it holds."""
    from trifold.data import Schema
    from trifold.model import Model

    return {"data": Schema.of, "model": preset_of(tables["model"].get("preset", "trvae")), "fit": Model.fit}


def preset_of(name: Any) -> Callable[..., Any]:
    """The preset of a name.

    Raises:
        SpecError: There is none.
    """
    from trifold import presets

    if name not in presets.__all__:
        raise SpecError(f"No preset is named {name!r}.{suggest(name, presets.__all__)} There are: {', '.join(presets.__all__)}.")
    found: Callable[..., Any] = getattr(presets, name)
    return found


def arguments(f: Callable[..., Any], table: str) -> dict[str, Any]:
    """Key -> annotation of what a table takes."""
    hints = get_type_hints(f, localns=_FOR_HINTS)
    names = [n for n in inspect.signature(f).parameters if n not in _LEFT_OUT[table]]
    return {**_OWN[table], **{n: hints.get(n, Any) for n in names}}


_FOR_HINTS = {"AnnData": Any}  # named in annotations, imported for type checking only


def _require_table(name: str, where: str) -> None:
    if name not in TABLES:
        raise SpecError(f"{where} names the table {name!r}.{suggest(name, TABLES)} There are three: {', '.join(TABLES)}.")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _accepted(value: Any, hint: Any, where: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = tuple(o for o in options if o is not types.EllipsisType)
    if isinstance(value, str) and value.lower() == "none" and types.NoneType in options:
        return None
    if not any(_fits(value, option) for option in options):
        raise SpecError(f"{where} needs {' or '.join(dict.fromkeys(map(_named, options)))}; found {value!r}.")
    return tuple(value) if isinstance(value, list) and "[model]" in where else value


def _fits(value: Any, option: Any) -> bool:
    if option is Any:
        return True
    base = get_origin(option) or option
    if base is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if base is Path:
        return isinstance(value, str)
    if isinstance(base, type) and issubclass(base, Mapping):
        return isinstance(value, dict)
    if isinstance(base, type) and issubclass(base, Sequence) and base is not str:
        inner = get_args(option)
        return isinstance(value, list) and all(not inner or _fits(v, inner[0]) for v in value)
    return isinstance(base, type) and isinstance(value, base)


def _named(option: Any) -> str:
    names = {"NoneType": "none", "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "Path": "a path"}
    base = get_origin(option) or option
    name = getattr(base, "__name__", str(base))
    return names.get(name, "a table" if name in ("Mapping", "dict") else "a list" if name in ("Sequence", "tuple") else name)
