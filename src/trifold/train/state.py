"""Everything that changes while a model is trained: what a checkpoint holds, so that training goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trifold.errors import FormatError
from trifold.train.guard import Guard
from trifold.train.history import History


@dataclass
class Position:
    """Where training is.

    Args:
        epoch: Being trained, from 0.
        index: Minibatches of it that are done.
        done: Steps in all.
        lr: Learning rate, after plateaus and before the schedule.
        rate: Learning rate of the last step.
        best: Lowest watched loss.
        since: Epochs since then.
        seconds: Spent on this epoch.
    """

    epoch: int = 0
    index: int = 0
    done: int = 0
    lr: float = 0.0
    rate: float = 0.0
    best: float = math.inf
    since: int = 0
    seconds: float = 0.0


class Mean:
    """Means over cells of named values."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total: list[float] = []
        self.cells = 0

    def add(self, names: Sequence[str], values: Sequence[float], n: int) -> None:
        """Add the means over n cells."""
        self.names = list(names)
        self.total = [old + n * value for old, value in zip(self.total or [0.0] * len(values), values, strict=True)]
        self.cells += n

    def row(self, prefix: str) -> dict[str, float]:
        """``prefix/name`` -> mean."""
        return {f"{prefix}/{name}": value / max(1, self.cells) for name, value in zip(self.names, self.total, strict=True)}


@dataclass
class State:
    """The network, its optimiser, and how far training has come.

    Args:
        network: Everything that is trained, on the device.
        optimizer: Of its parameters.
        guard: Which watches it.
        best: Weights that were best on the watched cells; None: not kept.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    guard: Guard
    at: Position
    best: dict[str, Tensor] | None = None
    mean: Mean = field(default_factory=Mean)
    history: History = field(default_factory=History)

    def settle(self) -> None:
        """Look at the steps since the last look, and add their values up.

        Raises:
            TrainingError: Something went wrong in one of them.
        """
        for n, values in self.guard.settle(self.at.lr):
            self.mean.add(self.guard.names, values, n)

    def tensors(self) -> dict[str, Tensor]:
        """name -> tensor: weights, moments of the optimiser, best weights, generators; copies on the CPU."""
        moments = {
            f"optimizer.{i}.{name}": value for i, held in self.optimizer.state_dict()["state"].items() for name, value in held.items()
        }
        found = {f"network.{name}": t for name, t in self.network.state_dict().items()} | moments
        found |= {} if self.best is None else {f"best.{name}": t for name, t in self.best.items()}
        found["generator.cpu"] = torch.get_rng_state()
        device = next(iter(self.network.parameters())).device
        if device.type == "cuda":
            found["generator.cuda"] = torch.cuda.get_rng_state(device)
        return {name: t.detach().cpu().contiguous().clone() for name, t in found.items()}

    def facts(self) -> dict[str, Any]:
        """The rest, as plain data."""
        at = asdict(self.at) | {"best": self.at.best if math.isfinite(self.at.best) else None}
        mean = {"names": self.mean.names, "total": self.mean.total, "cells": self.mean.cells}
        guard = {"limit": self.guard.limit, "over": self.guard.over}
        return {"at": at, "mean": mean, "guard": guard, "history": self.history.rows}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`facts` gave.

        Raises:
            FormatError: They are not of this network.
        """
        device = next(iter(self.network.parameters())).device
        try:
            self.network.load_state_dict(_under("network.", tensors))
            self.optimizer.load_state_dict({"state": _moments(tensors), "param_groups": self.optimizer.state_dict()["param_groups"]})
            self.best = _under("best.", tensors) or None
            self.at = Position(**{**facts["at"], "best": math.inf if facts["at"]["best"] is None else facts["at"]["best"]})
            self.mean = Mean()
            self.mean.names, self.mean.total, self.mean.cells = (facts["mean"][key] for key in ("names", "total", "cells"))
            self.guard = Guard(self.network, every=self.guard.every)
            self.guard.saved_at = self.at.done - 1
            self.guard.limit, self.guard.over = facts["guard"]["limit"], facts["guard"]["over"]
            self.history = History(facts["history"])
            torch.set_rng_state(tensors["generator.cpu"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(tensors["generator.cuda"], device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"The checkpoint does not fit this model: {error}. Train the model that it is of, or pass resume=False to begin anew."
            ) from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _moments(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, t in _under("optimizer.", tensors).items():
        parameter, _, moment = name.partition(".")
        found.setdefault(int(parameter), {})[moment] = t
    return found
