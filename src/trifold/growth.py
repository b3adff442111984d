"""A model widened by new categories of some roles: what it learned keeps its values, and what is new is known entry by entry."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trifold.core import ConditionalGaussian, Decoder, EffectDecoder, Energy, Likelihood, Posterior
from trifold.data import Category, Schema
from trifold.errors import SpecError
from trifold.nets import MLP
from trifold.spec import Component, arguments
from trifold.terms import HSIC, MMD, Predictor, Probe


@dataclass(frozen=True, eq=False)
class Axis:
    """Where the entries of a tensor's axis go when it grows. Places that are neither kept nor fresh hold zeros that nobody trains.

    Args:
        size: Length of the grown axis.
        kept: [old length] place of each old entry.
        fresh: Place of each entry to be learned -> the old entries whose mean it begins with; none: 0.
    """

    size: int
    kept: np.ndarray
    fresh: Mapping[int, np.ndarray] = field(default_factory=dict)

    def widened(self, old: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The grown tensor, and which of its entries are fresh."""
        rows = old.detach().movedim(dim, 0)
        out = rows.new_zeros(self.size, *rows.shape[1:])
        mask = torch.zeros(out.shape, dtype=torch.bool)
        out[torch.from_numpy(self.kept)] = rows
        for at, like in self.fresh.items():
            mask[at] = True
            if len(like):
                out[at] = rows[torch.from_numpy(like)].mean(0)
        return out.movedim(0, dim), mask.movedim(0, dim)


def _beside(axes: Sequence[Axis]) -> Axis:
    """Axes one after the other."""
    size = length = 0
    kept: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    fresh: dict[int, np.ndarray] = {}
    for axis in axes:
        kept.append(axis.kept + size)
        fresh |= {size + at: length + like for at, like in axis.fresh.items()}
        size, length = size + axis.size, length + len(axis.kept)
    return Axis(size, np.concatenate(kept), fresh)


def _same(size: int) -> Axis:
    return Axis(size, np.arange(size))


@dataclass(frozen=True, eq=False)
class Growth:
    """From one schema to one that grew out of it.

    Args:
        old, new: The schemas.
        roles: Those that may have grown.
        adapt: Whether encoders that do not see a grown role are to see its new categories.
        features: Axis of the decoder's features, where it grows.
    """

    old: Schema
    new: Schema
    roles: tuple[str, ...]
    adapt: bool = True
    features: Axis | None = None

    def __contains__(self, role: Any) -> bool:
        return role in self.roles

    def count(self, role: str) -> int:
        """Joint categories of a role."""
        return len(self.new.categories(role))

    def codes(self, role: str, *, unknown: bool = False) -> Axis:
        """One entry per joint category, and a last one for the unknown category if there is one."""
        old, new = len(self.old.categories(role)), self.count(role)
        kept = np.append(np.arange(old), new) if unknown else np.arange(old)
        return Axis(new + unknown, kept, {at: np.arange(old) for at in range(old, new)})

    def design(self, role: str) -> Axis:
        """One entry per column of the role's design; new categories begin at the mean of the old ones of their column."""
        fresh: dict[int, np.ndarray] = {}
        start = first = 0
        for before, now in zip(self.old.roles[role], self.new.roles[role], strict=True):
            fresh |= {start + k: first + np.arange(before.width) for k in range(before.width, now.width) if isinstance(now, Category)}
            start, first = start + now.width, first + before.width
        return Axis(start, self.old.placed(self.new, role), fresh)

    def unseen(self, role: str) -> Axis:
        """Of a layer that did not see the role: zeros to begin with, and for known categories for ever."""
        grown = self.design(role)
        return Axis(grown.size, grown.kept[:0], dict.fromkeys(grown.fresh, grown.kept[:0]))

    def joined(self, roles: Sequence[str]) -> Axis:
        """Designs of some roles side by side."""
        return _beside([self.design(role) if role in self.roles else _same(self.new.width(role)) for role in roles])


@dataclass(frozen=True, eq=False)
class Rule:
    """What growth does to a component: other arguments, and tensors (by name) one of whose axes grows."""

    given: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, tuple[int, Axis]] = field(default_factory=dict)


def grown(part: Any, growth: Growth) -> tuple[Any, dict[str, Tensor]]:
    """A component for the new schema, built by its constructor, with everything that the old one learned.

    Args:
        part: A VAE or an objective; left as it is.
        growth: What is new.

    Returns:
        (the component, in evaluation mode; name of a parameter -> [its shape] which entries are fresh, for those that have some).

    Raises:
        SpecError: Covariates that enter a network without a hidden layer.
    """
    if hasattr(part, "decoder"):
        growth = replace(growth, features=_features(part.decoder, growth))
    with torch.random.fork_rng(devices=[]):
        out = _rebuilt(part, growth)
    state, fresh = {name: t.detach().clone() for name, t in part.state_dict().items()}, {}
    parameters = dict(out.named_parameters())
    for prefix, module in part.named_modules():
        for tensor, (dim, axis) in _rule(module, growth).tensors.items():
            name = f"{prefix}.{tensor}" if prefix else tensor
            before = state.get(name, parameters[name].new_zeros(0, *parameters[name].shape[1:]) if name in parameters else None)
            if before is not None:
                state[name], mask = axis.widened(before, dim)
                if mask.any() and parameters[name].requires_grad:
                    fresh[name] = mask
    out.load_state_dict(state)
    return out.eval(), fresh


