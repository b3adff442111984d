"""Where training runs: a device by Lightning Fabric, and the processes that share one model."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from trifold.errors import DeviceError
from trifold.share import ALONE, Share


def launch(device: str, precision: str = "32-true", *, devices: int = 1, nodes: int = 1) -> Any:
    """Lightning Fabric on a device; of several, this process's part of a group that torchrun, SLURM or ``together`` began.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: As Fabric names it.
        devices: Processes on each machine, one device each (on the CPU: one process each).
        nodes: Machines.

    Raises:
        DeviceError: The device is not there, or not so many.
    """
    cards = require(device, devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Fabric's own dependencies, at import
        from lightning_fabric import Fabric
    several = devices * nodes > 1
    accelerator = "cpu" if device == "auto" and several and cards == 0 else device
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    if several:
        fabric.launch()
    return fabric


def require(device: str, devices: int = 1) -> int:
    """Number of CUDA devices, after finding out whether what is asked for is there.

    Raises:
        DeviceError: It is not, or not so many.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise DeviceError(
            f"device={device!r} was asked for and is not there; this machine has: {found}. Pass device='auto' for the best of these."
        )
    cards = torch.cuda.device_count()
    if devices > cards > 0 and device in ("auto", "cuda"):
        raise DeviceError(
            f"devices={devices} were asked for; this machine has {cards} CUDA device{'s' * (cards > 1)}. "
            "Lower devices, or pass device='cpu'."
        )
    return cards


def share_of(fabric: Any) -> Share:
    """This process's part of every minibatch."""
    return ALONE if fabric.world_size == 1 else Share(fabric.global_rank, fabric.world_size)


def group(devices: int, nodes: int) -> tuple[int, int]:
    """Processes on each machine, and machines: those that torchrun began, where it did, else as asked for."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, nodes
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def first() -> bool:
    """Whether this process is the one of its group that prints and writes."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def grouped() -> bool:
    """Whether torchrun, SLURM or :func:`trifold.train.together` began this process as one of a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or ("SLURM_NTASKS" in os.environ and int(os.environ["SLURM_NTASKS"]) > 1)
