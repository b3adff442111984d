"""``column=value`` of the command line, with values as the data hold them: ``dose=3`` is the number where the column holds numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trifold.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd


def pairs(given: Sequence[str] | None, *, option: str, example: str = "condition=stimulated") -> dict[str, list[str]]:
    """Column -> values, in the order given; a column that is named twice has two values.

    Args:
        given: Texts ``"column=value"``.
        option: As the user wrote it, ``"--to"``.
        example: For the message.

    Raises:
        SpecError: A text has no ``=``, or nothing before it.
    """
    out: dict[str, list[str]] = {}
    for text in given or ():
        column, equals, value = text.partition("=")
        if not (equals and column.strip()):
            raise SpecError(f"{option} needs column=value; found {text!r}. For instance: {option} {example}.")
        out.setdefault(column.strip(), []).append(value.strip())
    return out


def selection(given: Mapping[str, Sequence[Any]], obs: pd.DataFrame) -> dict[str, Any]:
    """Column -> the value, or list of values, as obs holds them. What obs lacks stays text, for the data layer to refuse by name."""
    found = {c: [_typed(v, _values(obs, c)) for v in values] for c, values in given.items()}
    return {c: values[0] if len(values) == 1 else values for c, values in found.items()}


def target(given: Mapping[str, Sequence[str]], schema: Any, *, option: str = "--to") -> dict[str, Any]:
    """Column -> the one value to predict, as the schema holds it.

    Args:
        given: Column -> values, from :func:`pairs`.
        schema: Of the model.
        option: As the user wrote it.

    Raises:
        SpecError: A column has two values.
    """
    known = {c.name: getattr(c, "values", None) for columns in schema.roles.values() for c in columns}
    out: dict[str, Any] = {}
    for column, values in given.items():
        if len(values) > 1:
            raise SpecError(f"{option} needs one value for each column; found {column}={' and '.join(values)}. Ask one by one.")
        out[column] = _number(values[0]) if column in known and known[column] is None else _typed(values[0], known.get(column) or ())
    return out


def policies(given: Sequence[str] | None) -> str | dict[str, str]:
    """What becomes of unknown covariates: one policy, or role -> policy; what they are called is looked at by the model.

    Args:
        given: Texts ``"zero"`` or ``"spurious=zero"``.

    Raises:
        SpecError: A policy for all roles beside another one, or two for a role.
    """
    given = list(given or ["error"])
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    found = pairs(given, option="--unknown", example="spurious=zero")
    twice = next((role for role, values in found.items() if len(values) > 1), None)
    if twice is not None:
        raise SpecError(f"--unknown needs one policy for each role; found {twice}={' and '.join(found[twice])}. Leave one out.")
    return {role: values[0] for role, values in found.items()}


def with_blanks(roles: Mapping[str, Any], obs: pd.DataFrame) -> dict[str, Any]:
    """Keyword arguments of ``Schema.of``; ``unlabelled`` as the columns hold it: ``-1`` is a number where they hold numbers."""
    given = roles.get("unlabelled")
    if given is None:
        return dict(roles)
    named = [roles.get(role) or [] for role in ("invariant", "label")]
    columns = [column for names in named for column in ([names] if isinstance(names, str) else names)]
    known = [v for column in columns for v in _values(obs, column)]
    return {**roles, "unlabelled": [_typed(v, known) for v in (given if isinstance(given, list) else [given])]}


def _values(obs: pd.DataFrame, column: str) -> list[Any]:
    return [v.item() if hasattr(v, "item") else v for v in obs[column].dropna().unique()] if column in obs else []


def _typed(value: Any, known: Iterable[Any]) -> Any:
    """The known value that the text stands for, else the text."""
    known = list(known)
    if not isinstance(value, str) or value in known:
        return value
    same = [v for v in known if str(v) == value]
    if same:
        return same[0]
    number = _number(value)
    return number if not isinstance(number, str) and number in known else value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
