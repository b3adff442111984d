"""What a term of an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.spec import Component


class Term(Component, nn.Module, ABC):
    """One summand of an objective: reads a pass, never writes; holds no network of the VAE.

    Attributes:
        joint: True when the value is not a sum over cells (MMD, independence): gradients must not be accumulated over parts of a batch.
    """

    joint: bool = False

    @abstractmethod
    def forward(self, p: Pass) -> Tensor:
        """The value: [n], one per cell, or [] for a joint term."""


def once(what: str) -> None:
    """Called where a gradient is given in closed form: refuses ``create_graph=True``, whose second derivative would lack this part.

    Args:
        what: Whose gradient it is.

    Raises:
        SpecError: The backward pass records a graph.
    """
    if torch.is_grad_enabled():
        raise SpecError(f"{what} has a first derivative only; found a backward pass with create_graph=True. Leave it out of that loss.")
