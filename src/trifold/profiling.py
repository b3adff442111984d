"""``profile``: where the time of a training step goes, beside the matrix multiplications that it cannot do without."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import TorchDispatchMode

from trifold.errors import SpecError
from trifold.model import Model
from trifold.nets import RowsLinear
from trifold.records import Progress
from trifold.schedule import weight_now
from trifold.terms import NLL
from trifold.train import launch

if TYPE_CHECKING:
    import pandas as pd

_WARM = 5  # steps before the first that counts
_COUNTED = 2  # steps after the last, whose operators are counted
_WHAT = {
    "reading": "minibatch to device, and between steps",
    "encoder": "forward: q(z | x, c)",
    "decoder": "forward: features of p(x | z, c)",
    "likelihood": "forward: -log p(x | z, c), last layer",
    "rest": "forward: drawing z, weights, sums",
    "backward": "gradients of all of these",
    "clip and guard": "norm of the gradient, finite values",
    "optimiser": "update of the weights",
}


def profile(
    model: Model,
    data: Any,
    *,
    steps: int = 50,
    batch: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Where the time of a training step goes, on this machine and these data.

    ``Model.fit`` itself runs on a copy of the model for a few steps, and clocks at its parts share out all the time between two updates.
    Terms whose weight is a schedule weigh what they weigh at the end; ``compile`` is left out, since a compiled step has no parts. On CUDA
    the clocks are events on the device's stream, read at the end: nothing is synchronised in between. A part that calls another, as a
    curvature term calls the decoder, keeps that time.

    The bound is the time of the multiplications of the VAE's linear layers alone at the shapes of one minibatch: forward, and backward in
    weights and inputs (not in x), every layer dense, each timed by itself in the precision of training.

    Args:
        model: Any model, trained or not; it is left as found, and so are torch's generators.
        data: Cells to train on: AnnData, path, or whatever the schema was made of.
        steps: Steps that count; the five before them do not.
        batch: Cells per minibatch; None: the model's own.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        threads: Threads of torch on the CPU, for the time of the profile; None: as they are.
        seed: Of the minibatches and noise.

    Returns:
        A table with ``part``, ``kind``, ``ms``, ``share`` (of the step) and ``what``. Rows of kind ``part`` are medians over the steps with
        a full minibatch; they sum to the ``step`` but for the difference between a sum of medians and a median of sums. ``forward`` and
        ``backward`` are the multiplications of each linear layer, ``bound`` their sum. ``attrs`` holds ``cells_per_second``,
        ``bound_cells_per_second``, ``share_of_bound``, ``operators`` (calls of a step that reach torch's kernels, views among them), and
        what was measured: ``batch``, ``steps``, ``cells``, ``genes``, ``filled`` (share of x that is not zero), ``weights``, ``preset``,
        ``device``, ``machine``, ``threads``, ``precision``, ``torch``.

    Raises:
        SpecError: Fewer than one step or thread.
        DataError, SchemaError, DeviceError, TrainingError: As ``Model.fit``.
    """
    for name, value in (("steps", steps), ("threads", threads)):
        if value is not None and value < 1:
            raise SpecError(f"profile needs {name} >= 1; found {value}.")
    copy = deepcopy(model)
    copy.objective.weights = {name: weight_now(weight, Progress.done()) for name, weight in copy.objective.weights.items()}
    copy.plan = replace(copy.plan, compile=False)
    place = launch(device).device
    with _threads(threads) as count:
        line = _Timeline(place, steps)
        with line.watching(copy):
            more: dict[str, Any] = {} if batch is None else {"batch": batch}
            with suppress(_EnoughError):
                copy.fit(data, epochs=_WARM + steps + _COUNTED, validation=0.0, seed=seed, device=device, progress=False, **more)
        parts, step, cells = line.medians()
        products = _products(copy, cells, place, bf16=copy.plan.precision == "bf16-mixed")
    bound = sum(ms for *_, ms in products)
    rows = [(name, "part", ms, ms / step, _WHAT.get(name, f"forward: term {name!r}")) for name, ms in parts.items()]
    rows.append(("step", "step", step, 1.0, f"from update to update, {cells:,} cells"))
    rows += [(name, kind, ms, ms / step, shape) for name, kind, shape, ms in products]
    rows.append(("bound", "bound", bound, bound / step, "the multiplications alone"))
    return _table(
        rows,
        cells_per_second=1e3 * cells / step,
        bound_cells_per_second=1e3 * cells / bound if bound else math.inf,
        share_of_bound=bound / step,
        operators=line.operators,
        batch=cells,
        steps=line.counted,
        cells=line.cells,
        genes=len(model.schema.genes),
        filled=model.schema.density,
        weights=sum(p.numel() for p in copy.vae.parameters()),
        preset=model.preset or "own",
        device=str(place),
        machine=torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine(),
        threads=count,
        precision=copy.plan.precision,
        torch=torch.__version__,
    )


