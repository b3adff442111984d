"""``Asking``: what every question to a trained model needs: its parts, cells under its schema, and where answers go."""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from trifold import generation, labels, separation
from trifold.core import VAE
from trifold.data import Cells, Schema, open
from trifold.data.covariates import policies
from trifold.errors import NotFittedError, SpecError, TrifoldWarning
from trifold.inference import device_of
from trifold.marginal import collect, fillings, sees
from trifold.records import Batch
from trifold.results import Dense, Result, Sparse, stored
from trifold.technique import BIOLOGY, Axes
from trifold.terms import Objective

if TYPE_CHECKING:
    import numpy as np

Unknown = str | Mapping[str, str]


class Asking(ABC):
    """A trained model as questions see it."""

    schema: Schema
    vae: VAE
    objective: Objective
    preset: str | None
    card: dict[str, Any]
    axes: Axes | None

    def _need_fit(self, verb: str) -> None:
        if not self.card:
            raise NotFittedError(
                f"{verb} needs a trained model; this one has not been trained. Call fit(data) first, or trifold.load(path)."
            )

    def _cells(self, data: Any, *, missing: str = "error", unknown: Unknown = "error") -> Cells:
        """The cells to answer for, each of them: what training would drop is kept."""
        empty = "keep" if self.schema.empty == "drop" else self.schema.empty
        return Cells(open(data, x=self.schema.x), self.schema, missing=missing, unknown=unknown, empty=empty)

    def _blind_cells(self, data: Any, missing: str, unknown: Unknown) -> Cells:
        """The cells, whatever their biology is called: it is not looked at."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"obs has no column .* \(invariant\)", TrifoldWarning)
            return self._cells(data, missing=missing, unknown={**policies(unknown), **dict.fromkeys(labels.TARGETS, "zero")})

    def _stream(
        self,
        cells: Cells,
        f: Callable[[Batch], Tensor],
        device: str,
        seen: Sequence[str],
        into: Result,
        *parts: nn.Module,
        decoded: bool = True,
    ) -> None:
        """F of all cells, [n, ...], averaged over roles that are seen and unknown if that is the policy; put in order, some at a time."""
        found, network = fillings(self.schema, self.card, cells.unknown, seen), nn.ModuleList([self.vae, *parts])
        collect(network, cells, f, found, device_of(device), into, decoded=decoded or self.vae.refine > 0)

    def _collect(
        self, cells: Cells, f: Callable[[Batch], Tensor], device: str, seen: Sequence[str], *parts: nn.Module, decoded: bool = True
    ) -> np.ndarray:
        """[n, ...] what :meth:`_stream` puts."""
        into = Dense(cells.n)
        self._stream(cells, f, device, seen, into, *parts, decoded=decoded)
        return into.values

    def _delivered(
        self,
        fill: Callable[[Result], None],
        out: Path | None,
        obs: pd.DataFrame,
        names: Sequence[str],
        about: Mapping[str, Any],
        *,
        sparse: bool = False,
    ) -> Any:
        """[n, k] the rows that ``fill`` puts, or the path of the AnnData file that they were written to."""
        if out is None:
            into: Any = Sparse(len(obs)) if sparse else Dense(len(obs))
            fill(into)
            return into.values
        with stored(out, len(obs), obs=obs, names=names, about=about, sparse=sparse) as file:
            fill(file)
        return out

    def _about(self, **about: Any) -> dict[str, Any]:
        """How an answer was made, for ``uns``."""
        return {"trifold": {**about, "preset": self.preset or "", "x": self.schema.kind}}

    def _table(self, data: Any, f: Callable[[Batch], Tensor], columns: list[str], device: str, *, missing: str = "error") -> pd.DataFrame:
        cells = self._cells(data, missing=missing)
        return pd.DataFrame(self._collect(cells, f, device, ()), index=cells.obs.index, columns=columns)

    def _drawn(self, given: Mapping[str, Any], n: int, size: float | None, seed: int) -> tuple[Batch, pd.DataFrame]:
        """Cells without rows, and their covariates, as in training."""
        seen = sees(self.vae, self.schema, decoded=True, to=dict.fromkeys(separation.columns_of(self.schema, self.vae.prior.roles)))
        obs = generation.covariates_of(self.schema, self.card, seen, given, n, seed)
        return generation.batch_of(self.schema, obs, generation.library_sizes(self.card, n, size, seed)), obs

    def _rectifiable(self, block: str | None) -> bool:
        """Whether rectified coordinates are those of the invariant block; refused of another block, or of several."""
        if block is None and BIOLOGY not in self.vae.prior.slices:
            return False
        if block != BIOLOGY:
            raise SpecError(f"rectified=True is for the invariant block; found block={block!r}. Pass block='invariant'.")
        return True
