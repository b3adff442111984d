"""How a model is trained, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trifold.errors import SpecError
from trifold.records import Progress
from trifold.spec import Component

_WARM = 20  # steps over which a decaying learning rate first rises


@dataclass(frozen=True)
class Plan(Component):
    """Everything that the training loop can be told.

    Args:
        epochs: Passes over the training cells; None: from the size of the data (see :meth:`epochs_for`).
        steps: Optimiser steps that ``epochs=None`` aims at.
        batch: Cells per minibatch.
        lr: Adam's learning rate.
        weight_decay: Decoupled weight decay (AdamW); 0: Adam.
        clip: Largest norm of the gradient; longer ones are scaled down. None: no clipping.
        patience: Epochs without a better validation loss after which training stops, and the best weights are
            restored. None: no early stopping, and the last weights are kept.
        decay: ``"cosine"``: the learning rate rises over 20 steps and then falls along half a cosine to 2 % of itself; ``"none"``.
        plateau: Epochs without a better validation loss after which the learning rate is multiplied by 0.3. None: never.
        validation: Share of the training cells that is kept out to watch, in [0, 1); 0: none.
        balance: Role whose categories get equal shares of every minibatch, or None.
        precision: ``"32-true"`` or ``"bf16-mixed"``.
        compile: Compile the forward pass with ``torch.compile``; where that fails, a warning says why and training goes on without it.

    Raises:
        SpecError: A number out of its range.
    """

    epochs: int | None = None
    steps: int = 6_000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.0
    clip: float | None = 50.0
    patience: int | None = 30
    decay: str = "none"
    plateau: int | None = 15
    validation: float = 0.1
    balance: str | None = None
    precision: str = "32-true"
    compile: bool = False

    def __post_init__(self) -> None:
        _need(self.epochs is None or self.epochs >= 1, "epochs", "a whole number >= 1, or None", self.epochs)
        _need(self.steps >= 1, "steps", "a whole number >= 1", self.steps)
        _need(self.batch >= 2, "batch", "at least 2 cells", self.batch)
        _need(self.lr > 0, "lr", "a number above 0", self.lr)
        _need(self.weight_decay >= 0, "weight_decay", "a number >= 0", self.weight_decay)
        _need(self.clip is None or self.clip > 0, "clip", "a number above 0, or None", self.clip)
        _need(self.patience is None or self.patience >= 1, "patience", "a number of epochs >= 1, or None", self.patience)
        _need(self.decay in ("none", "cosine"), "decay", "'none' or 'cosine'", self.decay)
        _need(self.plateau is None or self.plateau >= 1, "plateau", "a number of epochs >= 1, or None", self.plateau)
        _need(0 <= self.validation < 1, "validation", "a share in [0, 1)", self.validation)
        _need(self.precision in ("32-true", "bf16-mixed"), "precision", "'32-true' or 'bf16-mixed'", self.precision)

    def at(self, batch: int) -> Plan:
        """The plan for minibatches of another size: for larger ones the learning rate rises and the number of steps falls, both with the
        square root of the ratio, so that a run sees more cells in fewer steps and ends where it did (docs/performance.md).
        """
        ratio = max(1.0, batch / self.batch) ** 0.5
        return replace(self, batch=batch, lr=self.lr * ratio, steps=max(1, round(self.steps / ratio)))

    def rate(self, progress: Progress) -> float:
        """Factor of the learning rate at this progress, in (0, 1]."""
        if self.decay == "none":
            return 1.0
        return min(1.0, (progress.step + 1) / _WARM) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * progress.fraction)))

    def epochs_for(self, cells: int) -> int:
        """The number of epochs: as given, else about ``steps`` steps, at least 8 and at most 400 epochs."""
        if self.epochs is not None:
            return self.epochs
        per_epoch = max(1, -(-cells // self.batch))
        return int(min(400, max(8, round(self.steps / per_epoch))))


def _need(holds: bool, name: str, needed: str, found: object) -> None:
    if not holds:
        raise SpecError(f"{name} needs {needed}; found {found!r}.")
