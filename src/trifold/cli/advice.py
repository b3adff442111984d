"""Arguments that an error says to pass, as options of the command that was typed: ``missing='zero'`` is ``--missing zero``."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable
from typing import Any, get_type_hints

_ADVICE = re.compile(r"\b(?:[Pp]ass|choose) .*", re.DOTALL)
_VALUE = "|".join(
    (
        r"'(?P<one>[^']*)'",
        r'"(?P<two>[^"]*)"',
        r"<(?P<kind>\w+)[^>]*>",
        r"\{'(?P<key>\w+)': '(?P<for>\w+)'\}",
        r"\['(?P<of>[^']*)'\]",
        r"(?P<bare>\w+(?:\.\d+)?(?:e?-\d+)?)(?![\w(]|\.\w)",
    )
)
_GIVEN = re.compile(rf"(?<![\w.=(])(?P<name>[a-z_]+)=(?:{_VALUE})")


def typed(message: str, command: Callable[..., Any]) -> str:
    """A sentence with the options to type, or an empty string where the message names no argument that the command takes.

    Args:
        message: Of an error.
        command: With its options as ``typer`` reads them.
    """
    advice = _ADVICE.search(message)
    if advice is None or "--" in message:
        return ""
    flags = _flags(command)
    found = [_option(match, flags) for match in _GIVEN.finditer(advice[0])]
    options = list(dict.fromkeys(option for option in found if option))
    return f" On the command line: {', or '.join(options)}" if options else ""


def _option(given: re.Match[str], flags: dict[str, str]) -> str:
    name, value = given["name"], _value(given)
    if name == "overwrite":
        return flags.get("force", "")
    table = _table(name)
    asks = "run" in flags  # then the data are read as the run's own were, and --kind is of something else
    if name in flags and not (asks and table == "data"):
        if value == "True":
            return flags[name]
        return "" if value in ("False", "None") else f"{flags[name]} {shlex.quote(value)}"
    return f"--set {shlex.quote(f'{table}.{name}={value}')}" if "set" in flags and table else ""


def _value(given: re.Match[str]) -> str:
    if given["key"] is not None:
        return f"{given['key']}={given['for']}"
    if given["kind"] is not None:
        return given["kind"].upper()
    return next(given[part] for part in ("one", "two", "of", "bare") if given[part] is not None)


def _flags(command: Callable[..., Any]) -> dict[str, str]:
    """Name of an option -> how it is typed; ``"run"`` too for a command that asks one."""
    out = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        for about in getattr(hint, "__metadata__", ()):
            if name == "run" or type(about).__name__ == "OptionInfo":
                own = [text for text in (about.default, *(about.param_decls or ())) if isinstance(text, str) and text.startswith("--")]
                flag = own[0] if own else "--" + name.replace("_", "-")
                out["run" if name == "run" else flag[2:].replace("-", "_")] = flag
    return out


def _table(name: str) -> str:
    """The table of a configuration that a key belongs to, or an empty string."""
    from trifold import presets
    from trifold.data import Schema
    from trifold.model import Model

    builders = [getattr(presets, preset) for preset in presets.__all__]
    takes: dict[str, list[Any]] = {"data": [Schema.of], "fit": [Model.fit], "model": builders}
    return next((table for table, functions in takes.items() if any(name in inspect.signature(f).parameters for f in functions)), "")
