"""Stops training at the first value that is not finite or has diverged, without a synchronisation per step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trifold.errors import TrainingError
from trifold.records import Report

CHECK_EVERY = 20  # steps between copies of good weights, and between looks at a device where a look costs a synchronisation
_DIVERGED = 1e4  # a loss that is this many times the first one (plus one nat) ...
_PATIENCE = 5  # ... for so many steps on end has diverged; one odd minibatch has not


class Guard:
    """Keeps each step's values on the device, looks at them now and then, and puts good weights back where one went wrong.

    Args:
        network: Whose weights.
        every: Steps between looks.
    """

    def __init__(self, network: nn.Module, *, every: int):
        self.network = network
        self.every = every
        self.names: list[str] = []  # of the terms, then "loss"
        self.limit: float | None = None  # of the loss
        self.over = 0  # steps on end above it
        self.weights: Mapping[str, float] = {}
        self.saved, self.saved_at = weights_of(network), 0
        self._unseen: list[tuple[int, int, Tensor]] = []

    def note(self, out: Report, norm: Tensor, step: int, cells: int) -> None:
        """Take a step's values; nothing is looked at.

        Args:
            out: Of this step.
            norm: [] of the gradient.
            step: Number of steps before this one.
            cells: In its minibatch.
        """
        self.names, self.weights = [*out.values, "loss"], out.weights
        self._unseen.append((step, cells, torch.stack([*out.values.values(), out.loss.detach(), norm.detach()]).float()))

    def due(self, done: int) -> bool:
        """Whether to look after so many steps."""
        return done % self.every == 0

    def settle(self, lr: float) -> list[tuple[int, list[float]]]:
        """Look, and stop if something went wrong.

        Args:
            lr: For the message.

        Returns:
            (cells, values of the terms and the loss) of each step since the last look.

        Raises:
            TrainingError: Something did.
        """
        if not self._unseen:
            return []
        rows = [self._unseen[0][2].tolist()] if len(self._unseen) == 1 else torch.stack([v for _, _, v in self._unseen]).tolist()
        steps, self._unseen = self._unseen, []
        for (step, _, _), row in zip(steps, rows, strict=True):
            for name, value in zip((*self.names[:-1], "gradient"), (*row[:-2], row[-1]), strict=True):
                if not math.isfinite(value):
                    self.stop(step, name, lr)  # the first term before the gradient that it spoils
            loss = abs(row[-2])
            self.limit = _DIVERGED * (1 + loss) if self.limit is None else self.limit
            self.over = self.over + 1 if loss > self.limit else 0
            if self.over >= _PATIENCE:  # finite, and out of all proportion: the largest term is to blame
                shares = {name: abs(value * self.weights.get(name, 1.0)) for name, value in zip(self.names, row[:-2], strict=False)}
                self.stop(step, max(shares, key=lambda name: shares[name]), lr, how="ten thousand times the first loss")
        last = steps[-1][0]
        if (last + 1) % CHECK_EVERY == 0 and self.over == 0:
            self.saved, self.saved_at = weights_of(self.network), last
        return [(cells, row[:-1]) for (_, cells, _), row in zip(steps, rows, strict=True)]

    def stop(self, step: int, name: str, lr: float, *, how: str = "NaN or infinite") -> None:
        """Put good weights back and stop.

        Args:
            step: At which it happened.
            name: Of a term, or ``"gradient"``, ``"validation loss"``.
            lr: For the message.
            how: What it became.

        Raises:
            TrainingError: Always.
        """
        self.network.load_state_dict(self.saved)
        what = {"gradient": "the gradient", "validation loss": "the validation loss"}.get(name, f"term {name!r}")
        raise TrainingError(
            f"{what[0].upper()}{what[1:]} became {how} at step {step}. The model was put back to step {self.saved_at}. "
            f"Lower lr (now {lr:g}), or look for extreme values with trifold.check.",
            step=step,
            term=name,
        )


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: t.detach().clone() for name, t in network.state_dict().items()}
