"""What a term of an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

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