class _EnoughError(Exception):
    """As many steps as were asked for are done."""


class _Timeline:
    """Marks in time, each the end of a stretch with a name: together they cover all of the time between two updates.

    Args:
        device: Where training runs.
        steps: Steps that count.
    """

    def __init__(self, device: torch.device, steps: int):
        self.device = device
        self.last = _WARM + steps
        self.marks: list[tuple[int, str, Any]] = []  # step, name of the stretch that ends, when
        self.sizes: list[int] = []  # cells of each step
        self.names: list[str] = []
        self.inside: list[str] = []  # parts that are running, the outermost first
        self.state = "between"
        self.calls = _Calls()
        self.cells = 0

    @property
    def operators(self) -> int:
        """Calls of an operator in a step."""
        return round(self.calls.count / _COUNTED)

    @property
    def counted(self) -> int:
        """Steps whose times count."""
        return len(self._full())

    def close(self, name: str) -> None:
        """A stretch of this name ends now."""
        if len(self.sizes) <= self.last:
            self.marks.append((len(self.sizes) - 1, name, self._now()))

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Clocks at the parts of a model, and at whatever optimiser trains it."""
        terms = {("likelihood" if isinstance(term, NLL) else name): term for name, term in model.objective.terms.items()}
        parts = {"encoder": model.vae.posterior, "decoder": model.vae.decoder, **terms}
        self.names = ["reading", "encoder", "decoder", *terms, "rest", "backward", "clip and guard", "optimiser"]
        handles: list[Any] = [
            model.vae.register_forward_pre_hook(self._begin),
            model.objective.register_forward_hook(self._forward),
            optimizers.register_optimizer_step_pre_hook(self._before_update),
            optimizers.register_optimizer_step_post_hook(self._after_update),
        ]
        for name, part in parts.items():
            handles.append(part.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            handles.append(part.register_forward_hook(lambda *_, name=name: self._leave(name)))
        try:
            yield
        finally:
            self.calls.end()
            for handle in handles:
                handle.remove()

    def medians(self) -> tuple[dict[str, float], float, int]:
        """(part -> ms, ms of the whole step, cells of it): medians over the steps that count."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = [dict.fromkeys(self.names, 0.0) for _ in self.sizes]
        for (_, _, before), (step, name, after) in zip(self.marks, self.marks[1:], strict=False):
            spent[step][name] += before.elapsed_time(after) if self.device.type == "cuda" else 1e3 * (after - before)
        full = self._full()
        parts = {name: statistics.median(spent[i][name] for i in full) for name in self.names}
        return parts, statistics.median(sum(spent[i].values()) for i in full), self.sizes[full[0]]

    def _full(self) -> list[int]:
        """Steps that count: after those that warm up, with as many cells as a minibatch holds."""
        most = max(self.sizes[_WARM : self.last])
        return [i for i in range(_WARM, self.last) if self.sizes[i] == most]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            if self.device.type == "mps":
                torch.mps.synchronize()
            return _clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _begin(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if self.state == "between":
            self.sizes.append(given[0].n)
            self.cells = max(self.cells, given[1].cells)
            self.state = "forward"
            self.close("reading")

    def _enter(self, name: str) -> None:
        if self.state == "forward" and not self.inside:
            self.close("rest")
        self.inside.append(name)

    def _leave(self, name: str) -> None:
        self.inside.pop()
        if self.state == "forward" and not self.inside:
            self.close(name)

    def _forward(self, _: nn.Module, given: Any, report: Any) -> None:
        if self.state == "forward":
            self.close("rest")
            report.loss.register_hook(self._backward)

    def _backward(self, _: Tensor) -> None:
        self.close("rest")
        self.state = "backward"
        torch.autograd.Variable._execution_engine.queue_callback(self._gradients)

    def _gradients(self) -> None:
        self.close("backward")
        self.state = "update"

    def _before_update(self, *_: Any) -> None:
        if self.state == "update":
            self.close("clip and guard")

    def _after_update(self, *_: Any) -> None:
        if self.state != "update":
            return  # an optimiser that a term has of its own
        self.close("optimiser")
        self.state = "between"
        done = len(self.sizes)
        if done == self.last:
            self.calls.begin()
        elif done == self.last + _COUNTED:
            raise _EnoughError


def _clock() -> float:
    return time.perf_counter()


class _Calls(TorchDispatchMode):
    """Counts what reaches torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.on = False

    def begin(self) -> None:
        self.on = True
        self.__enter__()

    def end(self) -> None:
        if self.on:
            self.on = False
            self.__exit__(None, None, None)

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return f(*args, **(kwargs or {}))


def _products(model: Model, cells: int, device: torch.device, *, bf16: bool) -> list[tuple[str, str, str, float]]:
    """(layer, "forward" or "backward", shape, ms) of each linear layer of the VAE."""
    out = []
    generator = torch.Generator(device).manual_seed(0)
    for name, layer in model.vae.named_modules():
        if not isinstance(layer, (nn.Linear, RowsLinear)):
            continue
        outputs, inputs = layer.weight.shape
        reads_x = isinstance(layer, RowsLinear) and name.startswith("posterior")
        if isinstance(layer, RowsLinear):
            inputs, outputs = layer.weight.shape
            inputs += 0 if layer.design is None else layer.design.shape[0]
        x, w, up = (
            torch.randn(shape, generator=generator, device=device).to(torch.bfloat16 if bf16 else torch.float32)
            for shape in ((cells, inputs), (inputs, outputs), (cells, outputs))
        )
        back = ([(x.T, up)] if layer.weight.requires_grad else []) + ([] if reads_x else [(up, w.T)])
        shape = f"{cells:,} × {inputs:,} → {outputs:,}"
        out.append((name, "forward", shape, _ms(partial(torch.matmul, x, w), device)))
        out.append((name, "backward", shape, sum(_ms(partial(torch.matmul, *pair), device) for pair in back)))
    return out


def _ms(f: Callable[[], Any], device: torch.device, *, budget: float = 0.2) -> float:
    """Median time of a call: of 30, or of as many as fit into the budget of seconds, at least five."""
    times: list[float] = []
    synchronise = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    many = 1 if device.type == "cpu" else 20  # calls between two synchronisations
    for _ in range(3):
        f()
    synchronise()
    while len(times) < 5 or (len(times) < 30 and sum(times) < budget):
        began = _clock()
        for _ in range(many):
            f()
        synchronise()
        times.append((_clock() - began) / many)
    return 1e3 * statistics.median(times)


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    found = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        if count is not None:
            torch.set_num_threads(found)


def _table(rows: list[tuple[str, str, float, float, str]], **facts: Any) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows, columns=["part", "kind", "ms", "share", "what"])
    table.attrs = facts
    return table
