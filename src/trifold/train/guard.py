"""Stops training at the first value that is not finite or has diverged, without a synchronisation per step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trifold.errors import TrainingError
from trifold.records import Report

CHECK_EVERY = 20  # steps between copies of good weights, and between looks at a device where a look costs a synchronisation
_DIVERGED = 1e4  # a loss that is this many times the first one (plus one nat) ...
_PATIENCE = 5  # ... for so many steps on end has diverged; one odd minibatch has not


class Guard:
    """Notes on the device when a quantity first goes wrong, looks now and then, and puts good weights back.

    Args:
        network: Whose weights.
        every: Steps between looks.
    """

    def __init__(self, network: nn.Module, *, every: int):
        self.network = network
        self.every = every
        self.names: list[str] = []
        self.first: Tensor | None = None  # step at which each quantity first went wrong; -1: never
        self.limit = self.over = torch.zeros(())
        self.last: Report | None = None
        self.saved, self.saved_at = weights_of(network), 0

    def look(self, out: Report, norm: Tensor, step: int, lr: float) -> tuple[list[str], Tensor]:
        """Note the step at which a quantity first goes wrong; every few steps, act on it.

        Args:
            out: Of this step.
            norm: [] of the gradient.
            step: Number of steps before this one.
            lr: For the message.

        Returns:
            Names of the terms, then ``"loss"``, and their values [k].

        Raises:
            TrainingError: Something went wrong.
        """
        self.names, self.last = [*out.values, "gradient", "loss"], out
        values = torch.stack([*out.values.values(), out.loss.detach(), norm.detach()]).float()
        loss = values[-2].abs()
        if self.first is None:
            self.first = torch.full((len(self.names),), -1, device=values.device)
            self.limit = _DIVERGED * (1 + loss)
            self.over = torch.zeros_like(loss)
        self.over = torch.where(loss > self.limit, self.over + 1, torch.zeros_like(self.over))
        good = torch.isfinite(values)
        good = torch.cat([good[:-2], good[-1:], (self.over < _PATIENCE)[None]])
        self.first = torch.where((self.first < 0) & ~good, step, self.first)
        if (step + 1) % self.every == 0:
            self.settle(lr)
        if (step + 1) % CHECK_EVERY == 0 and float(self.over) == 0:
            self.saved, self.saved_at = weights_of(self.network), step
        return [*out.values, "loss"], values[:-1]

    def settle(self, lr: float) -> None:
        """Look at the device and stop if something went wrong.

        Raises:
            TrainingError: Something did.
        """
        bad = [] if self.first is None else [(s, name) for s, name in zip(self.first.tolist(), self.names, strict=True) if s >= 0]
        if bad:
            self.stop(*min(bad, key=lambda b: b[0]), lr)  # of one step, the term before the gradient that it spoils

    def stop(self, step: int, name: str, lr: float) -> None:
        """Put good weights back and stop.

        Args:
            step: At which it happened.
            name: Of a term, or ``"gradient"``, ``"loss"``, ``"validation loss"``.
            lr: For the message.

        Raises:
            TrainingError: Always.
        """
        self.network.load_state_dict(self.saved)
        how = "NaN or infinite"
        if name == "loss" and self.last is not None:  # finite, and out of all proportion: the largest term is to blame
            shares = {term: abs(float(value) * self.last.weights.get(term, 1.0)) for term, value in self.last.values.items()}
            name, how = max(shares, key=lambda term: shares[term]), "ten thousand times the first loss"
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
