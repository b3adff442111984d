"""Components to plain data and back: a model *is* its JSON.

The constructor contract: a component keeps every ``__init__`` argument under the argument's own name, and every argument is plain
data (None, bool, int, float, str, list, dict) or another component. Nothing else is needed to save and rebuild it.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trifold.errors import COPY, FormatError, SpecError, TrifoldError, suggest

_KEY = "class"
_DEEPEST = 50  # levels of nesting; those of our own components are under ten
_OTHER = "Another version wrote it, or it was edited: load it with the version of trifold that card.json names, or copy the run again."


class Component:
    """Marks a class that keeps the constructor contract."""


def to_spec(value: Any) -> Any:
    """A component, or plain data holding components, as plain data.

    Args:
        value: The component. Its class is named by dotted path under ``"class"``, its arguments by their names.

    Returns:
        None, bool, int, float, str, list or dict: what ``json`` writes.

    Raises:
        SpecError: An argument is not kept under its own name, or is neither plain data nor a component.
    """
    return _plain(value, "A specification")


def _plain(value: Any, where: str) -> Any:
    """As :func:`to_spec`; messages name the argument, ``"Ramp(end=)"``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"{where} needs a finite number; found {value}. Pass one.")
        return value
    if isinstance(value, Component):
        kind = type(value)
        given = {name: _plain(_kept(value, name), f"{kind.__name__}({name}=)") for name in arguments(kind)}
        return {_KEY: _path_of(kind), **given}
    if isinstance(value, Mapping):
        bad = [k for k in value if not isinstance(k, str) or k == _KEY]
        if bad:
            raise SpecError(f"{where} needs keys that are text, and not {_KEY!r}; found the key {bad[0]!r}. Rename it.")
        return {k: _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v, where) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item(), where)
    raise SpecError(
        f"{where} needs plain data or a component; found {type(value).__name__}. "
        "Pass numbers, text, lists, dictionaries, or an object whose class derives from trifold.spec.Component."
    )


def from_spec(spec: Any, *, trust: Sequence[str] = ()) -> Any:
    """The component that ``to_spec`` described.

    Args:
        spec: Plain data.
        trust: Dotted paths of classes outside trifold that may be imported, ``"mylab.cycle:Cycle"``, or whole modules, ``"mylab.cycle"``.

    Returns:
        The component, built by its constructor.

    Raises:
        FormatError: An unknown class, an unknown or missing argument, nesting beyond reason, or a foreign class that is not trusted.
    """
    return _built(spec, trust, 0)


def _built(spec: Any, trust: Sequence[str], depth: int) -> Any:
    if depth > _DEEPEST:
        raise FormatError(f"A specification is nested at most {_DEEPEST} levels deep; this one is deeper. {COPY}")
    if isinstance(spec, Mapping) and _KEY in spec:
        cls = _class_at(spec[_KEY], trust)
        given = {k: _built(v, trust, depth + 1) for k, v in spec.items() if k != _KEY}
        known = arguments(cls)
        for name in given:
            if name not in known:
                raise FormatError(f"{cls.__name__} has no argument {name!r}.{suggest(name, known)} It has: {', '.join(known)}. {_OTHER}")
        try:
            return cls(**given)
        except TrifoldError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError, MemoryError) as error:
            raise FormatError(f"{cls.__name__} cannot be built from the saved specification: {error}. {_OTHER}") from error
    if isinstance(spec, Mapping):
        return {k: _built(v, trust, depth + 1) for k, v in spec.items()}
    if isinstance(spec, list):
        return [_built(v, trust, depth + 1) for v in spec]
    return spec


def arguments(cls: type) -> list[str]:
    """Names of a constructor's arguments, in order."""
    owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
    if not issubclass(owner, Component):
        return []
    parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]  # type: ignore[misc]
    travelling = [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if travelling:
        raise SpecError(
            f"{cls.__name__}.__init__ must name every argument; found *{travelling[0].name}. "
            "Write them out, and keep each as an attribute of its name."
        )
    return [p.name for p in parameters]


def _kept(component: Component, name: str) -> Any:
    try:
        return getattr(component, name)
    except AttributeError:
        kind = type(component).__name__
        raise SpecError(f"{kind} must keep its argument {name!r} under that name: write self.{name} = {name}.") from None


def _path_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_at(path: Any, trust: Sequence[str]) -> type:
    if not isinstance(path, str) or path.count(":") != 1:
        raise FormatError(f"A class is named as 'package.module:Class'; found {path!r}. {COPY}")
    module, name = path.split(":")
    ours = module == "trifold" or module.startswith("trifold.")
    trusted = any(path == t or module == t or module.startswith(f"{t}.") for t in trust)
    if not (ours or trusted):
        raise FormatError(
            f"The saved model names the class {path!r}, which is not part of trifold. Loading it runs code of that module: "
            f"if you trust it, pass trust=[{path!r}]."
        )
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        fix = _OTHER if ours else "Install its package, or add its folder to PYTHONPATH."
        raise FormatError(f"The saved model names the class {path!r}, which cannot be imported: {error}. {fix}") from error
    if not (inspect.isclass(cls) and issubclass(cls, Component) and (cls.__module__ == module or trusted)):
        raise FormatError(
            f"{path!r} is not a component, a class that derives from trifold.spec.Component and is defined in that module. {_OTHER}"
        )
    return cls
