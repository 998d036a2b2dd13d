"""What optimizers are sorted by: provider, family, scope, year, and the size of their state."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.registry.catalogue import known_optimizers
from hfoptim.registry.info import OptimInfo
from hfoptim.registry.lookup import get_optimizer_class, get_optimizer_info, made_of

_ARXIV = re.compile(r"arxiv\.org/abs/(\d\d)\d\d\.\d")
_ARXIV_BEFORE_2007 = re.compile(r"arxiv\.org/abs/[\w-]+/(\d\d)\d\d\d")


class StateOf(NamedTuple):
    """What one step leaves in the state of a parameter.

    Args:
        kind: "matrix" or "vector".
        shape: the parameter's.
        bytes_per_entry: of all tensors together.
        tensors: their shapes by name.
    """

    kind: str
    shape: tuple[int, ...]
    bytes_per_entry: float
    tensors: dict[str, tuple[int, ...]]


def _ours(info: OptimInfo) -> OptimInfo:
    return get_optimizer_info(info.algorithm) if info.outside else info


def family(info: OptimInfo) -> str:
    """The module of the class, which those share that share equations; of another package's, that of ours."""
    return _ours(info).where.split(":")[0].split(".")[-2]


def year(info: OptimInfo) -> int | None:
    """When its source was published, where that is an arXiv paper."""
    source = _ours(info).source
    found = _ARXIV.search(source) or _ARXIV_BEFORE_2007.search(source)
    return None if found is None else 2000 + int(found[1])


def scope(info: OptimInfo) -> str:
    """What an entry of a matrix' update depends on: "element", "tensor", "matrix"; "global" for torch's own."""
    for inner in unwrap_all(made_of(_ours(info)), RuleOptimizer):
        group = inner.param_groups[0]
        return str(inner.rule_for(group["params"][0], group).scope.name).lower()
    return "global"


@functools.cache
def states(name: str) -> tuple[StateOf, ...]:
    """What a step leaves in the state of a matrix and of a vector, measured."""
    named = [("weight", nn.Parameter(torch.ones(256, 128))), ("bias", nn.Parameter(torch.ones(256)))]
    for _, param in named:
        param.grad = torch.ones_like(param)
    create: Callable[..., Optimizer] = get_optimizer_class(name)
    with warnings.catch_warnings():  # what two parameters lack is no matter here
        warnings.simplefilter("ignore")
        optimizer = create(named)
        step(optimizer)
    saved = optimizer.state_dict()
    groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    keys = {param: key for group, of in groups for param, key in zip(group["params"], of["params"], strict=True)}
    return tuple(
        _state(kind, param, saved["state"].get(keys[param], {})) for kind, (_, param) in zip(_KINDS, named, strict=True)
    )


_KINDS = ("matrix", "vector")


def _state(kind: str, param: Tensor, state: dict[str, Any]) -> StateOf:
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    return StateOf(kind, tuple(param.shape), size / param.numel(), shapes)


def step(optimizer: Optimizer) -> None:
    """One step, with a loss of 1 for what depends on one."""
    for inner in unwrap_all(optimizer, RuleOptimizer):
        inner.add_loss(1.0)
    optimizer.step()


def state_bytes(info: OptimInfo) -> float | None:
    """Bytes of state per entry of a matrix; None where its step needs more than a gradient, and of other packages."""
    # Rounded, as counts of steps have some bytes too.
    return None if info.outside or info.needs else round(states(info.name)[0].bytes_per_entry, 2)


def counts() -> dict[str, int]:
    """How many names each provider has, this package first."""
    entries = [known_optimizers().get(name) for outside in (False, True) for name in known_optimizers().names(outside)]
    found: dict[str, int] = {}
    for entry in entries:
        found[entry.provider] = found.get(entry.provider, 0) + 1
    return found
