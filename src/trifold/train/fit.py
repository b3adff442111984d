"""The whole training loop, readable aloud. It gets callables and modules, and does not know ``Model``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trifold.errors import Interrupted, SpecError
from trifold.records import Batch, Progress, Report
from trifold.share import ALONE, Share, spread
from trifold.train.checkpoint import Checkpoints
from trifold.train.compiling import compiled
from trifold.train.guard import CHECK_EVERY, Guard, weights_of
from trifold.train.history import History
from trifold.train.launch import launch, share_of
from trifold.train.memory import keep_freed
from trifold.train.plan import Plan
from trifold.train.state import Mean, Position, State
from trifold.train.stopping import stopping

Batches = Callable[[int, int], Iterable[Batch]]  # (epoch, k) -> its minibatches from the k-th on
Step = Callable[[Batch, Progress], Report]
Watched = Callable[[], Iterable[Batch]]


def fit(
    network: nn.Module,
    step: Step,
    batches: Batches,
    plan: Plan,
    *,
    steps: int,
    epochs: int,
    cells: int,
    validation: Watched | None = None,
    watch: Mapping[str, float] | None = None,
    seed: int = 0,
    device: str = "auto",
    fabric: Any = None,
    report: Callable[[dict[str, float]], None] | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
) -> History:
    """Train a network in place. With early stopping, the weights that were best on the watched cells are restored at the end.

    The global random generators are left as they were found; all noise comes from ``seed``. With checkpoints, Ctrl-C and SIGTERM finish the
    step, write one, and raise.

    Args:
        network: Everything that has parameters. Left on the CPU, in evaluation mode.
        step: (Batch, Progress) -> Report: the forward pass and the objective.
        batches: (epoch, k) -> the minibatches of that epoch from the k-th on; of several processes, this one's share of each.
        plan: Learning rate, patience and the like.
        steps: Minibatches per epoch, for schedules.
        epochs: Number of epochs at most.
        cells: Number of training cells.
        validation: () -> the minibatches to watch. None: no early stopping, the last weights are kept.
        watch: term -> weight, of the terms whose sum is watched, as ``validation/watched``; None: the loss.
        seed: Of dropout and of the noise of z.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        fabric: A launched one, instead of ``device``: of several processes.
        report: Called with each epoch's row of the history.
        checkpoints: Where and when they are written; None: never.
        resume: Go on from the newest checkpoint, if there is one.

    Returns:
        One row per epoch.

    Raises:
        TrainingError: A term or the gradient is not finite, or a term has diverged. Good weights, at most 20 steps old, are put back.
        Interrupted: A signal came; a checkpoint was written.
        CheckpointError: A checkpoint cannot be written: training stops with the weights of that step, and earlier checkpoints are intact.
            Or it is of another run.
        DeviceError: The device is not there.
    """
    fabric = fabric or launch(device, plan.precision)
    share = share_of(fabric)
    if fabric.device.type == "cpu":
        keep_freed()
    step = compiled(step) if plan.compile else step
    with _own_noise(seed, fabric.device), stopping(listen=checkpoints is not None) as asked:
        network.train()
        network.to(fabric.device)
        spread(network, share)
        _same_start(network, share)
        trained = [p for p in network.parameters() if p.requires_grad]
        every = 1 if fabric.device.type == "cpu" else CHECK_EVERY  # on the CPU a look is free
        state = State(network, _optimizer(trained, plan), Guard(network, every=every), Position(lr=plan.lr))
        if checkpoints is not None and not (resume and checkpoints.restore(state)):
            checkpoints.clear()
        at, guard = state.at, state.guard
        minibatches: Iterator[Batch] = iter(())
        try:
            while at.epoch < epochs and not _given_up(state, plan, watched=validation is not None):
                began = time.perf_counter() - at.seconds
                minibatches = iter(batches(at.epoch, at.index))
                for batch in minibatches:
                    progress = Progress(step=at.done, steps=steps * epochs, epoch=at.epoch, epochs=epochs, cells=cells)
                    at.rate = at.lr * plan.rate(progress)
                    for group in state.optimizer.param_groups:
                        group["lr"] = at.rate
                    state.optimizer.zero_grad(set_to_none=True)
                    with fabric.autocast():
                        out = step(batch.to(fabric.device), progress)
                    out.loss.backward()
                    out, asks = _agreed(out, trained, asked.signal, share)
                    guard.note(out, _clipped(trained, plan.clip, fabric.device), at.done, share.whole(batch.n))
                    if guard.due(at.done + 1):
                        state.settle()
                    state.optimizer.step()
                    at.index, at.done, at.seconds = at.index + 1, at.done + 1, time.perf_counter() - began
                    stop = asked.signal if asks is None else int(asks.argmax()) if at.done % every == 0 else 0
                    if checkpoints is not None and (stop or checkpoints.due(at.done)):
                        state.settle()
                        if stop or guard.over == 0:  # weights of a loss that may have diverged are no place to go on from
                            checkpoints.write(state)
                        if stop:
                            raise _interrupted(stop, checkpoints, at.done)
                state.settle()
                row = {"epoch": at.epoch, "step": at.done, "lr": at.rate, **state.mean.row("train")}
                if validation is not None:
                    row |= _watch(network, step, validation(), fabric, seed, cells)
                    _judge(row, watch, state, plan)
                row["seconds"] = time.perf_counter() - began
                state.history.add(row)
                if report is not None:
                    report(row)
                at.epoch, at.index, at.seconds, state.mean = at.epoch + 1, 0, 0.0, Mean()
            if plan.patience is not None and state.best is not None:
                network.load_state_dict(state.best)
        finally:
            if isinstance(minibatches, Generator):
                minibatches.close()  # and the thread that reads ahead with it
            spread(network, ALONE)
            network.eval()
            network.to("cpu")
    return state.history


def _same_start(network: nn.Module, share: Share) -> None:
    """Every process begins with the weights of the first."""
    if share.alone:
        return
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        raise SpecError(
            "Several processes need cells that do not see each other; this model has BatchNorm, whose means would be those of each "
            "process's own cells. Use norm='layer' (for presets: leave out published=True), or devices=1."
        )
    for tensor in network.state_dict().values():
        torch.distributed.broadcast(tensor, 0)


def _given_up(state: State, plan: Plan, *, watched: bool) -> bool:
    return watched and plan.patience is not None and state.at.since >= plan.patience


def _judge(row: dict[str, float], watch: Mapping[str, float] | None, state: State, plan: Plan) -> None:
    """Whether the watched loss is better than ever; if not for long, a lower learning rate."""
    at = state.at
    if watch is not None:
        row["validation/watched"] = sum(weight * row.get(f"validation/{name}", 0.0) for name, weight in watch.items())
    loss = row["validation/loss" if watch is None else "validation/watched"]
    if not math.isfinite(loss):
        state.guard.stop(at.done, "validation loss", at.lr)
    at.since = 0 if loss < at.best - 1e-4 * abs(at.best if math.isfinite(at.best) else 0) else at.since + 1
    if loss < at.best:
        at.best = loss
        if plan.patience is not None:  # kept only where it can be restored
            state.best = weights_of(state.network)
    if plan.plateau is not None and at.since > 0 and at.since % plan.plateau == 0:
        at.lr = max(at.lr * 0.3, 1e-6)


def _clipped(trained: list[nn.Parameter], clip: float | None, device: torch.device) -> Tensor:
    """[] length of the gradient, which is made no longer than ``clip``. On the CPU, where a look is free, a short one is left as it is."""
    gradients = [p.grad for p in trained if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip is not None and (device.type != "cpu" or not norm <= clip):
        nn.utils.clip_grads_with_norm_(trained, clip, norm)
    return norm


def _agreed(out: Report, trained: list[nn.Parameter], signal: int, share: Share) -> tuple[Report, Tensor | None]:
    """Gradients and values as all processes have them, their mean, and [64] which signals came to any of them. One message a step."""
    if share.alone:
        return out, None
    graded = [p.grad for p in trained if p.grad is not None]
    asks = torch.zeros(64, device=out.loss.device)
    asks[signal] = float(signal > 0)
    values = torch.stack([*out.values.values(), out.loss.detach()]).float()
    flat = torch.cat([*(grad.reshape(-1) for grad in graded), values, asks])
    torch.distributed.all_reduce(flat)
    flat /= share.world
    *grads, values, asks = flat.split([*(grad.numel() for grad in graded), len(values), len(asks)])
    for grad, part in zip(graded, grads, strict=True):
        grad.copy_(part.view_as(grad))
    return Report(loss=values[-1], values=dict(zip(out.values, values[:-1], strict=True)), weights=out.weights), asks


def _interrupted(signal: int, checkpoints: Checkpoints, done: int) -> Interrupted:
    return Interrupted(
        f"Training was asked to stop by signal {signal}. The checkpoint of step {done} is in {str(checkpoints.folder)!r}. "
        "Go on with the same arguments and resume=True (on the command line: --resume).",
        signal=signal,
    )


def _watch(network: nn.Module, step: Step, batches: Iterable[Batch], fabric: Any, seed: int, cells: int) -> dict[str, float]:
    """Mean over the watched cells, with the last weights of every schedule and the same noise each time."""
    mean = Mean()
    network.eval()
    spread(network, ALONE)  # every process watches all of them
    with torch.no_grad(), _own_noise(seed, fabric.device):
        for batch in batches:
            with fabric.autocast():
                out = step(batch.to(fabric.device), Progress.done(cells))
            mean.add([*out.values, "loss"], torch.stack([*out.values.values(), out.loss]).tolist(), batch.n)
    network.train()
    spread(network, share_of(fabric))
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
