"""The whole training loop, readable aloud. It gets callables and modules, and does not know ``Model``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trifold.errors import DeviceError, TrainingError
from trifold.records import Batch, Progress, Report
from trifold.train.history import History
from trifold.train.plan import Plan

Batches = Callable[[int], Iterable[Batch]]  # epoch -> its minibatches
Step = Callable[[Batch, Progress], Report]

_CHECK_EVERY = 20  # steps between copies of good weights, and between looks at a device where a look costs a synchronisation
_DIVERGED = 1e4  # a loss that is this many times the first one (plus one nat) ...
_PATIENCE = 5  # ... for so many steps on end has diverged; one odd minibatch has not


def fit(
    network: nn.Module,
    step: Step,
    batches: Batches,
    plan: Plan,
    *,
    steps: int,
    epochs: int,
    cells: int,
    validation: Callable[[], Iterable[Batch]] | None = None,
    watch: Mapping[str, float] | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """Train a network in place. With early stopping, the weights that were best on the watched cells are restored at the end.

    The global random generators are left as they were found; all noise comes from ``seed``.

    Args:
        network: Everything that has parameters. Left on the CPU, in evaluation mode.
        step: (Batch, Progress) -> Report: the forward pass and the objective.
        batches: epoch -> the minibatches of that epoch.
        plan: Learning rate, patience and the like.
        steps: Minibatches per epoch, for schedules.
        epochs: Number of epochs at most.
        cells: Number of training cells.
        validation: () -> the minibatches to watch. None: no early stopping, the last weights are kept.
        watch: term -> weight, of the terms whose sum is watched, as ``validation/watched``; None: the loss.
        seed: Of dropout and of the noise of z.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        report: Called with each epoch's row of the history.

    Returns:
        One row per epoch.

    Raises:
        TrainingError: A term or the gradient is not finite, or a term has diverged. Good weights, at most 20 steps old, are put back.
        DeviceError: The device is not there.
    """
    fabric = launch(device, plan.precision)
    history = History()
    with _own_noise(seed, fabric.device):
        network.train()
        network.to(fabric.device)
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = _optimizer(trained, plan)
        best, best_loss, since = network.state_dict(), math.inf, 0
        guard = _Guard(network, every=1 if fabric.device.type == "cpu" else _CHECK_EVERY)  # on the CPU a look is free
        done, lr = 0, plan.lr
        try:
            for epoch in range(epochs):
                began = time.perf_counter()
                mean = _Mean()
                for batch in batches(epoch):
                    at = Progress(step=done, steps=steps * epochs, epoch=epoch, epochs=epochs, cells=cells)
                    for group in optimizer.param_groups:
                        group["lr"] = lr * plan.rate(at)
                    optimizer.zero_grad(set_to_none=True)
                    with fabric.autocast():
                        out = step(batch.to(fabric.device), at)
                    out.loss.backward()
                    norm = nn.utils.clip_grad_norm_(trained, plan.clip if plan.clip is not None else math.inf)
                    guard.look(out, norm, done, lr)
                    optimizer.step()
                    mean.add(out, batch.n)
                    done += 1
                guard.settle(lr)
                row = {"epoch": epoch, "step": done, "lr": lr * plan.rate(at), **mean.row("train")}
                if validation is not None:
                    row |= _watch(network, step, validation(), fabric, seed, cells)
                    if watch is not None:
                        row["validation/watched"] = sum(weight * row.get(f"validation/{name}", 0.0) for name, weight in watch.items())
                    loss = row["validation/loss" if watch is None else "validation/watched"]
                    if not math.isfinite(loss):
                        guard.stop(done, "validation loss", lr)
                    since = 0 if loss < best_loss - 1e-4 * abs(best_loss if math.isfinite(best_loss) else 0) else since + 1
                    if loss < best_loss:
                        best = best if plan.patience is None else _copy(network)  # kept only where it can be restored
                        best_loss = loss
                    if plan.plateau is not None and since > 0 and since % plan.plateau == 0:
                        lr = max(lr * 0.3, 1e-6)
                row["seconds"] = time.perf_counter() - began
                history.add(row)
                if report is not None:
                    report(row)
                if validation is not None and plan.patience is not None and since >= plan.patience:
                    break
            if plan.patience is not None and math.isfinite(best_loss):
                network.load_state_dict(best)
        finally:
            network.eval()
            network.to("cpu")
    return history


def launch(device: str, precision: str = "32-true") -> Any:
    """Lightning Fabric on one device.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: As Fabric names it.

    Raises:
        DeviceError: The device is not there.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise DeviceError(f"device={device!r} was asked for and is not there; this machine has: {found}.")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Fabric's own dependencies, at import
        from lightning_fabric import Fabric
    return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]


