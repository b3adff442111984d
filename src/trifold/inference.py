"""Passing over cells in chunks, without gradients, on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trifold.core import VAE
from trifold.data import Cells, batches
from trifold.records import Batch
from trifold.terms import KL
from trifold.train import launch

_CHUNK = 1024  # cells at a time
_MOST = 4096  # cells at a time of an answer that is streamed, where they hold few values
_VALUES = 1 << 21  # and else so many values at a time


def device_of(name: str) -> torch.device:
    """The device of a name: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``. Fabric is imported only where there is a choice.

    Raises:
        DeviceError: It is not there.
    """
    if name == "cpu" or (name == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available())):
        return torch.device("cpu")
    return launch(name).device  # type: ignore[no-any-return]


class Inference:
    """Evaluation mode, no gradients, on a device; the network is put back on the CPU after.

    Args:
        network: What is asked.
        device: Where.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network
        self.device = device
        self.no_grad = torch.no_grad()  # not inference mode: improving a latent takes gradients inside

    def __enter__(self) -> torch.device:
        self.network.eval()
        self.network.to(self.device)
        self.no_grad.__enter__()
        return self.device

    def __exit__(self, *error: Any) -> None:
        self.no_grad.__exit__(*error)
        self.network.to("cpu")


def cut(index: np.ndarray, size: int = _CHUNK) -> list[np.ndarray]:
    """The index in pieces of at most ``size``."""
    return [index[start : start + size] for start in range(0, len(index), size)]


def step_of(each: float) -> int:
    """How many cells are asked at a time: some 2 million values, at most 4,096 cells; a power of two, so that pieces fit chunks on disk.

    Args:
        each: Values of a cell that are held: of all genes where it is decoded.
    """
    return 1 << (max(1, min(_MOST, int(_VALUES // max(1.0, each)))).bit_length() - 1)


def values_of(cells: Cells, *, decoded: bool) -> float:
    """Values of a cell that are held: of each gene; where it is not decoded and rows are sparse, those that are not zero."""
    schema = cells.schema
    return len(schema.genes) * (schema.density if schema.sparse and not decoded else 1.0)


def chunks(cells: Cells, index: np.ndarray) -> Iterator[Batch]:
    """Some cells as batches, in order."""
    return batches(cells, cut(index, min(_CHUNK, step_of(values_of(cells, decoded=True)))))


def moments(cells: Cells, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """[g] mean and variance of x over some cells."""
    first, second = torch.zeros(2, len(cells.schema.genes), dtype=torch.float64)
    for batch in chunks(cells, index):
        if batch.rows.sparse:
            _, col, val = batch.rows.csr()
            val = val.double()
            first += torch.bincount(col, val, len(first))
            second += torch.bincount(col, val.square(), len(first))
        else:
            x = batch.rows.to_dense().double()
            first += x.sum(0)
            second += x.square().sum(0)
    mean = first / len(index)
    return mean.float(), (second / len(index) - mean**2).clamp_min(0).float()


def tensors(arrays: Mapping[str, np.ndarray], at: np.ndarray) -> dict[str, Tensor]:
    """role -> rows of an array, as tensors."""
    return {role: torch.from_numpy(array[at]) for role, array in arrays.items()}


def bound_of(vae: VAE, batch: Batch, generator: torch.Generator) -> Tensor:
    """[n, 3] evidence lower bound from one draw of z, log p(x | z, c), and KL, in nats."""
    p = vae(batch, generator=generator)
    kl, fit = KL()(p), vae.likelihood.log_prob(p.h, batch)
    return torch.stack([fit - kl, fit, kl], 1)
