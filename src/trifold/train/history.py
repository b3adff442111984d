"""What happened in training: one row per epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from trifold.errors import COPY, FormatError


class History:
    """A table of epochs: ``epoch``, ``step``, ``lr``, ``seconds``, and for each term and ``loss`` ``train/NAME`` and ``validation/NAME``.

    Values are means over cells: nats per cell for log-probabilities, raw (unweighted) for each term.

    Args:
        rows: One mapping per epoch.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]] = ()):
        self.rows: list[dict[str, float]] = [dict(r) for r in rows]

    def add(self, row: Mapping[str, float]) -> None:
        """Append an epoch."""
        self.rows.append(dict(row))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        """Names in order of appearance."""
        return list(dict.fromkeys(k for row in self.rows for k in row))

    def frame(self) -> Any:
        """The table as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self.columns)

    def to_csv(self) -> str:
        """The table as text."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    @staticmethod
    def from_csv(text: str) -> History:
        """The table that ``to_csv`` wrote.

        Raises:
            FormatError: A value is not a number.
        """
        try:
            return History([{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(io.StringIO(text))])
        except (TypeError, ValueError, csv.Error) as error:
            raise FormatError(f"history.csv needs a header and numbers; found: {error}. {COPY}") from error