class _Guard:
    """Stops at the first value that is not finite or has diverged, and puts good weights back, without a synchronisation per step."""

    def __init__(self, network: nn.Module, *, every: int):
        self.network = network
        self.every = every
        self.names: list[str] = []
        self.first: Tensor | None = None  # step at which each quantity first went wrong; -1: never
        self.limit = self.over = torch.zeros(())
        self.shares: dict[str, Tensor] = {}
        self.saved, self.saved_at = _copy(network), 0

    def look(self, out: Report, norm: Tensor, step: int, lr: float) -> None:
        """Note the step at which a quantity first goes wrong; every few steps, act on it."""
        loss = out.loss.detach().float().abs()
        self.names = [*out.values, "gradient", "loss"]
        self.shares = {name: value * out.weights.get(name, 1.0) for name, value in out.values.items()}
        values = torch.stack([*(v.float() for v in out.values.values()), norm.detach().float()])
        if self.first is None:
            self.first = torch.full((len(self.names),), -1, device=values.device)
            self.limit = _DIVERGED * (1 + loss)
            self.over = torch.zeros_like(loss)
        self.over = torch.where(loss > self.limit, self.over + 1, torch.zeros_like(self.over))
        good = torch.cat([torch.isfinite(values), (self.over < _PATIENCE)[None]])
        self.first = torch.where((self.first < 0) & ~good, step, self.first)
        if (step + 1) % self.every == 0:
            self.settle(lr)
        if (step + 1) % _CHECK_EVERY == 0 and float(self.over) == 0:
            self.saved, self.saved_at = _copy(self.network), step

    def settle(self, lr: float) -> None:
        """Look at the device and stop if something went wrong."""
        bad = [] if self.first is None else [(s, name) for s, name in zip(self.first.tolist(), self.names, strict=True) if s >= 0]
        if bad:
            self.stop(*min(bad, key=lambda b: b[0]), lr)  # of one step, the term before the gradient that it spoils

    def stop(self, step: int, name: str, lr: float) -> None:
        self.network.load_state_dict(self.saved)
        how = "NaN or infinite"
        if name == "loss":  # finite, and out of all proportion: the largest term is to blame
            name, how = max(self.shares, key=lambda n: abs(float(self.shares[n]))), "ten thousand times the first loss"
        what = {"gradient": "the gradient", "validation loss": "the validation loss"}.get(name, f"term {name!r}")
        raise TrainingError(
            f"{what[0].upper()}{what[1:]} became {how} at step {step}. The model was put back to step {self.saved_at}. "
            f"Lower lr (now {lr:g}), or look for extreme values with trifold.check.",
            step=step,
            term=name,
        )


class _Mean:
    """Means over cells, kept on the device until the epoch ends."""

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.cells = 0

    def add(self, out: Report, n: int) -> None:
        for name, value in [*out.values.items(), ("loss", out.loss.detach())]:
            self.total[name] = self.total.get(name, 0.0) + value * n  # type: ignore[assignment]
        self.cells += n

    def row(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}/{name}": float(total) / max(1, self.cells) for name, total in self.total.items()}


def _watch(network: nn.Module, step: Step, batches: Iterable[Batch], fabric: Any, seed: int, cells: int) -> dict[str, float]:
    """Mean over the watched cells, with the last weights of every schedule and the same noise each time."""
    mean = _Mean()
    network.eval()
    with torch.no_grad(), _own_noise(seed, fabric.device):
        for batch in batches:
            with fabric.autocast():
                mean.add(step(batch.to(fabric.device), Progress.done(cells)), batch.n)
    network.train()
    return mean.row("validation")


@contextmanager
def _own_noise(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generators seeded inside and put back after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _optimizer(parameters: list[nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if plan.weight_decay > 0 else torch.optim.Adam
    return kind(parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in network.state_dict().items()}