def _rebuilt(value: Any, growth: Growth) -> Any:
    if isinstance(value, Component):
        given = {name: _rebuilt(getattr(value, name), growth) for name in arguments(type(value))}
        return type(value)(**{**given, **_rule(value, growth).given})
    if isinstance(value, Mapping):
        return {name: _rebuilt(part, growth) for name, part in value.items()}
    return copy.deepcopy(value)


@singledispatch
def _rule(part: Any, growth: Growth) -> Rule:
    foreign = isinstance(part, Component) and not type(part).__module__.startswith("trifold.")
    told = {getattr(part, "role", None), *getattr(part, "roles", ())} if foreign else set()
    if told & set(growth.roles):
        raise SpecError(
            f"map can widen components of trifold only; {type(part).__name__}, which sees a role that grows, is not one. "
            "Train a new model on all cells."
        )
    return Rule()


@_rule.register
def _(part: ConditionalGaussian, growth: Growth) -> Rule:
    if part.role not in growth:
        return Rule()
    rows, place = growth.codes(part.role, unknown=True), growth.old.placed(growth.new, part.role)
    numbers = [int(place[k]) for k in part.numbers]
    tables = ("mean", "log_var") if part.place is None else ("place",)
    return Rule({"categories": growth.count(part.role), "numbers": numbers}, dict.fromkeys(tables, (0, rows)))


@_rule.register
def _(part: Energy, growth: Growth) -> Rule:
    if part.role not in growth:
        return Rule()  # its Gaussian part has a rule of its own
    return Rule({"categories": growth.count(part.role)}, {"tilt": (0, growth.codes(part.role, unknown=True))})


@_rule.register
def _(part: Posterior, growth: Growth) -> Rule:
    seen = growth.joined(part.roles)
    more = [role for role in growth.roles if growth.adapt and role not in part.roles and growth.design(role).fresh]
    if not more and not any(role in growth for role in part.roles):
        return Rule()
    axis = _beside([seen, *(growth.unseen(role) for role in more)])
    network = _wider(part.network, axis, "posterior")
    return Rule({"network": network, "roles": (*part.roles, *more)}, {"network.first.design": (0, axis)})


@_rule.register
def _(part: Decoder, growth: Growth) -> Rule:
    if not any(role in growth for role in part.roles):
        return Rule()
    axis = growth.joined(part.roles)
    return Rule({"network": _wider(part.network, axis, "decoder")}, {"network.first.design": (0, axis)})


@_rule.register
def _(part: EffectDecoder, growth: Growth) -> Rule:
    return Rule({"covariates": growth.joined(part.roles).size})


@_rule.register
def _(part: Likelihood, growth: Growth) -> Rule:
    given: dict[str, Any] = {}
    tensors: dict[str, tuple[int, Axis]] = {}
    if growth.features is not None:
        given["features"] = growth.features.size
        tensors |= {f"{name}.weight": (1, growth.features) for name in ("out", "gate", "spread")}
    if getattr(part, "dispersion", "gene") == "condition" and part.role in growth:
        given["conditions"] = growth.count(part.role)  # type: ignore[arg-type]
        tensors["theta.departure"] = (0, growth.codes(part.role))  # type: ignore[arg-type]
    return Rule(given, tensors)


@_rule.register
def _(part: Predictor, growth: Growth) -> Rule:
    given = {"environments": growth.count(part.environment)} if part.environment in growth else {}  # type: ignore[arg-type]
    return _classifier(part, growth, given)


@_rule.register
def _(part: Probe, growth: Growth) -> Rule:
    if part.within in growth:
        raise SpecError(
            f"map cannot widen Probe(within={part.within!r}), which is told the role that grows. Train the reference with within=None."
        )
    return _classifier(part, growth, {})


@_rule.register
def _(part: MMD, growth: Growth) -> Rule:
    given = {"groups": growth.count(part.role)} if part.role in growth else {}
    return Rule(given | ({"strata": growth.count(part.within)} if part.within in growth else {}))  # type: ignore[arg-type]


@_rule.register
def _(part: HSIC, growth: Growth) -> Rule:
    return Rule({"strata": growth.count(part.within)} if part.within in growth else {})  # type: ignore[arg-type]


def _classifier(part: Any, growth: Growth, given: Mapping[str, Any]) -> Rule:
    if part.role not in growth:
        return Rule(given)
    rows = growth.codes(part.role)
    return Rule({**given, "categories": rows.size}, {"head.out.weight": (0, rows), "head.out.bias": (0, rows)})


def _wider(network: MLP, axis: Axis, where: str) -> MLP:
    if network.first is None:
        raise SpecError(
            f"map needs a hidden layer in the {where}, to learn its weights of new categories; found hidden=(). "
            "Train the reference with one, or pass adapt=False if it is the posterior's."
        )
    late = [[int(axis.kept[k]) for k in group] for group in network.late]
    new = sorted(set(range(axis.size)) - set(axis.kept.tolist()))
    given = {name: getattr(network, name) for name in arguments(MLP)}
    return MLP(**{**given, "covariates": axis.size, "late": [*late, new] if new else late})


def _features(decoder: nn.Module, growth: Growth) -> Axis | None:
    """Axis of the decoder's features, where it grows: base, one effect per column of the design, its departures per column."""
    if not isinstance(decoder, EffectDecoder) or not any(role in growth for role in decoder.roles):
        return None
    design, rank = growth.joined(decoder.roles), decoder.rank
    every = np.arange(rank)
    kept = (design.kept[:, None] * rank + every).reshape(-1)
    fresh = {at * rank + k: like * rank + k for at, like in design.fresh.items() for k in range(rank)}
    return _beside([_same(decoder.network.width), design, Axis(design.size * rank, kept, fresh)])
